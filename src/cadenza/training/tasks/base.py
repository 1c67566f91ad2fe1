"""Task: the modules to train, the losses of one step, and the metrics of validation."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cadenza.core.spec import RegisteredSpec
from cadenza.dsp.audio import Audio


class TaskSpec(RegisteredSpec):
    """Base of task specs; schedules belong here and not in the spec of a part."""

    family: ClassVar[str] = "cadenza.training.tasks"

    def build(self, system: Any) -> "Task":
        """Return the task that trains (parts of) a system."""
        raise NotImplementedError(f"{type(self).__name__} must build its task")


@dataclass(frozen=True)
class StepContext:
    """Optimizer steps done, total steps, and the only source of randomness of a task.

    The state of `rng` (a CPU generator) is part of a checkpoint, so that a resumed run gives the same numbers.
    """

    step: int
    total: int
    rng: torch.Generator


Yield = tuple[str, dict[str, Tensor]]


class Task(ABC):
    """Base of tasks. A training step is a Python generator that yields (group, losses); see `training/loop.py`.

    `losses["loss"]` is minimized with respect to that group's parameters alone; the other entries are detached scalars,
    logged as `group/term`. Modules are called directly, not through a wrapper. State of a schedule is a buffer or
    follows from `progress.step`: the state dicts of the groups, of `extra_state` and of the optimizers, with
    `progress.rng`, are the whole state of a run. The EMA averages parameters and copies buffers. Buffers that a step
    changes itself, such as codebooks, are updated by every micro-batch of an accumulated step.
    """

    input_kinds: ClassVar[tuple[str, ...]] = ("audio",)  # kinds of batches: audio, codes, latents
    selection_metric: ClassVar[str] = "loss"  # of `validate`; lower is better

    @abstractmethod
    def optimized_modules(self) -> dict[str, nn.Module]:
        """Return the modules with an optimizer each, by group; the EMA is of the first."""

    @abstractmethod
    def step(self, batch: Any, progress: StepContext) -> Iterator[Yield]:
        """Yield (group, losses) for a batch, in training mode."""

    @abstractmethod
    def validate(self, batch: Any) -> dict[str, Tensor]:
        """Return scalar metrics of a fixed batch, in evaluation mode with EMA weights."""

    def extra_state(self) -> nn.Module:
        """Return a module without parameters whose buffers are saved with the run, such as running averages."""
        return nn.Module()

    def epoch_metrics(self) -> dict[str, Tensor]:
        """Return scalar metrics over all calls of `validate` since the last call of this."""
        return {}

    def sample_audio(self, batch: Any) -> dict[str, Audio]:
        """Return audio samples by name; logged as wav and spectrogram."""
        return {}
