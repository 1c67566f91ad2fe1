"""Migrations of saved specs, training configs and weight names to the present format."""

import re
from collections.abc import Mapping
from typing import Any

FORMAT = 2

_CONDITIONER = {"absent": "null_embedding", "width": "output_dim"}
_FRAMES = {"frames": "max_frames"}
_THROUGH_CODEC = {**_FRAMES, "given": "input_kind"}
_CONDITIONERS: dict[str, dict[str, str]] = {
    "beats": _FRAMES,
    "chords": {**_FRAMES, "known": "vocabulary", "bar": "bar_seconds"},
    "chroma": {**_FRAMES, "short": "pad_mode"},
    "clap": {"reads": "modalities", "first": "prefer", "empty": "empty_text"},
    "codes": _FRAMES,
    "drums": _FRAMES,
    "lut": {"empty": "empty_text"},
    "melody": {**_FRAMES, "hide_octave": "octave_dropout"},
    "source_mix": _THROUGH_CODEC,
    "style": {"lasting": "train_seconds_range", "every": "downsample", "used": "eval_q"},
    "t5": {"inside": "subconfig", "empty": "empty_text"},
    "waveform": _THROUGH_CODEC,
}
_EMPTY_TEXT = {"absent": "null", "read": "encode"}  # values of `empty_text` in t5, clap and lut
_GENERATORS = {"codec_lm": {"mlp": "mlp_ratio", "context": "max_frames", "cross_positions": "cross_attention_pos_emb_scale"}}
_TASKS = {
    "codec": {
        "critic": "gan_loss",
        "critic_start": "discriminator_start_step",
        "critic_filters": "discriminator_filters",
        "warm_steps": "unquantized_steps",
        "pool_frames": "kmeans_frames",
        "level_dropout": "quantizer_dropout",
        "time": "l1",
    },
    "generator": {"guidance_dropout": "cfg_dropout"},
}
_TRAINING = {"clip": "grad_clip", "final": "final_lr_ratio", "broken": "on_broken_file", "start": "init_from"}
_GROUPS = {"critic": "discriminator"}  # of the codec task
_SAMPLING = {"may_end": "allow_eos"}
_WEIGHTS = (  # of format 1: pattern and replacement
    (r"(^|[./])analysis\.", r"\1encoder."),
    (r"(^|[./])synthesis\.", r"\1decoder."),
    (r"(^|[./])blocks\.(\d+)\.style\.", r"\1blocks.\2.adaln."),
    (r"(^|[./])generator\.inputs\.", r"\1generator.input_projections."),
    (r"(^|[./])inward\.", r"\1input_proj."),
    (r"(^|[./])again\.", r"\1recurrent_proj."),
    (r"^(model|optimizer)/critic/", r"\1/discriminator/"),  # tensors of training checkpoints
)


def migrate_spec(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a system spec in the present format; raise ValueError if its format is newer than this release reads."""
    written = data.get("format", 1)
    if not isinstance(written, int) or not 1 <= written <= FORMAT:
        raise ValueError(f"format {written!r} is not known to this release, which reads 1 to {FORMAT}; upgrade cadenza")
    if written == FORMAT:
        return dict(data)
    data = _renamed(data, {"reads": "prompt_patterns"}) | {"format": FORMAT}
    data = _with(data, "codec", migrate_codec_spec)
    data = _with(data, "defaults", lambda d: _with(d, "sampling", lambda sampling: _renamed(sampling, _SAMPLING)))
    data = _with(data, "generator", lambda spec: _by_type(spec, _GENERATORS))
    return _with(data, "conditioners", lambda specs: {name: _migrate_conditioner(spec) for name, spec in specs.items()})


def migrate_training_config(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return a training config with the present field names; old names of format 1 are accepted."""
    data = _with(_renamed(data, _TRAINING), "task", lambda task: _by_type(task, _TASKS))
    return _with(data, "groups", lambda groups: {name: _renamed(x, _TRAINING) for name, x in migrate_groups(groups).items()})


def migrate_groups(groups: Mapping[str, Any]) -> dict[str, Any]:
    """Return values by optimizer group under the present names of the groups."""
    return _renamed(groups, _GROUPS)


def migrate_weight_name(name: str) -> str:
    """Return the present name of a weight of format 1, or of a tensor of a training checkpoint, `model/GROUP/WEIGHT`."""
    for pattern, replacement in _WEIGHTS:
        name = re.sub(pattern, replacement, name)
    return name


def format_1_weight_name(name: str) -> str:
    """Return the name in format 1 of a codec's weight; the reverse of `migrate_weight_name` for codecs."""
    return re.sub(r"(^|\.)decoder\.", r"\1synthesis.", re.sub(r"(^|\.)encoder\.", r"\1analysis.", name))


def _migrate_conditioner(spec: Any) -> Any:
    if not isinstance(spec, Mapping):
        return spec
    spec = _renamed(_by_type(spec, _CONDITIONERS), _CONDITIONER)
    if str(spec.get("empty_text")) in _EMPTY_TEXT:
        spec["empty_text"] = _EMPTY_TEXT[spec["empty_text"]]
    return _with(spec, "codec", migrate_codec_spec)


def migrate_codec_spec(spec: Any) -> Any:
    """Return the spec of a codec of format 1 in the present format."""
    if not isinstance(spec, Mapping):
        return spec
    spec = {**spec, "type": "oobleck_vae"} if spec.get("type") == "oobleck" else spec
    return _with(spec, "codec", migrate_codec_spec)


def _with(data: Mapping[str, Any], key: str, change: Any) -> dict[str, Any]:
    """Return `data` with one mapping in it changed, if it is there."""
    return {**data, key: change(data[key])} if isinstance(data.get(key), Mapping) else dict(data)


def _by_type(spec: Mapping[str, Any], families: Mapping[str, Mapping[str, str]]) -> dict[str, Any]:
    return _renamed(spec, families.get(str(spec.get("type")), {}))


def _renamed(data: Any, names: Mapping[str, str]) -> Any:
    """Return a mapping with old keys renamed in place; a key is kept if its new name is there, too."""
    if not isinstance(data, Mapping):
        return data
    return {names[key] if key in names and names[key] not in data else key: value for key, value in data.items()}
