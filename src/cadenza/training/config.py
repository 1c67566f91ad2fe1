"""TrainingConfig: everything that decides a run, apart from its data and its folder."""

from pathlib import Path
from typing import Any, Literal, Self

import yaml
from pydantic import Field, model_validator

from cadenza.core.errors import SpecError
from cadenza.core.spec import Spec
from cadenza.system.spec import SystemSpec
from cadenza.training.tasks.base import TaskSpec


class GroupConfig(Spec):
    """What one group of a task's modules does differently; None is as the run does."""

    lr: float | None = Field(default=None, gt=0)
    betas: tuple[float, float] | None = None
    weight_decay: float | None = Field(default=None, ge=0)
    clip: float | None = Field(default=None, gt=0)


class TrainingConfig(Spec):
    """A run: system, task, optimisation, what is logged when; `steps` are optimiser steps."""

    name: str = "run"
    system: SystemSpec
    task: TaskSpec
    start: str | None = None  # a saved system: its parts of the same spec give their weights

    steps: int = Field(100_000, ge=1)
    minutes: float | None = Field(None, gt=0)  # stop after so long, with a checkpoint; the schedule stays by steps
    batch: int = Field(8, ge=1)  # items a process and micro-batch
    accumulation: int = Field(1, ge=1)  # micro-batches a step
    seconds: float = Field(10.0, gt=0)  # of a segment
    seed: int = Field(0, ge=0)
    workers: int = Field(2, ge=0)
    broken: Literal["skip", "raise"] = "skip"  # items that cannot be read are counted and named, or end the run

    lr: float = Field(3e-4, gt=0)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(0.01, ge=0)
    clip: float | None = Field(1.0, gt=0)  # norm of a group's gradient
    groups: dict[str, GroupConfig] = {}
    warmup: int = Field(500, ge=0)
    final: float = Field(0.05, ge=0, le=1)  # learning rate at the end of the cosine, as a fraction
    precision: Literal["no", "bf16", "fp16"] = "no"
    ema: float | None = Field(0.999, gt=0, lt=1)

    log_every: int = Field(10, ge=1)
    validate_every: int = Field(1000, ge=1)
    validation_items: int = Field(16, ge=0)
    samples_every: int = Field(5000, ge=1)
    sample_items: int = Field(4, ge=0)
    checkpoint_every: int = Field(1000, ge=1)
    keep_last: int = Field(2, ge=1)
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ("tensorboard",)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.warmup >= self.steps:
            raise ValueError(f"warmup ({self.warmup}) must be shorter than steps ({self.steps})")
        return self

    @classmethod
    def read(cls, path: str | Path) -> Self:
        """The config in a YAML or JSON file; `system` there is a spec, or the path of one beside the file."""
        path = Path(path)
        try:
            data = yaml.safe_load(path.read_text())
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise SpecError(f"{path}: not readable as YAML or JSON: {error}") from None
        if isinstance(data, dict) and isinstance(data.get("system"), str):
            data = {**data, "system": SystemSpec.read(path.parent / data["system"]).to_dict()}
        return cls.parse(data, source=str(path))

    def altered(self, **overrides: Any) -> Self:
        """The same config with other values, checked as a whole."""
        return type(self).parse({**self.to_dict(), **overrides}, source="training config") if overrides else self

    def group(self, name: str) -> "GroupConfig":
        """What a group does, every field filled in; only `clip` may stay None."""
        own = self.groups.get(name, GroupConfig())
        filled = {field: getattr(own, field) for field in GroupConfig.model_fields}
        return GroupConfig(**{f: getattr(self, f) if value is None else value for f, value in filled.items()})
