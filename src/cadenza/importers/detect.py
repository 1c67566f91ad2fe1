"""Detection of the library that wrote a model folder; training checkpoints are refused with the fix."""

from pathlib import Path

from cadenza.core.checkpoint import has_weights
from cadenza.core.errors import CheckpointError
from cadenza.core.hub import read_json_object
from cadenza.importers import audiocraft, encodec, musicgen
from cadenza.importers.audiocraft_package import CODEC, EXPORT, LM
from cadenza.system.store import ModelFolder

_NOT_YET = {
    "dac": "DAC codecs cannot be loaded yet",
    "mimi": "Mimi codecs cannot be loaded yet",
    "t5": "it is a text encoder, a part of other models: name it as `model` of a conditioner of the type t5",
    **dict.fromkeys(("musicgen_decoder", "musicgen_melody_decoder"), "it is only the language model: load the whole MusicGen"),
}


def detect_model(folder: Path, *, name: str | None = None) -> ModelFolder:
    """Return the model in a folder from its configs; `name` is its name in the hub.

    Raise CheckpointError, with the fix, if the folder holds something else or settings that are not supported.
    """
    own = (folder / "config.json").exists() and has_weights(folder)  # a repository may have both layouts
    if (folder / LM).exists() and not own:
        return audiocraft.inspect_audiocraft_lm(folder, name=name)
    if (folder / CODEC).exists() and not own:
        return encodec.inspect_audiocraft_encodec(folder, name=name)
    if (folder / "adapter_config.json").exists():
        raise CheckpointError(f"{folder} holds an adapter (PEFT), not a model; merge it into its model (`merge_and_unload`)")
    if (folder / "config.json").exists():
        config = read_json_object(folder / "config.json")
        kind = config.get("model_type")
        if kind in ("musicgen", "musicgen_melody"):
            return musicgen.inspect_musicgen(folder, config, name=name)
        if kind == "encodec":
            return encodec.inspect_transformers_encodec(folder, config, name=name)
        raise CheckpointError(
            f"{folder}: a model of the type {kind!r} cannot be loaded: "
            f"{_NOT_YET.get(str(kind), 'supported types of transformers: musicgen, musicgen_melody, encodec')}"
        )
    raise CheckpointError(f"{folder} {_instead(folder)}")


def single_file_error(path: Path) -> CheckpointError:
    """Return the error for a single file that is given in place of a model folder."""
    if path.suffix in (".th", ".ckpt"):
        return CheckpointError(f"{path} is a checkpoint of a training run. {EXPORT}, and load the folder of the exported file")
    if path.name in (LM, CODEC, "model.safetensors", "config.json", "pytorch_model.bin", "system.json"):
        return CheckpointError(f"{path} is one file of a model; give its folder, '{path.parent}'")
    return CheckpointError(f"{path} is a file; give the folder of a model, or its name in the hub")


def _instead(folder: Path) -> str:
    """Return the end of an error message: the kind of a folder without a model, and the fix."""
    steps = [path.name.removeprefix("checkpoint-") for path in folder.glob("checkpoint-*")]
    if numbers := [int(step) for step in steps if step.isdigit()]:
        checkpoint = folder / f"checkpoint-{max(numbers)}"
        return f"is a training run of transformers, not a model; load one of its checkpoints, such as '{checkpoint}'"
    if (folder / ".hydra").exists() or list(folder.glob("checkpoint*.th")):
        return f"is a training run of AudioCraft, not a model. {EXPORT}, into a folder of its own"
    if list(folder.glob("*.ckpt")):
        return "holds a checkpoint of Lightning, not a model; export it with the library that trained it"
    if list(folder.glob("global_step*")) or (folder / "zero_to_fp32.py").exists() or list(folder.glob("*_fsdp_*")):
        return (
            "holds a checkpoint in parts, of DeepSpeed or FSDP; gather it with the library that trained it (`zero_to_fp32.py`)"
        )
    names = sorted(path.name for path in folder.iterdir())[:5]
    return (
        f"holds no known model ({', '.join(names) if names else 'it is empty'}); give a folder that "
        f"`save` or `import` wrote, one of transformers (config.json), or one of AudioCraft ({LM})"
    )
