"""TrainingConfig: all settings of a run except its data and its folder."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, model_validator

from cadenza.core.errors import SpecError
from cadenza.core.migrations import migrate_spec, migrate_training_config
from cadenza.core.spec import Spec, read_data
from cadenza.data.music_metadata import PromptMixer
from cadenza.system.spec import SystemSpec
from cadenza.training.tasks.base import TaskSpec


class OptimizerGroupConfig(Spec):
    """Settings of one group of a task's modules; None means the run's setting."""

    lr: float | None = Field(default=None, gt=0)
    betas: tuple[float, float] | None = None
    weight_decay: float | None = Field(default=None, ge=0)
    grad_clip: float | None = Field(default=None, gt=0)


class TrainingConfig(Spec):
    """System, task, optimization and logging of a run; `steps` are optimizer steps."""

    name: str = "run"
    system: SystemSpec
    task: TaskSpec
    init_from: str | None = None  # a saved system; parts with an equal spec start from its weights

    steps: int = Field(100_000, ge=1)
    minutes: float | None = Field(None, gt=0)  # stop after this time, with a checkpoint; the schedule uses `steps`
    batch: int = Field(8, ge=1)  # items per process and micro-batch
    accumulation: int = Field(1, ge=1)  # micro-batches per step
    seconds: float = Field(10.0, gt=0)  # length of a segment
    seed: int = Field(0, ge=0)
    workers: int = Field(2, ge=0)
    cache: bool = False  # store outputs of frozen encoders on disk, in the folder CADENZA_CACHE
    music: PromptMixer | None = None  # mix other fields of music metadata into the prompt
    on_broken_file: Literal["skip", "raise"] = "skip"  # if an item cannot be read: skip and report it, or end the run

    lr: float = Field(3e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(0.01, ge=0)
    grad_clip: float | None = Field(1.0, gt=0)  # maximum norm of a group's gradient
    groups: dict[str, OptimizerGroupConfig] = {}
    schedule: Literal["cosine", "inverse_sqrt"] = "cosine"  # after the warm-up: half a cosine, or 1 / sqrt(step)
    warmup: int = Field(500, ge=0)
    final_lr_ratio: float = Field(0.05, ge=0, le=1)  # learning rate at the end of the cosine, as a fraction of `lr`
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    ema: float | None = Field(0.999, gt=0, lt=1)

    log_every: int = Field(10, ge=1)
    validate_every: int = Field(1000, ge=1)
    validation_items: int = Field(16, ge=0)
    samples_every: int = Field(5000, ge=1)
    sample_items: int = Field(4, ge=0)
    checkpoint_every: int = Field(1000, ge=1)
    keep_last: int = Field(2, ge=1)  # checkpoints
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ("tensorboard",)

    @model_validator(mode="before")
    @classmethod
    def _migrate(cls, data: Any) -> Any:
        return migrate_training_config(data) if isinstance(data, dict) else data

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Load a config from a YAML or JSON file; `system` is a spec, or the path of one relative to the file."""
        path = Path(path)
        data = read_data(path)
        if isinstance(data, dict) and isinstance(data.get("system"), str):
            data = {**data, "system": SystemSpec.load(path.parent / data["system"]).to_dict()}
        return cls.parse(data, source=str(path))

    def optimizer_for(self, name: str) -> OptimizerGroupConfig:
        """Return the settings of a group with all fields filled in; only `grad_clip` may be None."""
        own = self.groups.get(name, OptimizerGroupConfig()).model_dump(exclude_none=True)
        return OptimizerGroupConfig(**{field: getattr(self, field) for field in OptimizerGroupConfig.model_fields} | own)


def resolve_config(config: Any, overrides: Sequence[str], fields: Mapping[str, Any]) -> TrainingConfig:
    """Return a config with `key=value` overrides and fields applied; names of format 1 are accepted.

    `config` is a TrainingConfig, a mapping, the path of a file, or a SystemSpec. Raises SpecError with all mistakes.
    """
    changes = {key: value.to_dict() if hasattr(value, "to_dict") else value for key, value in fields.items()}
    changes = {**_parse_overrides(overrides), **changes}
    if isinstance(config, SystemSpec):
        task = {"type": "codec" if config.generator is None else "generator"}
        config = {"system": config.to_dict(), "task": task}
    if isinstance(config, str | Path):
        config = TrainingConfig.load(config)
    if isinstance(config, TrainingConfig):
        config = config.to_dict()
    if not isinstance(config, Mapping):
        raise SpecError(f"a {type(config).__name__} is not a training config. Use a TrainingConfig, YAML file or SystemSpec")
    return TrainingConfig.parse(_merge(_migrate(config), _migrate(_add_types(config, changes))), source="training config")


def _migrate(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a config or changes of one with the present names, those of the system included."""
    config = migrate_training_config(config)
    try:
        return {**config, "system": migrate_spec(config["system"])} if isinstance(config.get("system"), Mapping) else config
    except ValueError as error:
        raise SpecError(f"training config: system: {error}") from None


def _add_types(config: Any, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return changes in which each mapping has the `type` of its place in the config, because names depend on it."""
    if not isinstance(config, Mapping):
        return dict(changes)
    typed = {key: _add_types(config.get(key), x) if isinstance(x, Mapping) else x for key, x in changes.items()}
    return {"type": config["type"], **typed} if typed and "type" in config else typed


def _parse_overrides(lines: Sequence[str]) -> dict[str, Any]:
    """Return `a.b=value` lines as nested mappings; values are parsed as YAML."""
    overrides: dict[str, Any] = {}
    for line in lines:
        name, equals, value = line.partition("=")
        if not equals:
            raise SpecError(f"'{line}' is not an override. Write KEY=VALUE, such as steps=1000 or task.mel=1.0")
        *path, last = name.strip().split(".")
        parent = overrides
        for key in path:
            parent = parent.setdefault(key, {})
            if not isinstance(parent, dict):
                raise SpecError(f"'{line}' sets a field of '{key}', but another override sets '{key}' itself; remove one")
        try:
            parent[last] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise SpecError(f"'{line}': the value is not YAML ({error})") from None
        if isinstance(parent[last], str):
            with suppress(ValueError):  # YAML 1.1 reads 1e-4 as a string
                parent[last] = float(parent[last])
    return overrides


def _merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `base` with `changes`, merged key by key; a mapping of another `type` replaces the whole mapping."""
    merged = dict(base)
    for key, value in changes.items():
        present: Any = merged.get(key, {})
        are_mappings = isinstance(present, Mapping) and isinstance(value, Mapping)
        same_type = are_mappings and value.get("type", present.get("type")) == present.get("type")
        merged[key] = _merge(present, value) if same_type else value
    return merged
