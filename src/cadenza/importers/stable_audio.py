"""Configs of stable-audio-tools: the pretransform as a codec, and the conditioning as conditioners and fusion."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from cadenza.conditioners.base import ConditionerSpec
from cadenza.core.errors import SpecError
from cadenza.core.hub import read_json_object
from cadenza.core.spec import did_you_mean
from cadenza.dsp.audio import Audio
from cadenza.importers.base import ConfigReader
from cadenza.system.spec import FusionSpec

_OWNERS = {"t5-": "google-t5/", "flan-t5-": "google/", "t5-v1_1-": "google/"}
_ROUTES = {
    "cross_attention_cond_ids": "cross",
    "global_cond_ids": "global",
    "input_concat_ids": "concat",
    "prepend_cond_ids": "prepend",
}
_UNGUIDED: dict[str, dict[str, Any]] = {  # also used in the unconditional half of guidance
    "global": {"guided": False},
    "concat": {"guided": False, "resize": "nearest"},
}
_RESERVED = ("inpaint_mask", "inpaint_masked_input")  # ids that the diffusion model sets
_LATER = {
    "causal_lm": "a causal language model as a text encoder",
    "sat_clap_text": "the CLAP of stable-audio-tools",
    "sat_clap_audio": "the CLAP of stable-audio-tools",
}


@dataclass(frozen=True)
class ExternalCheckpoint:
    """File of weights that a config names, and the settings of the model in it."""

    path: str
    audio_model_type: str | None = None
    enable_fusion: bool | None = None


@dataclass(frozen=True)
class ImportContext:
    """Settings of a config that all of its conditioners share."""

    folder: Path | None  # of encoders
    pretransform: ConfigReader | None  # of the model
    sample_rate: int | None  # of the model
    converted: Mapping[str, str | Path]  # weight file of the config -> converted folder

    def model(self, name: str) -> str:
        """Return the folder of an encoder if it exists, else its name in the hub."""
        if self.folder is not None and (self.folder / name).is_dir():
            return str(self.folder / name)
        owner = next((owner for start, owner in _OWNERS.items() if name.startswith(start)), "")
        return owner + name


Converted = tuple[dict[str, Any], ExternalCheckpoint | None]


@dataclass(frozen=True)
class ConditioningConfig:
    """Conditioning of a config; `fusion` is None if the config does not route its conditions."""

    conditioners: dict[str, ConditionerSpec]
    fusion: FusionSpec | None
    checkpoints: dict[str, ExternalCheckpoint]  # weight files other than the model's, by id

    def item(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """Return metadata as an item: a list of one value becomes the value, an audio tensor [c t] becomes Audio."""
        ids = {*self.conditioners, *(spec.fallback for spec in self.conditioners.values())}
        return {name: self._value(name, value) for name, value in metadata.items() if name in ids}

    def _value(self, name: str, value: Any) -> Any:
        value = value[0] if isinstance(value, list | tuple) and len(value) == 1 else value
        spec = self.conditioners.get(name)
        if getattr(spec, "input_kind", None) != "audio":
            return value
        rate = spec.codec.sample_rate  # type: ignore[union-attr]  # of an audio conditioner
        if isinstance(value, Mapping):
            return {source: _to_audio(signal, rate) for source, signal in value.items()}
        return _to_audio(value, rate)


def load_conditioning(
    config: Mapping[str, Any] | str | Path, *, folder: Path | None = None, converted: Mapping[str, str | Path] | None = None
) -> ConditioningConfig:
    """Return the conditioning of a model's config: the path of a JSON file, its content, or its `conditioning`.

    Encoders are folders in `folder` (default: that of the file), else names in the hub. `converted` maps CLAP checkpoints
    that the config names to folders converted from them (`examples/convert_laion_clap.py`). Raise CheckpointError with
    every unsupported setting.
    """
    if not isinstance(config, Mapping):
        path = Path(config)
        config, folder = read_json_object(path), folder or path.parent
    model, prefix = config, ""
    if "conditioning" not in model and "configs" not in model:
        model, prefix = config.get("model", {}), "model."
    block = model if "configs" in model else model.get("conditioning")
    section = ConfigReader(block, source=f"{prefix}conditioning")
    codec = ConfigReader(model["pretransform"], source=f"{prefix}pretransform") if "pretransform" in model else None
    conditioning = _conditioning(
        section, ImportContext(folder, codec, config.get("sample_rate"), converted or {}), model.get("diffusion"), prefix
    )
    section.raise_errors()
    return conditioning


def _conditioning(section: ConfigReader, context: ImportContext, diffusion: Any, prefix: str) -> ConditioningConfig:
    width = section.get("cond_dim", int)
    fallbacks = section.get("default_keys", dict, {})
    encoded = section.get("pre_encoded_keys", list, [])
    specs: dict[str, ConditionerSpec] = {}
    checkpoints: dict[str, ExternalCheckpoint] = {}
    names: list[str] = []
    for i, entry in enumerate(section.get("configs", list)):
        inner = ConfigReader(entry, source=f"{section.source}.configs[{i}]", mistakes=section.mistakes)
        name, kind, settings = inner.get("id", str), inner.get("type", str), inner.subsection("config")
        inner.reject_unread()
        names.append(name)
        before = len(section.mistakes)
        if names.count(name) > 1:
            inner.unsupported("id", f"'{name}' is the id of another conditioner too; rename one")
        elif kind not in TYPES:
            problem = f"needs {_LATER[kind]}, which is not supported" if kind in _LATER else "is not a type"
            inner.unsupported("type", f"'{kind}' {problem}.{did_you_mean(kind, list(TYPES))}")
        else:
            shared = {"output_dim": settings.get("output_dim", int, width), "null_embedding": "zeros"}
            shared |= {"fallback": fallbacks[name]} if name in fallbacks else {}
            spec, checkpoint = TYPES[kind](settings, context)
            settings.reject_unread()
            spec = shared | (_encoded_spec(spec) if name in encoded else spec)
            if checkpoint is not None and name not in encoded:
                checkpoints[name] = checkpoint
            if len(section.mistakes) > before:  # placeholders of wrong settings may be invalid
                continue
            try:
                specs[name] = ConditionerSpec.parse(spec, source=settings.source)
            except SpecError as error:
                section.mistakes.append(str(error))
    for key, ids in (("default_keys", fallbacks), ("pre_encoded_keys", encoded)):
        for name in ids:
            if name not in names:
                section.unsupported(f"{key}.{name}", f"is not the id of a conditioner.{did_you_mean(name, names)}")
    section.reject_unread()
    routes = None if diffusion is None else ConfigReader(diffusion, source=f"{prefix}diffusion", mistakes=section.mistakes)
    return ConditioningConfig(specs, None if routes is None else _fusion(routes, names), checkpoints)


def convert_pretransform(section: ConfigReader, sample_rate: int) -> dict[str, Any]:
    """Return the codec spec of a `pretransform`; mistakes are noted in the section."""
    kind = section.get("type", str, "autoencoder")
    if kind != "autoencoder":
        section.unsupported("type", f"'{kind}' is not a supported pretransform. Available: autoencoder")
        return {}
    scale = section.get("scale", (float, int), 1.0)
    section.ignore(["enable_grad", "model_half", "iterate_batch", "chunked", "gradient_checkpointing"])
    whole = section.subsection("config")
    section.reject_unread()
    encoder, down = _network(whole.subsection("encoder"), "in_channels")
    decoder, up = _network(whole.subsection("decoder"), "out_channels")
    latent = whole.get("latent_dim", int)
    hop = math.prod(stride for stride in encoder["strides"] if isinstance(stride, int))
    whole.require_value("downsampling_ratio", hop, why="is not the product of the encoder's strides")
    channels = whole.get("io_channels", int)
    for key in ("in_channels", "out_channels"):
        whole.require_value(key, channels, None, why="differs from io_channels")
    down.require_value("in_channels", channels, why="differs from io_channels")
    up.require_value("out_channels", channels, why="differs from io_channels")
    up.require_value("latent_dim", latent, why="differs from that of the autoencoder")
    bottleneck = "none"
    if whole.data.get("bottleneck") is not None:
        inner = whole.subsection("bottleneck")
        bottleneck = inner.get("type", str)
        inner.ignore(["requires_grad", "config"])
        inner.reject_unread()
        if bottleneck != "vae":
            inner.unsupported("type", f"'{bottleneck}' is not a supported bottleneck. Available: vae, or none")
    else:
        whole.ignore(["bottleneck"])
    down.require_value("latent_dim", latent * (2 if bottleneck == "vae" else 1), why="does not suit the bottleneck")
    whole.require_value("pretransform", None)
    whole.reject_unread()
    spec = {"type": "oobleck_vae", "sample_rate": sample_rate, "channels": channels, "latent": latent, "scale": float(scale)}
    spec |= {"bottleneck": bottleneck, "tanh": up.get("final_tanh", bool, True), "encoder": encoder}
    spec |= {"upsample": "nearest" if up.get("use_nearest_upsample", bool, False) else "transposed"}
    for side in (down, up):
        side.reject_unread()
    return spec | ({} if decoder == encoder else {"decoder": decoder})


def _network(section: ConfigReader, channels: str) -> tuple[dict[str, Any], ConfigReader]:
    """Return the stages of an encoder or decoder, and the section of its other settings."""
    kind = section.get("type", str)
    section.ignore(["requires_grad"])
    section.require_value("soft_clip", False, why="is not offered")
    if kind != "oobleck":
        section.unsupported("type", f"'{kind}' is not a supported autoencoder. Available: oobleck")
    inner = section.subsection("config")
    section.reject_unread()
    inner.require_value("antialias_activation", False, why="is not offered")
    stages = {
        "strides": inner.get("strides", list, [2, 4, 8, 8]),
        "filters": inner.get("channels", int, 128),
        "multiples": inner.get("c_mults", list, [1, 2, 4, 8]),
        "snake": inner.get("use_snake", bool, False),
    }
    for key in (channels, "latent_dim"):
        inner.get(key, int)
    return stages, inner


def _text(settings: ConfigReader, context: ImportContext, *, key: str, default: str) -> Converted:
    settings.require_value("padding_mode", "zero", why="is not a supported padding")
    model, length = context.model(settings.get(key, str, default)), settings.get("max_length", int, 128)
    spec = {"type": "t5", "model": model, "max_length": length, "pad_to": "max_length", "empty_text": "encode"}
    return spec | {"train": settings.get("enable_grad", bool, False), "project": _project(settings)}, None


def _clap(settings: ConfigReader, context: ImportContext, *, modalities: str) -> Converted:
    """Return the spec, whose model is the folder converted from the checkpoint or else its path, and the checkpoint."""
    path, tower = settings.get("clap_ckpt_path", str), settings.get("audio_model_type", str, "HTSAT-base")
    checkpoint = ExternalCheckpoint(path, tower, settings.get("enable_fusion", bool, True))
    spec = {"type": "clap", "model": str(context.converted.get(path, path)), "modalities": modalities}
    spec |= {"project": _project(settings), "train": settings.get("finetune", bool, False)}
    if modalities == "text":
        features, layer = settings.get("use_text_features", bool, False), settings.get("feature_layer_ix", int, -1)
        spec |= {"empty_text": "encode"} | ({"layer": layer, "pad_to": "max_length"} if features else {})
    return spec, checkpoint


def _phoneme(settings: ConfigReader, context: ImportContext) -> Converted:
    spec = {"type": "phoneme", "vocabulary": "g2p_en", "positions": False, "max_length": settings.get("max_length", int, 1024)}
    return spec | {"project": _project(settings) == "always"}, None


def _int(settings: ConfigReader, context: ImportContext) -> Converted:
    return {"type": "int", "min": settings.get("min_val", int, 0), "max": settings.get("max_val", int, 512)}, None


def _number(settings: ConfigReader, context: ImportContext) -> Converted:
    settings.require_value("fourier_features_type", "learned", why="are not supported features")
    low, high = settings.get("min_val", (float, int), 0), settings.get("max_val", (float, int), 1)
    return {"type": "number", "min": low, "max": high, "bands": 128, "frequencies": "learned"}, None


def _list(settings: ConfigReader, context: ImportContext) -> Converted:
    return {"type": "category", "values": settings.get("options", list), "exact": True, "unknown": "learned"}, None


def _lut(settings: ConfigReader, context: ImportContext) -> Converted:
    tokenizer = {"type": "vocab", "model": context.model(settings.get("tokenizer_name", str))}
    tokenizer |= {"special_tokens": settings.get("special_tokens", list, [])}
    length, positions = settings.get("max_length", int, 1024), settings.get("use_abs_pos_emb", bool, False)
    spec = {"type": "lut", "tokenizer": tokenizer, "max_length": length, "pad_to": "max_length", "positions": positions}
    return spec | {"empty_text": "encode", "project": _project(settings)}, None


def _pretransform(settings: ConfigReader, context: ImportContext) -> Converted:
    codec, checkpoint = _codec(settings, context)
    return {"type": "waveform", "codec": codec, "project": "auto"}, checkpoint


def _source_mix(settings: ConfigReader, context: ImportContext) -> Converted:
    codec, checkpoint = _codec(settings, context)
    spec = {"type": "source_mix", "codec": codec, "sources": settings.get("source_keys", list, [])}
    settings.ignore(["source_length"])  # length of the learned null, which ours follows the clip
    return spec | {
        "input_kind": "frames" if settings.get("pre_encoded", bool, False) else "audio",
        "null_embedding": "learned" if settings.get("allow_null_source", bool, False) else "zeros",
    }, checkpoint


def _codec(settings: ConfigReader, context: ImportContext) -> tuple[dict[str, Any], ExternalCheckpoint | None]:
    """Return the codec of an audio conditioner: its own, or that of the model."""
    rate = settings.get("sample_rate", int)
    settings.ignore(["save_pretransform"])  # visible in the weights
    path = settings.get("pretransform_ckpt_path", str, None)
    if not settings.get("use_model_pretransform", bool, False):
        checkpoint = ExternalCheckpoint(path) if path else None
        return convert_pretransform(settings.subsection("pretransform_config"), rate), checkpoint
    settings.ignore(["pretransform_config"])
    if context.pretransform is None:
        problem = "needs the pretransform of the model, which is missing; give the config of the whole model"
        settings.unsupported("use_model_pretransform", problem)
        return {}, None
    if context.sample_rate not in (None, rate):
        problem = f"{rate} is not the sample rate of the model, {context.sample_rate}, whose pretransform it uses"
        settings.unsupported("sample_rate", problem)
    theirs = ConfigReader(context.pretransform.data, source=context.pretransform.source, mistakes=settings.mistakes)
    return convert_pretransform(theirs, rate), None


def _project(settings: ConfigReader) -> str:
    return "always" if settings.get("project_out", bool, False) else "auto"


TYPES: dict[str, Callable[[ConfigReader, ImportContext], Converted]] = {
    "t5": partial(_text, key="t5_model_name", default="t5-base"),
    "t5gemma": partial(_text, key="model_name", default="google/t5gemma-b-b-ul2"),
    "clap_text": partial(_clap, modalities="text"),
    "clap_audio": partial(_clap, modalities="audio"),
    "int": _int,
    "number": _number,
    "list": _list,
    "phoneme": _phoneme,
    "lut": _lut,
    "pretransform": _pretransform,
    "source_mix": _source_mix,
}


def _encoded_spec(spec: dict[str, Any]) -> dict[str, Any]:
    """Return the spec of encoded values in place of a conditioner's: audio [d, f], others [n, d]."""
    audio, vectors = ("waveform", "source_mix"), ("int", "number", "category")
    kind = "frames" if spec["type"] in audio else "vector" if spec["type"] in vectors else "tokens"
    if spec["type"] == "clap" and spec.get("layer") is None:
        kind = "vector"
    return {"type": "encoded", "kind": kind, "along": "columns" if kind == "frames" else "rows", "project": "auto"}


def _fusion(section: ConfigReader, names: list[str]) -> FusionSpec:
    """Return the fusion of `diffusion`; ids that it does not name are ignored."""
    slots: dict[str, Any] = {}
    for key, slot in _ROUTES.items():
        ids = section.get(key, list, [])
        for name in ids:
            if name not in names and not (slot == "concat" and name in _RESERVED):
                hint = did_you_mean(str(name), names)
                section.unsupported(key, f"names '{name}', which is not the id of a conditioner.{hint}")
        slots[slot] = [{"id": name, **_UNGUIDED.get(slot, {})} for name in ids if name in names]
    used = {name for key in _ROUTES for name in section.data.get(key, []) or []}
    return FusionSpec.parse({**slots, "ignore": [name for name in names if name not in used]}, source=section.source)


def _to_audio(value: Any, rate: int) -> Any:
    return Audio(value[None], rate) if isinstance(value, Tensor) else value
