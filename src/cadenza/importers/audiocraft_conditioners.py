"""AudioCraft's `fuser` as our fusion: the same slots by other names, in the order in which it fuses."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cadenza.core.checkpoint import check_state_dict, strip_prefix, to_float32_copy
from cadenza.core.errors import CheckpointError
from cadenza.core.hub import read_json_object
from cadenza.importers.audiocraft_package import AudiocraftPackage
from cadenza.importers.base import ConfigReader
from cadenza.system.spec import SystemSpec

_STEPS = {"align": "steps", "resize": "nearest"}  # added to all steps of the sequence
_SLOTS: dict[str, tuple[str, Mapping[str, str]]] = {
    "cross": ("cross", {}),
    "prepend": ("prepend", {}),
    "sum": ("add", _STEPS),
    "input_interpolate": ("add", _STEPS),
    "ignore": ("ignore", {}),
}


def convert_fuser(fuser: ConfigReader, names: Mapping[str, str]) -> tuple[dict[str, list[Any]], float]:
    """Our fusion, and the scale of the sinusoids that are added to what is attended to (0 for none).

    `names` are the conditions in the order in which AudioCraft computes them (texts, sounds, joint ones), each with
    its id here. As there, a condition that several methods name goes by the last of them. Mistakes are noted in `fuser`.
    """
    method: dict[str, str] = {}
    for slot in fuser.unread_keys():
        if slot not in _SLOTS:
            continue
        for name in fuser.get(slot, (list, type(None)), None) or []:
            if name not in names:
                fuser.unsupported(slot, f"names '{name}', which is no conditioner; there are: {', '.join(names) or 'none'}")
            method[name] = slot
    fusion: dict[str, list[Any]] = {}
    for name, own in names.items():
        if name not in method:
            fuser.unsupported(name, "is a condition that no method fuses; name it in one, such as cross, or in ignore")
            continue
        slot, how = _SLOTS[method[name]]
        fusion.setdefault(slot, []).append({"id": own, **how} if how else own)
    fusion.get("prepend", []).reverse()  # each is put before those that are there already
    positions = fuser.get("cross_attention_pos_emb", (bool, type(None)), False)
    scale = fuser.get("cross_attention_pos_emb_scale", (float, int), 1.0)
    fuser.reject_unread()
    return fusion, float(scale) if positions else 0.0


MELODY = "melody"  # how it is called here; AudioCraft says 'self_wav'
_FEATURES = ("processor_config.json", "preprocessor_config.json")  # of transformers 5, and of those before
_KEPT = "vocals+other"  # stems of which AudioCraft hears the chroma


def chroma_spec_from_transformers(folder: Path, *, bins: int, frames: int, width: int, mistakes: list[str]) -> dict[str, Any]:
    """The chroma of a model, by the config of its feature extractor where there is one, of which the library has defaults.

    What it is given is not separated: that is left to whoever calls it.
    """
    path = next((path for name in _FEATURES if (path := folder / name).exists()), None)
    data = {} if path is None else read_json_object(path)
    section = ConfigReader(data.get("feature_extractor", data), source=str(path or folder), mistakes=mistakes)
    section.ignore(["feature_extractor_type", "processor_class", "feature_size", "n_samples", "return_attention_mask"])
    section.ignore(["stem_indices", "auto_map", "tokenizer"])  # of what a separator gave
    section.require_value("padding_side", "right")
    section.require_value("padding_value", 0.0)
    section.require_value("num_chroma", bins, None, why="is not the num_chroma of the model")
    spec = {
        "type": "chroma",
        "output_dim": width,
        "sample_rate": section.get("sampling_rate", int, 32000),
        "window": section.get("n_fft", int, 16384),
        "hop": section.get("hop_length", int, 4096),
        "seconds": section.get("chunk_length", (int, float), 30),
        "bins": bins,
        "max_frames": frames,
        "pad_to": "longest",
        "null_embedding": "silence",
        "project": "auto",
    }
    section.reject_unread()
    return spec


def chroma_spec_from_audiocraft(chroma: ConfigReader, *, seconds: float, width: int) -> dict[str, Any]:
    """The chroma of a package as its library runs it: cut or repeated to a segment of training, no position masked."""
    chroma.ignore(["match_len_on_eval", "eval_wavs", "n_eval_wavs", "cache_path", "device", "duration"])
    for key in ("nfft", "winlen"):
        chroma.require_value(key, None)
    chroma.require_value("norm", torch.inf)
    rate, window = chroma.get("sample_rate", int), 2 ** chroma.get("radix2_exp", int, 12)
    hop = chroma.get("winhop", (int, type(None)), None) or window // 4
    spec = {
        "type": "chroma",
        "output_dim": width,
        "sample_rate": rate,
        "window": window,
        "hop": hop,
        "bins": chroma.get("n_chroma", int, 12),
        "one_hot": chroma.get("argmax", bool, False),
        "max_frames": 1 + max(int(rate * seconds), window) // max(hop, 1),
        "pad_to": "longest",
        "null_embedding": "silence",
        "stems": _KEPT,
    }
    chroma.reject_unread()
    return spec


def feature_extractor_config(spec: Any) -> dict[str, Any]:
    """The config of transformers' feature extractor for a chroma."""
    return {
        "feature_extractor_type": "MusicgenMelodyFeatureExtractor",
        "feature_size": spec.bins,
        "num_chroma": spec.bins,
        "sampling_rate": spec.sample_rate,
        "n_fft": spec.window,
        "hop_length": spec.hop,
        "chunk_length": _seconds(spec),
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": False,
        "stem_indices": [3, 2],
    }


def unsupported_settings(spec: Any) -> list[str]:
    """What of a chroma has no place in transformers."""
    lacks = {
        "max_frames: must be given, as there sounds are cut or repeated": spec.max_frames is None,
        f"pad_mode: '{spec.pad_mode}'; there short sounds are repeated": spec.pad_mode != "repeat",
        "one_hot: there only the strongest pitch class counts": not spec.one_hot,
        f"null_embedding: '{spec.null_embedding}'; there no melody is silence": spec.null_embedding != "silence",
        "project: there is no projection where there are as many pitch classes as the model is wide": spec.bins
        == spec.output_dim
        and spec.project == "always",
    }
    return [what for what, so in lacks.items() if so]


def export_warnings(spec: Any) -> list[str]:
    """What there is to say of a chroma in transformers."""
    notes = []
    if spec.stems is not None:
        notes.append(
            f"note: transformers separates nothing; to hear {'+'.join(spec.stems)}, give its processor what Demucs made"
        )
    if spec.seconds != _seconds(spec):
        notes.append(f"note: a melody is cut to {_seconds(spec)} s there before it is heard")
    if spec.pad_to == "own":
        notes.append("note: in a batch a melody ends in silence there, to be as long as the longest; single ones agree")
    return notes


def _seconds(spec: Any) -> int:
    """Whole seconds to which sounds are cut: enough for all frames where none are said."""
    seconds = spec.max_frames * spec.hop / spec.sample_rate - 1 if spec.seconds is None else spec.seconds
    return max(1, math.ceil(seconds))


def drop_stft_window(held: dict[str, Tensor], spec: Any, *, source: str) -> dict[str, Tensor]:
    """The weights without the window of the spectrum, which must be the one that is computed."""
    held = dict(held)
    window = held.pop("chroma.spec.window", None)
    if window is not None and not (
        window.shape == (spec.window,) and torch.allclose(window.float(), torch.hann_window(spec.window), atol=1e-3)
    ):
        raise CheckpointError(f"{source}: chroma.spec.window is not the Hann window of {spec.window} samples; export it again")
    return held


STYLE = "style"  # how it is called here; there it is 'self_wav'
_MERT = "m-a-p/MERT-v1-95M"
_SCALES = {"none": (512, 8, 0), "xsmall": (256, 8, 4), "default": (512, 8, 8), "large": (1024, 16, 24)}  # hidden, heads, depth
_NAMES = (  # AudioCraft's -> ours
    (re.compile(r"embed\.(weight|bias)"), r"up.\1"),
    (re.compile(r"output_proj\.(weight|bias)"), r"out.\1"),
    (re.compile(r"transformer\.layers\.(\d+)\.self_attn\.in_proj_weight"), r"blocks.\1.attention.qkv.weight"),
    (re.compile(r"transformer\.layers\.(\d+)\.self_attn\.out_proj\.weight"), r"blocks.\1.attention.out.weight"),
    (re.compile(r"transformer\.layers\.(\d+)\.linear1\.weight"), r"blocks.\1.up.weight"),
    (re.compile(r"transformer\.layers\.(\d+)\.linear2\.weight"), r"blocks.\1.down.weight"),
    (re.compile(r"transformer\.layers\.(\d+)\.norm([12])\.(weight|bias)"), r"blocks.\1.norm\2.\3"),
    (re.compile(r"batch_norm\.(running_mean|running_var)"), r"bottleneck.norm.\1"),
    (re.compile(r"rvq\.vq\.layers\.(\d+)\._codebook\.embed"), r"bottleneck.quantizer.levels.\1.embed"),
    (re.compile(r"rvq\.vq\.layers\.(\d+)\._codebook\.cluster_size"), r"bottleneck.quantizer.levels.\1.usage"),
    (re.compile(r"rvq\.vq\.layers\.(\d+)\._codebook\.embed_avg"), r"bottleneck.quantizer.levels.\1.total"),
)


def style_spec_from_audiocraft(style: ConfigReader, *, folder: Path, dim: int, width: int) -> dict[str, Any]:
    """The style of a package; what it listens with is a folder beside the package, or named in the hub."""
    style.require_value("model_name", "mert", why="is heard with a codec of its own, whose weights are not in the package")
    style.ignore(["sample_rate", "encodec_checkpoint", "encodec_n_q", "device"])  # of that codec; MERT hears 24 kHz
    style.ignore(["compute_mask", "num_codebooks_lm", "ds_rate_compression"])  # of the loss
    style.ignore(["q_dropout", "rvq_threshold_ema_dead_code", "use_middle_of_segment"])
    style.require_value("batch_norm", True)
    scale = style.get("transformer_scale", str, "default")
    if scale not in _SCALES:
        style.unsupported("transformer_scale", f"'{scale}' is not known; it is one of {', '.join(_SCALES)}")
    hidden, heads, depth = _SCALES.get(scale, _SCALES["default"])
    beside = folder / _MERT.rpartition("/")[2]
    lasting = style.get("varying_lengths", (list, type(None)), (1.5, 4.5))
    spec = {
        "type": "style",
        "model": str(beside) if (beside / "config.json").exists() else _MERT,
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
        "train_seconds_range": list(lasting) if lasting else None,
        "null_embedding": "zeros",
    }
    style.reject_unread()
    return spec


def convert_style_weights(held: dict[str, Tensor], *, source: str) -> dict[str, Tensor]:
    """A style's weights by our names, the averages of its codebooks as shares; unknown ones keep their names."""
    ours: dict[str, Tensor] = {}
    for name, x in held.items():
        if name.endswith("._codebook.inited"):
            if not bool(x):
                raise CheckpointError(f"{source}: {name} is 0, so its codebook was never fitted; take a trained checkpoint")
        elif name != "batch_norm.num_batches_tracked":
            new = next((pattern.sub(to, name) for pattern, to in _NAMES if pattern.fullmatch(name)), name)
            ours[new] = x.float()
    for name in [name for name in ours if name.endswith(".usage")]:
        total = name.removesuffix("usage") + "total"
        seen = ours[name].sum().clamp(min=1e-12)
        ours[name] = ours[name] / seen
        if total in ours:
            ours[total] = ours[total] / seen
    return ours


PROMPT = "prompt"  # how a text is called here; there it is 'description'
_HUB = ("t5-small", "t5-base", "t5-large", "t5-3b", "t5-11b")  # these are in the hub under google-t5/
_MISSING = {
    "clap": "the CLAP conditioner",
    "lut": "the look-up table of words",
    "chords_emb": "the chord conditioner",
    "drum_latents": "the drum conditioner",
    "melody": "the melody conditioner (salience matrix)",
}


def convert_conditioners(
    held: AudiocraftPackage, whole: ConfigReader, width: int, *, seconds: float
) -> tuple[dict[str, Any], dict[str, Any], float]:
    """The conditioners and the fusion of a package trained on segments of `seconds`, and the scale of positions in `cross`."""
    parts = whole.subsection("conditioners")
    parts.subsection("args", {}).ignore(["merge_text_conditions_p", "drop_desc_p"])
    specs = {}
    for name in parts.unread_keys():
        section = parts.subsection(name)
        kind = section.get("model", str)
        if kind == "t5":
            specs[name] = _t5(held, name, section, width)
        elif kind == "chroma_stem":
            block = section.subsection(kind)
            section.reject_unread()
            specs[name] = chroma_spec_from_audiocraft(block, seconds=seconds, width=width)
        elif kind == "style":
            block = section.subsection(kind)
            section.reject_unread()
            heard = held.weights.get(f"condition_provider.conditioners.{name}.embed.weight")
            dim = 1 if heard is None else heard.shape[-1]
            specs[name] = style_spec_from_audiocraft(block, folder=held.path.parent, dim=dim, width=width)
        else:
            needs = _MISSING.get(kind, f"a conditioner of the type '{kind}'")
            parts.unsupported(
                name, f"needs {needs}, '{kind}', which this release does not have yet; load a model that only reads text"
            )
    specs = dict(sorted(specs.items(), key=lambda item: item[1]["type"] != "t5"))  # there too texts come first
    fuser = whole.subsection("fuser")
    for slot in ("sum", "input_interpolate"):
        if names := [name for name in fuser.data.get(slot) or [] if specs.get(name, {}).get("type") == "t5"]:
            fuser.unsupported(
                slot, f"adds the text '{names[0]}' to the codes, which has not their length; use cross or prepend"
            )
    names = {name: _ours(name, specs) for name in specs}
    fusion, positions = convert_fuser(fuser, names | {name: name for name in parts.data if name not in (*names, "args")})
    return {names[name]: spec for name, spec in specs.items()}, fusion, positions


def convert_conditioner_weights(
    state: dict[str, Tensor], spec: SystemSpec, wanted: Mapping[str, Tensor], *, source: str
) -> dict[str, Tensor]:
    """Takes the conditioners' weights out of a package's, and gives them by our names."""
    ours: dict[str, Tensor] = {}
    for name, conditioner in spec.conditioners.items():
        stem = _stem(name, conditioner, state)
        held = {key.removeprefix(stem): state.pop(key) for key in list(state) if key.startswith(stem)}
        own = strip_prefix(wanted, f"conditioners.{name}.")
        kind = conditioner.type  # type: ignore[attr-defined]
        if kind == "style":
            found = convert_style_weights(held, source=source)
            check_state_dict(found, {key: x.shape for key, x in own.items()}, source=f"{source}, {stem} by our names")
        else:
            held = drop_stft_window(held, conditioner, source=source) if kind == "chroma" else _one_table(held)
            names = {_theirs(key): key for key in own}
            check_state_dict(held, {there: own[key].shape for there, key in names.items()}, source=source)
            found = {names[there]: x for there, x in held.items()}
        ours |= {f"conditioners.{name}.{key}": x for key, x in to_float32_copy(found).items()}
    return ours


def _theirs(name: str) -> str:
    """What a weight of a T5 or of a melody is called in a package."""
    known = {
        "encoder.embed_tokens.weight": "t5.shared.weight",
        "out.weight": "output_proj.weight",
        "out.bias": "output_proj.bias",
    }
    return known.get(name, f"t5.{name}")


def _one_table(held: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights of a T5 that has its embedding under one name."""
    return {key: x for key, x in held.items() if key != "t5.encoder.embed_tokens.weight" or "t5.shared.weight" not in held}


def _t5(held: AudiocraftPackage, name: str, section: ConfigReader, width: int) -> dict[str, Any]:
    t5 = section.subsection("t5")
    section.reject_unread()
    model = t5.get("name", str)
    t5.ignore(["device", "autocast_dtype", "cache_dir"])
    projection = held.weights.get(f"condition_provider.conditioners.{name}.output_proj.weight")
    if projection is None or projection.ndim != 2:
        raise CheckpointError(
            f"{held.path}: has no projection of its text (condition_provider.conditioners.{name}.output_proj.weight); "
            "it is cut short or of another model: copy it again"
        )
    spec = {
        "type": "t5",
        "model": _named(model, held.path.parent),
        "dim": projection.shape[1],
        "output_dim": width,
        "null_embedding": "zeros",
        "train": t5.get("finetune", bool, False),
        "normalize_text": t5.get("normalize_text", bool, False),
        "word_dropout": t5.get("word_dropout", (float, int), 0.0),
    }
    t5.reject_unread()
    return spec


def _named(model: str, folder: Path) -> str:
    """A T5 beside the model or at its path if there is one, else its name in the hub."""
    for place in (folder / model, folder / model.rpartition("/")[2]):
        if (place / "config.json").exists():
            return str(place)
    return f"google-t5/{model}" if model in _HUB else model


def _ours(name: str, specs: Mapping[str, Any]) -> str:
    """What a conditioner is called here; another that has that name already keeps it."""
    wave = {"chroma": MELODY, "style": STYLE}.get(specs[name]["type"], name)
    ours = {"description": PROMPT, "self_wav": wave}.get(name, name)
    return name if ours in specs else ours


def _stem(name: str, conditioner: Any, state: Mapping[str, Tensor]) -> str:
    """How the weights of a conditioner of ours begin in a package."""
    theirs = {"t5": "description"}.get(conditioner.type, "self_wav")
    own, other = (f"condition_provider.conditioners.{there}." for there in (name, theirs))
    return own if any(key.startswith(own) for key in state) else other
