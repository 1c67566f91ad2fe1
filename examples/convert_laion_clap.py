"""Convert a CLAP checkpoint of LAION (`.pt`: HTS-AT and RoBERTa) to a folder in the layout of transformers.

    python examples/convert_laion_clap.py music_audioset_epoch_15_esc_90.14.pt my-clap --tokenizer FacebookAI/roberta-base

The `clap` conditioner loads the folder. No code in the file is run.
"""

import argparse
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from cadenza.core.checkpoint import as_state_dict, check_finite, check_state_dict, load_torch_file, to_float32_copy
from cadenza.core.errors import CheckpointError
from cadenza.core.hub import ModelSource
from cadenza.nn.clap import COMPUTED_BUFFERS

_LEFT_OUT = (  # computed from settings, heads of other tasks, and layers that only LAION's loss sees
    "audio_branch.spectrogram_extractor.",
    "audio_branch.logmel_extractor.",
    "audio_branch.tscam_conv.",
    "audio_branch.head.",
    "audio_transform.",
    "text_transform.",
)
_AUDIO = {  # of a key below `audio_branch.`
    "bn0.": "batch_norm.",
    ".attn.relative_position_bias_table": ".attention.self.relative_position_bias_table",
    ".attn.proj.": ".attention.output.dense.",
    ".norm1.": ".layernorm_before.",
    ".norm2.": ".layernorm_after.",
    ".mlp.fc1.": ".intermediate.dense.",
    ".mlp.fc2.": ".output.dense.",
}
_LINEAR = {"0": "linear1", "2": "linear2"}  # of a projection, with what bends between them
_HEAD = 64  # width of a head of RoBERTa's; that of HTS-AT's heads is in the weights


def convert_laion_clap(checkpoint: str | Path, folder: str | Path, *, tokenizer: str, heads: int | None = None) -> None:
    """Writes `folder`, new, from a `.pt` file and RoBERTa's tokenizer (FacebookAI/roberta-base, or a folder of it).

    `heads` are those of the text tower, where they are not 64 wide. CheckpointError for what cannot be read safely, is
    not this kind of CLAP, or has a weight too many or too few.
    """
    checkpoint, folder = Path(checkpoint), Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists already; choose an empty or a new folder")
    words = ModelSource(tokenizer).required_file("tokenizer.json", of="a tokenizer")
    state = load_laion_checkpoint(checkpoint)
    config = infer_config(state, heads=heads, source=str(checkpoint))
    weights = rename_to_transformers(state)
    check_state_dict(weights, _shapes(config), source=str(checkpoint))
    check_finite(weights, source=str(checkpoint))
    fused = config["audio_config"]["enable_fusion"]
    sounds = {"feature_extractor_type": "ClapFeatureExtractor", "sampling_rate": 48000, "hop_length": 480, "max_length_s": 10}
    sounds |= {"fft_window_size": 1024, "frequency_min": 50, "frequency_max": 14000, "padding": "repeatpad"}
    sounds |= {"feature_size": config["audio_config"]["num_mel_bins"], "truncation": "fusion" if fused else "rand_trunc"}
    folder.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        (draft / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        (draft / "preprocessor_config.json").write_text(json.dumps(sounds, indent=2) + "\n")
        (draft / "tokenizer.json").write_bytes(words.read_bytes())
        save_file(
            {name: x.contiguous() for name, x in to_float32_copy(weights).items()},
            draft / "model.safetensors",
            {"format": "pt"},
        )
        (draft / "model.safetensors").chmod(0o644)
        draft.chmod(0o755)
        os.replace(draft, folder)
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be written: {error.strerror}; free space or choose another place") from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def load_laion_checkpoint(checkpoint: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint that are those of the model; besides tensors and plain data it may hold numbers of numpy."""
    import numpy as np

    kinds = [type(np.dtype(kind)) for kind in (np.float64, np.float32, np.int64, np.int32, np.bool_)]
    scalar: Any = np.float64(0).__reduce__()[0]
    names = [(scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")]
    with torch.serialization.safe_globals([*names, (np.dtype, "numpy.dtype"), *kinds]):
        held = load_torch_file(checkpoint)
    held = held.get("state_dict", held) if isinstance(held, Mapping) else held
    state = as_state_dict(held, source=str(checkpoint))
    state = {name.removeprefix("module."): x for name, x in state.items()}  # as training in several processes names them
    unused = (*COMPUTED_BUFFERS, ".attn_mask")
    return {name: x for name, x in state.items() if not name.startswith(_LEFT_OUT) and not name.endswith(unused)}


def rename_to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights by transformers' names; a name that no rule knows stays, and is then one too many."""
    found: dict[str, Tensor] = {}
    for name, x in state.items():
        branch, _, rest = name.partition(".")
        if branch == "audio_branch":
            for theirs, ours in _AUDIO.items():
                rest = rest.replace(theirs, ours)
            stem, qkv, end = f"audio_model.audio_encoder.{rest}".partition(".attn.qkv.")
            if qkv and len(x) % 3 == 0:
                shares = zip(("query", "key", "value"), x.chunk(3), strict=True)
                found |= {f"{stem}.attention.self.{one}.{end}": share for one, share in shares}
            else:
                found[stem + qkv + end] = x
        elif branch == "text_branch":
            found[f"text_model.{rest}"] = x
        elif match := re.fullmatch(r"((?:audio|text)_projection)\.([02])\.(weight|bias)", name):
            found[f"{match[1]}.{_LINEAR[match[2]]}.{match[3]}"] = x
        else:
            found[name] = x
    return found


def infer_config(state: Mapping[str, Tensor], *, heads: int | None, source: str) -> dict[str, Any]:
    """The config of transformers' ClapModel for the weights; what they do not show is as in all models of LAION."""
    if "audio_branch.patch_embed.proj.weight" not in state or "text_branch.embeddings.word_embeddings.weight" not in state:
        kinds = sorted({name.partition(".")[0] for name in state})[:5]
        raise CheckpointError(
            f"{source}: no CLAP with HTS-AT and RoBERTa, the only towers that can be read; it holds {', '.join(kinds)}"
        )
    try:
        return {"model_type": "clap", **_joint(state), "audio_config": _audio(state), "text_config": _text(state, heads)}
    except (KeyError, ValueError, IndexError) as error:
        raise CheckpointError(f"{source}: the weights are not all there: {error}; download or copy it again") from None


def _joint(state: Mapping[str, Tensor]) -> dict[str, Any]:
    return {"projection_dim": len(state["audio_projection.2.weight"]), "projection_hidden_act": "relu"}


def _audio(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """HTS-AT: four stages whose width doubles, a picture folded into a square of four bands of time."""
    stem = "audio_branch."
    patch, mels = state[f"{stem}patch_embed.proj.weight"].shape, len(state[f"{stem}bn0.weight"])
    stages = 1 + max(int(name.split(".")[2]) for name in state if name.startswith(f"{stem}layers."))
    blocks = [{name.split(".")[4] for name in state if name.startswith(f"{stem}layers.{i}.blocks.")} for i in range(stages)]
    tables = [state[f"{stem}layers.{i}.blocks.0.attn.relative_position_bias_table"] for i in range(stages)]
    fusion = state.get(f"{stem}patch_embed.fusion_model.local_att.0.weight")
    return {
        "num_mel_bins": mels,
        "spec_size": 4 * mels,
        "patch_size": patch[2],
        "patch_stride": [patch[2], patch[2]],
        "patch_embeds_hidden_size": patch[0],
        "hidden_size": len(state[f"{stem}norm.weight"]),
        "depths": [len(found) for found in blocks],
        "num_attention_heads": [table.shape[1] for table in tables],
        "window_size": (math.isqrt(len(tables[0])) + 1) // 2,
        "mlp_ratio": len(state[f"{stem}layers.0.blocks.0.mlp.fc1.weight"]) / patch[0],
        "enable_fusion": fusion is not None,
        "fusion_type": None if fusion is None else "aff_2d",
        "aff_block_r": 4 if fusion is None else patch[0] // len(fusion),
    }


def _text(state: Mapping[str, Tensor], heads: int | None) -> dict[str, Any]:
    """RoBERTa (arXiv:1907.11692), whose positions are counted from the one after padding's."""
    stem = "text_branch."
    (vocabulary, width), layer = state[f"{stem}embeddings.word_embeddings.weight"].shape, f"{stem}encoder.layer."
    heads = heads or width // _HEAD
    if not heads or width % heads:
        raise ValueError(f"a text tower of width {width} has heads of another width than {_HEAD}; give their number as heads=")
    return {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "intermediate_size": len(state[f"{layer}0.intermediate.dense.weight"]),
        "num_hidden_layers": 1 + max(int(name.split(".")[3]) for name in state if name.startswith(layer)),
        "num_attention_heads": heads,
        "max_position_embeddings": len(state[f"{stem}embeddings.position_embeddings.weight"]),
        "type_vocab_size": len(state[f"{stem}embeddings.token_type_embeddings.weight"]),
        "layer_norm_eps": 1e-5,
        "pad_token_id": 1,
        "bos_token_id": 0,
        "eos_token_id": 2,
    }


def _shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The weights of transformers' ClapModel for a config."""
    from transformers import AutoConfig, ClapModel

    with torch.device("meta"):
        model = ClapModel._from_config(AutoConfig.for_model(**config))
    return {name: tuple(x.shape) for name, x in model.state_dict().items() if not name.endswith(COMPUTED_BUFFERS)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--tokenizer", required=True, help="folder or hub name of a RoBERTa tokenizer")
    options = parser.parse_args()
    convert_laion_clap(options.checkpoint, options.folder, tokenizer=options.tokenizer)


if __name__ == "__main__":
    main()
