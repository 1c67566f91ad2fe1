"""The conditioner types of stable-audio-tools: what each makes of the settings in its JSON."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cadenza.importers.section import ConfigReader
from cadenza.importers.stable_audio_codec import convert_pretransform

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
        **{"type": "t5", "model": model, "max_length": length, "pad_to": "max_length", "empty_text": "read"},
        **{"train": settings.get("enable_grad", bool, False), "project": _project(settings)},
    }


def _clap_text(settings: ConfigReader, context: ImportContext) -> Made:
    checkpoint, model = _clap(settings, context)
    features, layer = settings.get("use_text_features", bool, False), settings.get("feature_layer_ix", int, -1)
    spec = {"type": "clap", "model": model, "modalities": "text", "empty_text": "read", "project": _project(settings)}
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
    return spec | {"empty": "read", "project": _project(settings)}, None


def _pretransform(settings: ConfigReader, context: ImportContext) -> Made:
    codec, checkpoint = _codec(settings, context)
    return {"type": "waveform", "codec": codec, "project": "auto"}, checkpoint


def _source_mix(settings: ConfigReader, context: ImportContext) -> Made:
    codec, checkpoint = _codec(settings, context)
    spec = {"type": "source_mix", "codec": codec, "sources": settings.get("source_keys", list, [])}
    settings.ignore(["source_length"])  # the learned null is as long as the clip
    return spec | {
        "given": "frames" if settings.get("pre_encoded", bool, False) else "audio",
        "absent": "learned" if settings.get("allow_null_source", bool, False) else "zeros",
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
