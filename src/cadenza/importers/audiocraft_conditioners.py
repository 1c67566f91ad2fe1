"""AudioCraft's conditioners and `fuser`: specs, fusion and weights of T5, chroma and style (MusicGen, MusicGen-Style)."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cadenza.core.checkpoint import strip_prefix
from cadenza.core.errors import CheckpointError
from cadenza.core.hub import read_json_object
from cadenza.importers.audiocraft_package import AudiocraftPackage
from cadenza.importers.base import CODEBOOK_NAMES, ConfigReader, KeyMap, merge_tied_embedding
from cadenza.system.spec import SystemSpec

PROMPT, MELODY, STYLE = "prompt", "melody", "style"  # ids of the text, 'description' in AudioCraft, and of 'self_wav'
_STEPS = {"align": "steps", "resize": "nearest"}  # added to all steps of the sequence
_SLOTS: dict[str, tuple[str, Mapping[str, str]]] = {
    "cross": ("cross", {}),
    "prepend": ("prepend", {}),
    "sum": ("add", _STEPS),
    "input_interpolate": ("add", _STEPS),
    "ignore": ("ignore", {}),
}
_FEATURES = ("processor_config.json", "preprocessor_config.json")  # of transformers 5, and of earlier versions
_CHROMA = {"type": "chroma", "pad_to": "longest", "null_embedding": "silence"}
_STEMS = "vocals+other"  # stems of which AudioCraft computes the chroma
_MERT = "m-a-p/MERT-v1-95M"
_SCALES = {"none": (512, 8, 0), "xsmall": (256, 8, 4), "default": (512, 8, 8), "large": (1024, 16, 24)}  # hidden, heads, depth
_STYLE_NAMES = {  # parts of our names -> AudioCraft's
    "bottleneck.quantizer.levels.": "rvq.vq.layers.",
    **{f".{ours}": f"._codebook.{theirs}" for ours, theirs in CODEBOOK_NAMES.items()},
    "bottleneck.norm.": "batch_norm.",
    "blocks.": "transformer.layers.",
    "attention.qkv.weight": "self_attn.in_proj_weight",
    "attention.out.": "self_attn.out_proj.",
    ".up.": ".linear1.",
    ".down.": ".linear2.",
    "up.": "embed.",
    "out.": "output_proj.",
}
_T5_NAMES = {
    "encoder.embed_tokens.weight": "t5.shared.weight",
    "out.weight": "output_proj.weight",
    "out.bias": "output_proj.bias",
}
_HUB = ("t5-small", "t5-base", "t5-large", "t5-3b", "t5-11b")  # in the hub under google-t5/
_MISSING = {
    "clap": "the CLAP conditioner",
    "lut": "the embedding table of words",
    "chords_emb": "the chord conditioner",
    "drum_latents": "the drum conditioner",
    "melody": "the melody conditioner (salience matrix)",
}


def convert_fuser(fuser: ConfigReader, names: Mapping[str, str]) -> tuple[dict[str, list[Any]], float]:
    """Return the fusion, and the scale of the sinusoids added to the cross-attended tokens (0 for none).

    `names` maps AudioCraft's conditions, in the order in which it computes them (texts, audio, joint ones), to ids here.
    The last method that names a condition is used, as in AudioCraft. Mistakes are added to `fuser`.
    """
    method: dict[str, str] = {}
    for slot in fuser.unread_keys():
        if slot not in _SLOTS:
            continue
        for name in fuser.get(slot, (list, type(None)), None) or []:
            if name not in names:
                fuser.unsupported(slot, f"names '{name}', which is not a conditioner. Available: {', '.join(names) or 'none'}")
            method[name] = slot
    fusion: dict[str, list[Any]] = {}
    for name, own in names.items():
        if name not in method:
            fuser.unsupported(name, "is a condition without a fusion method; name it in one, such as cross, or in ignore")
            continue
        slot, options = _SLOTS[method[name]]
        fusion.setdefault(slot, []).append({"id": own, **options} if options else own)
    fusion.get("prepend", []).reverse()  # AudioCraft prepends each before the earlier ones
    positions = fuser.get("cross_attention_pos_emb", (bool, type(None)), False)
    scale = fuser.get("cross_attention_pos_emb_scale", (float, int), 1.0)
    fuser.reject_unread()
    return fusion, float(scale) if positions else 0.0


def chroma_spec_from_transformers(folder: Path, *, bins: int, frames: int, width: int, mistakes: list[str]) -> dict[str, Any]:
    """Return the spec of the chroma conditioner from the config of a feature extractor, or from its defaults.

    Its input is not separated into stems.
    """
    path = next((path for name in _FEATURES if (path := folder / name).exists()), None)
    data = {} if path is None else read_json_object(path)
    section = ConfigReader(data.get("feature_extractor", data), source=str(path or folder), mistakes=mistakes)
    section.ignore(["feature_extractor_type", "processor_class", "feature_size", "n_samples", "return_attention_mask"])
    section.ignore(["stem_indices", "auto_map", "tokenizer"])  # stems of a separator
    section.require_value("padding_side", "right")
    section.require_value("padding_value", 0.0)
    section.require_value("num_chroma", bins, None, why="is not the num_chroma of the model")
    spec = {
        **_CHROMA,
        "output_dim": width,
        "sample_rate": section.get("sampling_rate", int, 32000),
        "window": section.get("n_fft", int, 16384),
        "hop": section.get("hop_length", int, 4096),
        "seconds": section.get("chunk_length", (int, float), 30),
        "bins": bins,
        "max_frames": frames,
        "project": "auto",
    }
    section.reject_unread()
    return spec


def chroma_spec_from_audiocraft(chroma: ConfigReader, *, seconds: float, width: int) -> dict[str, Any]:
    """Return the spec of the chroma of a package: cut or repeated to a training segment, no position masked."""
    chroma.ignore(["match_len_on_eval", "eval_wavs", "n_eval_wavs", "cache_path", "device", "duration"])
    for key in ("nfft", "winlen"):
        chroma.require_value(key, None)
    chroma.require_value("norm", torch.inf)
    rate, window = chroma.get("sample_rate", int), 2 ** chroma.get("radix2_exp", int, 12)
    hop = chroma.get("winhop", (int, type(None)), None) or window // 4
    spec = {
        **_CHROMA,
        "output_dim": width,
        "sample_rate": rate,
        "window": window,
        "hop": hop,
        "bins": chroma.get("n_chroma", int, 12),
        "one_hot": chroma.get("argmax", bool, False),
        "max_frames": 1 + max(int(rate * seconds), window) // max(hop, 1),
        "stems": _STEMS,
    }
    chroma.reject_unread()
    return spec


def style_spec_from_audiocraft(style: ConfigReader, *, folder: Path, dim: int, width: int) -> dict[str, Any]:
    """Return the spec of the style conditioner; its MERT is a folder next to the package, or in the hub."""
    style.require_value("model_name", "mert", why="uses a codec of its own, whose weights are not in the package")
    style.ignore(["sample_rate", "encodec_checkpoint", "encodec_n_q", "device"])  # of that codec; MERT takes 24 kHz
    style.ignore(["compute_mask", "num_codebooks_lm", "ds_rate_compression"])  # of the loss
    style.ignore(["q_dropout", "rvq_threshold_ema_dead_code", "use_middle_of_segment"])
    style.require_value("batch_norm", True)
    scale = style.get("transformer_scale", str, "default")
    if scale not in _SCALES:
        style.unsupported("transformer_scale", f"'{scale}' is not a scale. Available: {', '.join(_SCALES)}")
    hidden, heads, depth = _SCALES.get(scale, _SCALES["default"])
    train_range = style.get("varying_lengths", (list, type(None)), (1.5, 4.5))
    spec = {
        "type": "style",
        "model": _locate_encoder(_MERT, folder),
        "dim": dim,
        "output_dim": width,
        "hidden": hidden,
        "heads": heads,
        "depth": depth,
        "levels": style.get("n_q_out", int, 6),
        "eval_q": style.get("eval_q", int, 3),
        "bins": style.get("bins", int, 1024),
        "downsample": style.get("ds_factor", int, 15),
        "seconds": style.get("length", float, 3.0),
        "train_seconds_range": list(train_range) if train_range else None,
        "null_embedding": "zeros",
    }
    style.reject_unread()
    return spec


def convert_conditioners(
    package: AudiocraftPackage, root: ConfigReader, width: int, *, seconds: float
) -> tuple[dict[str, Any], dict[str, Any], float]:
    """Return conditioners, fusion and the scale of cross-attention positions of a package trained on `seconds` segments."""
    parts = root.subsection("conditioners")
    parts.subsection("args", {}).ignore(["merge_text_conditions_p", "drop_desc_p"])
    specs = {}
    for name in parts.unread_keys():
        section = parts.subsection(name)
        kind = section.get("model", str)
        if kind not in ("t5", "chroma_stem", "style"):
            needs = _MISSING.get(kind, f"a conditioner of the type '{kind}'")
            parts.unsupported(name, f"needs {needs}, '{kind}', which is not supported; load a model with text only")
            continue
        block = section.subsection(kind)
        section.reject_unread()
        if kind == "t5":
            specs[name] = _t5_spec(package, name, block, width)
        elif kind == "chroma_stem":
            specs[name] = chroma_spec_from_audiocraft(block, seconds=seconds, width=width)
        else:
            embedding = package.weights.get(f"condition_provider.conditioners.{name}.embed.weight")
            dim = 1 if embedding is None else embedding.shape[-1]
            specs[name] = style_spec_from_audiocraft(block, folder=package.path.parent, dim=dim, width=width)
    specs = dict(sorted(specs.items(), key=lambda item: item[1]["type"] != "t5"))  # AudioCraft orders texts first, too
    fuser = root.subsection("fuser")
    for slot in ("sum", "input_interpolate"):
        if names := [name for name in fuser.data.get(slot) or [] if specs.get(name, {}).get("type") == "t5"]:
            fuser.unsupported(slot, f"adds the text '{names[0]}' to the codes, whose length differs; use cross or prepend")
    names = {name: _ours(name, specs) for name in specs}
    fusion, positions = convert_fuser(fuser, names | {name: name for name in parts.data if name not in (*names, "args")})
    return {names[name]: spec for name, spec in specs.items()}, fusion, positions


def extract_conditioner_weights(
    state: dict[str, Tensor], spec: SystemSpec, expected: Mapping[str, Tensor], *, source: str
) -> dict[str, Tensor]:
    """Remove the conditioners' weights from `state` and return them under our names, as float32 copies."""
    ours: dict[str, Tensor] = {}
    for name, conditioner in spec.conditioners.items():
        kind = conditioner.type  # type: ignore[attr-defined]
        prefixes = [f"condition_provider.conditioners.{key}." for key in (name, "description" if kind == "t5" else "self_wav")]
        prefix = next((prefix for prefix in prefixes if any(key.startswith(prefix) for key in state)), prefixes[-1])
        theirs = {key.removeprefix(prefix): state.pop(key) for key in list(state) if key.startswith(prefix)}
        own = strip_prefix(expected, f"conditioners.{name}.")
        names = KeyMap({key: (_style_name(key) if kind == "style" else _T5_NAMES.get(key, f"t5.{key}"),) for key in own})
        if kind == "style":
            theirs.pop("batch_norm.num_batches_tracked", None)
            converted = names.import_codebooks(theirs, own, source=source)
        else:
            if kind == "chroma":
                _check_stft_window(theirs.pop("chroma.spec.window", None), conditioner, source=source)
            converted = names.import_weights(merge_tied_embedding(theirs, "t5."), own, source=source)
        ours |= {f"conditioners.{name}.{key}": x for key, x in converted.items()}
    return ours


def _check_stft_window(window: Tensor | None, spec: Any, *, source: str) -> None:
    """Raise CheckpointError if a stored window is not the Hann window, which is computed here."""
    hann = torch.hann_window(spec.window)
    if window is not None and not (window.shape == hann.shape and torch.allclose(window.float(), hann, atol=1e-3)):
        raise CheckpointError(f"{source}: chroma.spec.window is not the Hann window of {spec.window} samples; export it again")


def _style_name(name: str) -> str:
    """Return AudioCraft's name of a weight of a style."""
    for ours, theirs in _STYLE_NAMES.items():
        name = name.replace(ours, theirs)
    return name


def _t5_spec(package: AudiocraftPackage, name: str, t5: ConfigReader, width: int) -> dict[str, Any]:
    model = t5.get("name", str)
    t5.ignore(["device", "autocast_dtype", "cache_dir"])
    projection = package.weights.get(f"condition_provider.conditioners.{name}.output_proj.weight")
    if projection is None or projection.ndim != 2:
        raise CheckpointError(
            f"{package.path}: has no projection of its text (condition_provider.conditioners.{name}.output_proj.weight); "
            "it is incomplete or of another model: copy it again"
        )
    spec = {
        "type": "t5",
        "model": _locate_encoder(model, package.path.parent),
        "dim": projection.shape[1],
        "output_dim": width,
        "null_embedding": "zeros",
        "train": t5.get("finetune", bool, False),
        "normalize_text": t5.get("normalize_text", bool, False),
        "word_dropout": t5.get("word_dropout", (float, int), 0.0),
    }
    t5.reject_unread()
    return spec


def _locate_encoder(model: str, folder: Path) -> str:
    """Return the folder of an encoder next to the model, else its name in the hub."""
    for candidate in (folder / model, folder / model.rpartition("/")[2]):
        if (candidate / "config.json").exists():
            return str(candidate)
    return f"google-t5/{model}" if model in _HUB else model


def _ours(name: str, specs: Mapping[str, Any]) -> str:
    """Return the id of a conditioner; its AudioCraft name if another conditioner has that id."""
    wave = {"chroma": MELODY, "style": STYLE}.get(specs[name]["type"], name)
    ours = {"description": PROMPT, "self_wav": wave}.get(name, name)
    return name if ours in specs else ours
