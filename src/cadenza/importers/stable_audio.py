"""A pretransform of stable-audio-tools as a codec: what its JSON says, and the names of its weights."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from cadenza.conditioners.base import ConditionerSpec
from cadenza.core.checkpoint import check_state_dict, to_float32_copy
from cadenza.core.errors import SpecError
from cadenza.core.hub import read_json_object
from cadenza.core.spec import did_you_mean
from cadenza.dsp.audio import Audio
from cadenza.importers.base import ConfigReader
from cadenza.system.spec import FusionSpec

_ENDS = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}


def convert_pretransform(section: ConfigReader, sample_rate: int) -> dict[str, Any]:
    """The codec that a `pretransform` describes; what cannot be honoured is noted in the section."""
    kind = section.get("type", str, "autoencoder")
    if kind != "autoencoder":
        section.unsupported("type", f"'{kind}' is a pretransform that this release does not have; there is: autoencoder")
        return {}
    scale = section.get("scale", (float, int), 1.0)
    section.ignore(["enable_grad", "model_half", "iterate_batch", "chunked", "gradient_checkpointing"])
    whole = section.subsection("config")
    section.reject_unread()
    encoder, down = _network(whole.subsection("encoder"), "in_channels")
    decoder, up = _network(whole.subsection("decoder"), "out_channels")
    latent = whole.get("latent_dim", int)
    whole.require_value("downsampling_ratio", _product(encoder["strides"]), why="is not the product of the encoder's strides")
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
            inner.unsupported("type", f"'{bottleneck}' is a bottleneck that this release does not have; there is: vae, or none")
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


def convert_pretransform_weights(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], *, source: str
) -> dict[str, Tensor]:
    """Weights of a pretransform by the names of our codec, of which `wanted` has the shapes."""
    names = {_theirs(name): name for name in wanted}
    check_state_dict(state, {there: wanted[here].shape for there, here in names.items()}, source=source)
    return {names[there]: x for there, x in to_float32_copy(state).items()}


def _network(section: ConfigReader, channels: str) -> tuple[dict[str, Any], ConfigReader]:
    """The stages of an encoder or decoder, and the section of its other settings."""
    kind = section.get("type", str)
    section.ignore(["requires_grad"])
    section.require_value("soft_clip", False, why="is not offered")
    if kind != "oobleck":
        section.unsupported("type", f"'{kind}' is an autoencoder that this release does not have; there is: oobleck")
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


def _theirs(name: str) -> str:
    """`encoder.1.0.3.bias` is `model.encoder.layers.1.layers.0.layers.3.bias`."""
    side, rest = name.split(".", 1)
    rest = rest if rest.startswith("layers.") else re.sub(r"(\d+)\.", r"layers.\1.", rest)
    rest = (
        re.sub(r"^(layers\.\d+\.layers\.1\.)layers\.", r"\1", rest) if side == "decoder" else rest
    )  # of a repeating upsampler
    for there, here in _ENDS.items():
        rest = rest.removesuffix(here) + there if rest.endswith(here) else rest
    return f"model.{'encoder' if side == 'encoder' else 'decoder'}.{rest}"


def _product(strides: list[int]) -> int:
    product = 1
    for stride in strides:
        product *= stride if isinstance(stride, int) else 1
    return product


_OWNERS = {"t5-": "google-t5/", "flan-t5-": "google/", "t5-v1_1-": "google/"}


@dataclass(frozen=True)
class ExternalCheckpoint:
    """A file of weights that a config names, and what the config says of the model in it."""

    path: str
    audio_model_type: str | None = None
    enable_fusion: bool | None = None


@dataclass(frozen=True)
class ImportContext:
    """What settings of one conditioner rest on."""

    folder: Path | None  # where encoders may lie
    pretransform: ConfigReader | None  # that of the model
    sample_rate: int | None  # that of the model
    converted: Mapping[str, str | Path]  # files of weights that a config names -> folders that were made of them
    width: int = 1

    def of(self, width: int) -> "ImportContext":
        return replace(self, width=width)

    def model(self, name: str) -> str:
        """An encoder by the path of its folder if there is one, else its name in the hub."""
        if self.folder is not None and (self.folder / name).is_dir():
            return str(self.folder / name)
        owner = next((owner for start, owner in _OWNERS.items() if name.startswith(start)), "")
        return owner + name


Made = tuple[dict[str, Any], ExternalCheckpoint | None]


def _t5(settings: ConfigReader, context: ImportContext) -> Made:
    model = context.model(settings.get("t5_model_name", str, "t5-base"))
    return _text_encoder(model, settings), None


def _t5gemma(settings: ConfigReader, context: ImportContext) -> Made:
    return _text_encoder(context.model(settings.get("model_name", str, "google/t5gemma-b-b-ul2")), settings), None


def _text_encoder(model: str, settings: ConfigReader) -> dict[str, Any]:
    settings.require_value("padding_mode", "zero", why="is another way to pad than this release has")
    length = settings.get("max_length", int, 128)
    return {
        **{"type": "t5", "model": model, "max_length": length, "pad_to": "max_length", "empty_text": "encode"},
        **{"train": settings.get("enable_grad", bool, False), "project": _project(settings)},
    }


def _clap_text(settings: ConfigReader, context: ImportContext) -> Made:
    checkpoint, model = _clap(settings, context)
    features, layer = settings.get("use_text_features", bool, False), settings.get("feature_layer_ix", int, -1)
    spec = {"type": "clap", "model": model, "modalities": "text", "empty_text": "encode", "project": _project(settings)}
    spec |= {"layer": layer, "pad_to": "max_length"} if features else {}
    return spec | {"train": settings.get("finetune", bool, False)}, checkpoint


def _clap_audio(settings: ConfigReader, context: ImportContext) -> Made:
    checkpoint, model = _clap(settings, context)
    spec = {"type": "clap", "model": model, "modalities": "audio", "project": _project(settings)}
    return spec | {"train": settings.get("finetune", bool, False)}, checkpoint


def _clap(settings: ConfigReader, context: ImportContext) -> tuple[ExternalCheckpoint, str]:
    """The file of the towers, and the folder that was made of it, or the same again where there is none yet."""
    path, tower = settings.get("clap_ckpt_path", str), settings.get("audio_model_type", str, "HTSAT-base")
    return ExternalCheckpoint(path, tower, settings.get("enable_fusion", bool, True)), str(context.converted.get(path, path))


def _phoneme(settings: ConfigReader, context: ImportContext) -> Made:
    spec = {"type": "phoneme", "vocabulary": "g2p_en", "positions": False, "max_length": settings.get("max_length", int, 1024)}
    return spec | {"project": _project(settings) == "always"}, None


def _int(settings: ConfigReader, context: ImportContext) -> Made:
    return {"type": "int", "min": settings.get("min_val", int, 0), "max": settings.get("max_val", int, 512)}, None


def _number(settings: ConfigReader, context: ImportContext) -> Made:
    settings.require_value("fourier_features_type", "learned", why="are features that this release does not have")
    low, high = settings.get("min_val", (float, int), 0), settings.get("max_val", (float, int), 1)
    return {"type": "number", "min": low, "max": high, "bands": 128, "frequencies": "learned"}, None


def _list(settings: ConfigReader, context: ImportContext) -> Made:
    return {"type": "category", "values": settings.get("options", list), "exact": True, "unknown": "learned"}, None


def _lut(settings: ConfigReader, context: ImportContext) -> Made:
    tokenizer = {"type": "vocab", "model": context.model(settings.get("tokenizer_name", str))}
    tokenizer |= {"special_tokens": settings.get("special_tokens", list, [])}
    length, positions = settings.get("max_length", int, 1024), settings.get("use_abs_pos_emb", bool, False)
    spec = {"type": "lut", "tokenizer": tokenizer, "max_length": length, "pad_to": "max_length", "positions": positions}
    return spec | {"empty_text": "encode", "project": _project(settings)}, None


def _pretransform(settings: ConfigReader, context: ImportContext) -> Made:
    codec, checkpoint = _codec(settings, context)
    return {"type": "waveform", "codec": codec, "project": "auto"}, checkpoint


def _source_mix(settings: ConfigReader, context: ImportContext) -> Made:
    codec, checkpoint = _codec(settings, context)
    spec = {"type": "source_mix", "codec": codec, "sources": settings.get("source_keys", list, [])}
    settings.ignore(["source_length"])  # the learned null is as long as the clip
    return spec | {
        "input_kind": "frames" if settings.get("pre_encoded", bool, False) else "audio",
        "null_embedding": "learned" if settings.get("allow_null_source", bool, False) else "zeros",
    }, checkpoint


def _codec(settings: ConfigReader, context: ImportContext) -> tuple[dict[str, Any], ExternalCheckpoint | None]:
    """The codec of a conditioner that hears, of its own or that of the model."""
    rate = settings.get("sample_rate", int)
    settings.ignore(["save_pretransform"])  # says whose weights a checkpoint holds, which is seen in it
    path = settings.get("pretransform_ckpt_path", str, None)
    if not settings.get("use_model_pretransform", bool, False):
        return convert_pretransform(settings.subsection("pretransform_config"), rate), ExternalCheckpoint(
            path
        ) if path else None
    settings.ignore(["pretransform_config"])
    if context.pretransform is None:
        settings.unsupported(
            "use_model_pretransform", "there is no pretransform of a model here; give the config of the whole model"
        )
        return {}, None
    if context.sample_rate not in (None, rate):
        settings.unsupported(
            "sample_rate", f"{rate} is not that of the model, {context.sample_rate}, whose pretransform it uses"
        )
    theirs = ConfigReader(context.pretransform.data, source=context.pretransform.source, mistakes=settings.mistakes)
    return convert_pretransform(theirs, rate), None


def _project(settings: ConfigReader) -> str:
    return "always" if settings.get("project_out", bool, False) else "auto"


TYPES: dict[str, Callable[[ConfigReader, ImportContext], Made]] = {
    "t5": _t5,
    "t5gemma": _t5gemma,
    "clap_text": _clap_text,
    "clap_audio": _clap_audio,
    "int": _int,
    "number": _number,
    "list": _list,
    "phoneme": _phoneme,
    "lut": _lut,
    "pretransform": _pretransform,
    "source_mix": _source_mix,
}


_ROUTES = {
    "cross_attention_cond_ids": "cross",
    "global_cond_ids": "global",
    "input_concat_ids": "concat",
    "prepend_cond_ids": "prepend",
}
_KEPT: dict[str, dict[str, Any]] = {  # what holds in the unguided half too
    "global": {"guided": False},
    "concat": {"guided": False, "resize": "nearest"},
}
_RESERVED = ("inpaint_mask", "inpaint_masked_input")  # ids that a diffusion model fills itself
_LATER = {
    "causal_lm": "a causal language model as a text encoder",
    "sat_clap_text": "their own CLAP",
    "sat_clap_audio": "their own CLAP",
}


@dataclass(frozen=True)
class ConditioningConfig:
    """What a config describes; `fusion` is None where it does not say what goes where."""

    conditioners: dict[str, ConditionerSpec]
    fusion: FusionSpec | None
    checkpoints: dict[str, ExternalCheckpoint]  # files of weights beside the model's own, by id

    def item(self, metadata: Mapping[str, Any]) -> dict[str, Any]:
        """Their metadata as an item: lists of one value are that value, tensors [c t] of sounds are Audio."""
        ids = {*self.conditioners, *(spec.fallback for spec in self.conditioners.values())}
        return {name: self._value(name, value) for name, value in metadata.items() if name in ids}

    def _value(self, name: str, value: Any) -> Any:
        value = value[0] if isinstance(value, list | tuple) and len(value) == 1 else value
        spec = self.conditioners.get(name)
        if getattr(spec, "input_kind", None) != "audio":
            return value
        rate = spec.codec.sample_rate  # type: ignore[union-attr]  # of a spec that hears
        if isinstance(value, Mapping):
            return {source: _heard(sound, rate) for source, sound in value.items()}
        return _heard(value, rate)


def load_conditioning(
    config: Mapping[str, Any] | str | Path, *, folder: Path | None = None, converted: Mapping[str, str | Path] | None = None
) -> ConditioningConfig:
    """The conditioning of a model's config: a JSON file, what is in one, its `conditioning`, or an object that holds that.

    Encoders are looked for in `folder`, by default that of the file, then taken for names in the hub. `converted` are
    folders made of the checkpoints of CLAP that the config names (`examples/convert_laion_clap.py`), by those names.
    CheckpointError lists everything that cannot be honoured.
    """
    if not isinstance(config, Mapping):
        path = Path(config)
        config, folder = read_json_object(path), folder or path.parent
    whole, place = config, ""
    if "conditioning" not in whole and "configs" not in whole:
        whole, place = config.get("model", {}), "model."
    block = whole if "configs" in whole else whole.get("conditioning")
    section = ConfigReader(block, source=f"{place}conditioning")
    codec = ConfigReader(whole["pretransform"], source=f"{place}pretransform") if "pretransform" in whole else None
    found = _conditioning(
        section, ImportContext(folder, codec, config.get("sample_rate"), converted or {}), whole.get("diffusion"), place
    )
    section.raise_errors()
    return found


def _conditioning(section: ConfigReader, context: ImportContext, diffusion: Any, place: str) -> ConditioningConfig:
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
            what = f"needs {_LATER[kind]}, which this release does not have" if kind in _LATER else "is no known type"
            inner.unsupported("type", f"'{kind}' {what}.{did_you_mean(kind, list(TYPES))}")
        else:
            spec, checkpoint = _spec(kind, settings, context.of(settings.get("output_dim", int, width)))
            spec |= {"fallback": fallbacks[name]} if name in fallbacks else {}
            if name in encoded:
                spec = _given(spec)
                checkpoint = None
            if checkpoint is not None:
                checkpoints[name] = checkpoint
            if len(section.mistakes) > before:  # what stands in for a wrong setting may not fit the others
                continue
            try:
                specs[name] = ConditionerSpec.parse(spec, source=settings.source)
            except SpecError as error:
                section.mistakes.append(str(error))
    for key, ids in (("default_keys", fallbacks), ("pre_encoded_keys", encoded)):
        for name in ids:
            if name not in names:
                section.unsupported(f"{key}.{name}", f"is no id of a conditioner.{did_you_mean(name, names)}")
    section.reject_unread()
    fusion = (
        None
        if diffusion is None
        else _fusion(ConfigReader(diffusion, source=f"{place}diffusion", mistakes=section.mistakes), names)
    )
    return ConditioningConfig(specs, fusion, checkpoints)


def _spec(kind: str, settings: ConfigReader, context: ImportContext) -> tuple[dict[str, Any], ExternalCheckpoint | None]:
    """What a type makes of its settings."""
    spec, checkpoint = TYPES[kind](settings, context)
    settings.reject_unread()
    return {"output_dim": context.width, "null_embedding": "zeros"} | spec, checkpoint


def _given(spec: dict[str, Any]) -> dict[str, Any]:
    """The spec of an id whose values come encoded, as wide as its conditioner would make them: sounds [d, f], others [n, d]."""
    sounds, vectors = ("waveform", "source_mix"), ("int", "number", "category")
    kind = "frames" if spec["type"] in sounds else "vector" if spec["type"] in vectors else "tokens"
    if spec["type"] == "clap" and spec.get("layer") is None:
        kind = "vector"
    shared = {key: spec[key] for key in ("output_dim", "fallback") if key in spec}
    along = "columns" if kind == "frames" else "rows"
    return {"type": "encoded", "null_embedding": "zeros", "kind": kind, "along": along, "project": "auto", **shared}


def _fusion(section: ConfigReader, names: list[str]) -> FusionSpec:
    """Where `diffusion` sends each id; those that it does not name are read and not used."""
    slots: dict[str, Any] = {}
    for key, slot in _ROUTES.items():
        ids = section.get(key, list, [])
        for name in ids:
            if name not in names and not (slot == "concat" and name in _RESERVED):
                section.unsupported(key, f"names '{name}', which is no id of a conditioner.{did_you_mean(str(name), names)}")
        slots[slot] = [{"id": name, **_KEPT.get(slot, {})} for name in ids if name in names]
    used = {name for key in _ROUTES for name in section.data.get(key, []) or []}
    return FusionSpec.parse({**slots, "ignore": [name for name in names if name not in used]}, source=section.source)


def _heard(value: Any, rate: int) -> Any:
    return Audio(value[None], rate) if isinstance(value, Tensor) else value
