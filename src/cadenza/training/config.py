"""TrainingConfig: everything that decides a run, apart from its data and its folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, model_validator

from cadenza.core.errors import SpecError
from cadenza.core.migrations import migrate_training_config
from cadenza.core.spec import Spec, read_data
from cadenza.data.music_metadata import PromptMixer
from cadenza.system.spec import SystemSpec
from cadenza.training.tasks.base import TaskSpec


class OptimizerGroupConfig(Spec):
    """What one group of a task's modules does differently; None is as the run does."""

    lr: float | None = Field(default=None, gt=0)
    betas: tuple[float, float] | None = None
    weight_decay: float | None = Field(default=None, ge=0)
    grad_clip: float | None = Field(default=None, gt=0)


class TrainingConfig(Spec):
    """A run: system, task, optimisation, what is logged when; `steps` are optimiser steps."""

    name: str = "run"
    system: SystemSpec
    task: TaskSpec
    init_from: str | None = None  # a saved system: its parts of the same spec give their weights

    steps: int = Field(100_000, ge=1)
    minutes: float | None = Field(None, gt=0)  # stop after so long, with a checkpoint; the schedule stays by steps
    batch: int = Field(8, ge=1)  # items a process and micro-batch
    accumulation: int = Field(1, ge=1)  # micro-batches a step
    seconds: float = Field(10.0, gt=0)  # of a segment
    seed: int = Field(0, ge=0)
    workers: int = Field(2, ge=0)
    cache: bool = False  # what frozen encoders make of values is kept on disk, in the folder that CADENZA_CACHE names
    music: PromptMixer | None = None  # mixes other fields of music metadata into the prompt
    on_broken_file: Literal["skip", "raise"] = "skip"  # items that cannot be read are counted and named, or end the run

    lr: float = Field(3e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(0.01, ge=0)
    grad_clip: float | None = Field(1.0, gt=0)  # norm of a group's gradient
    groups: dict[str, OptimizerGroupConfig] = {}
    schedule: Literal["cosine", "inverse_sqrt"] = "cosine"  # after the warm-up: half a cosine, or as 1 / sqrt(step)
    warmup: int = Field(500, ge=0)
    final_lr_ratio: float = Field(0.05, ge=0, le=1)  # learning rate at the end of the cosine, as a fraction
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    ema: float | None = Field(0.999, gt=0, lt=1)

    log_every: int = Field(10, ge=1)
    validate_every: int = Field(1000, ge=1)
    validation_items: int = Field(16, ge=0)
    samples_every: int = Field(5000, ge=1)
    sample_items: int = Field(4, ge=0)
    checkpoint_every: int = Field(1000, ge=1)
    keep_last: int = Field(2, ge=1)
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ("tensorboard",)

    @model_validator(mode="before")
    @classmethod
    def _migrate(cls, data: Any) -> Any:
        return migrate_training_config(data) if isinstance(data, dict) else data

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """The config in a YAML or JSON file; `system` there is a spec, or the path of one beside the file."""
        path = Path(path)
        data = read_data(path)
        if isinstance(data, dict) and isinstance(data.get("system"), str):
            data = {**data, "system": SystemSpec.read(path.parent / data["system"]).to_dict()}
        return cls.parse(data, source=str(path))

    def optimizer_for(self, name: str) -> "OptimizerGroupConfig":
        """What a group does, every field filled in; only `clip` may stay None."""
        own = self.groups.get(name, OptimizerGroupConfig())
        filled = {field: getattr(own, field) for field in OptimizerGroupConfig.model_fields}
        return OptimizerGroupConfig(**{f: getattr(self, f) if value is None else value for f, value in filled.items()})


def resolve_config(what: Any, lines: Sequence[str], fields: Mapping[str, Any]) -> TrainingConfig:
    """The config that a user's first argument, `key=value` lines and keywords are; mistakes raise SpecError together."""
    fields = {**_settings(lines), **fields}
    if isinstance(what, SystemSpec):
        task = {"type": "codec" if what.generator is None else "generator"}
        what = {"system": what.to_dict(), "task": task}
    if isinstance(what, str | Path):
        what = TrainingConfig.read(what)
    if isinstance(what, TrainingConfig):
        what = what.to_dict()
    if not isinstance(what, Mapping):
        raise SpecError(f"a {type(what).__name__} is no training config; give a TrainingConfig, a YAML file, or a SystemSpec")
    return TrainingConfig.parse(
        _merged(migrate_training_config(what), migrate_training_config(_plain(fields))), source="training config"
    )


def _settings(lines: Sequence[str]) -> dict[str, Any]:
    """`a.b=value` lines as nested mappings, their values read as YAML."""
    settings: dict[str, Any] = {}
    for line in lines:
        name, equals, value = line.partition("=")
        if not equals:
            raise SpecError(f"'{line}' sets nothing; write KEY=VALUE, such as steps=1000 or task.mel=1.0")
        *path, last = name.strip().split(".")
        place = settings
        for step in path:
            place = place.setdefault(step, {})
            if not isinstance(place, dict):
                raise SpecError(
                    f"'{line}' sets a part of '{step}', which another setting makes a single value; keep one of them"
                )
        try:
            place[last] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise SpecError(f"'{line}': the value is not YAML ({error})") from None
        if isinstance(place[last], str):
            place[last] = _number(place[last])
    return settings


def _number(text: str) -> Any:
    """YAML 1.1 takes 1e-4 for a string; here it is a number."""
    try:
        return float(text)
    except ValueError:
        return text


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`changes` in `base`, mappings merged key by key; one of another `type` replaces the whole."""
    merged = dict(base)
    for key, value in changes.items():
        there = merged.get(key)
        deep = (
            isinstance(there, Mapping)
            and isinstance(value, Mapping)
            and value.get("type", there.get("type")) == there.get("type")
        )
        merged[key] = _merged(there, value) if deep else value  # type: ignore[arg-type]
    return merged


def _plain(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value.to_dict() if hasattr(value, "to_dict") else value for key, value in fields.items()}
