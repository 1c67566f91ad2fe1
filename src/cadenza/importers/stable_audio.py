"""The `conditioning` of stable-audio-tools, read as it is: which conditioners there are, and into which slots they go.

A mistake is named by where it stands in the JSON: `model.conditioning.configs[1].config.min_val`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from cadenza.conditioners.base import ConditionerSpec
from cadenza.core.errors import SpecError
from cadenza.core.pretrained import read_json_object
from cadenza.core.spec import did_you_mean
from cadenza.dsp.audio import Audio
from cadenza.importers.section import ConfigReader
from cadenza.importers.stable_audio_types import TYPES, ExternalCheckpoint, ImportContext
from cadenza.system.spec import FusionSpec

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
        if getattr(spec, "given", None) != "audio":
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
    folders made of the checkpoints of CLAP that the config names (`importers.clap.convert`), by those names.
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
    return {"width": context.width, "absent": "zeros"} | spec, checkpoint


def _given(spec: dict[str, Any]) -> dict[str, Any]:
    """The spec of an id whose values come encoded, as wide as its conditioner would make them: sounds [d, f], others [n, d]."""
    sounds, vectors = ("waveform", "source_mix"), ("int", "number", "category")
    kind = "frames" if spec["type"] in sounds else "vector" if spec["type"] in vectors else "tokens"
    if spec["type"] == "clap" and spec.get("layer") is None:
        kind = "vector"
    shared = {key: spec[key] for key in ("width", "fallback") if key in spec}
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
