"""Task: what one step of training is; the Trainer knows nothing else of a model."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from cadenza.core.spec import RegisteredSpec
from cadenza.dsp.audio import Audio


class TaskSpec(RegisteredSpec):
    """What every task's spec says; schedules live here and never in the spec of a part."""

    family: ClassVar[str] = "cadenza.training.tasks"

    def build(self, system: Any) -> "Task":
        """The task that trains (parts of) a system."""
        raise NotImplementedError(f"{type(self).__name__} must build its task")


@dataclass(frozen=True)
class StepContext:
    """Where training stands: optimiser steps done, steps in all, and the only source of randomness of a task.

    The trainer saves and restores the state of `rng` (a CPU generator), so that a resumed run draws what the
    uninterrupted one would have drawn.
    """

    step: int
    total: int
    rng: torch.Generator


Yield = tuple[str, dict[str, Tensor]]


class Task(ABC):
    """A training step is a Python generator that yields (who learns, losses).

    For each yield the trainer differentiates `losses["loss"]`, divided by the accumulation, with respect to that
    group's parameters alone. When all micro-batches of a step are done it averages the gradients over processes,
    clips them, and steps all groups that learned together: within a step every group sees the weights of its start.
    The other entries are detached scalars, logged as `group/term`. Modules are called directly, never through a wrapper.
    Whatever a schedule has to remember lives in a buffer or follows from `progress.step`: the state dicts of the
    groups, of `memory` and of the optimisers, with `progress.rng`, are the whole state of a run. Averaged weights
    (EMA) are averages of parameters; buffers are copied. Buffers that a step changes itself, such as codebooks, learn from
    every micro-batch of an accumulated step.
    """

    input_kinds: ClassVar[tuple[str, ...]] = ("audio",)  # what a batch may hold: audio, codes, latents
    selection_metric: ClassVar[str] = "loss"  # the metric of `validate` that is least for the best weights

    @abstractmethod
    def optimized_modules(self) -> dict[str, nn.Module]:
        """The modules that have an optimiser of their own; the first is the one that is kept and averaged (EMA)."""

    @abstractmethod
    def step(self, batch: Any, progress: StepContext) -> Iterator[Yield]:
        """One step on a batch, in training mode."""

    @abstractmethod
    def validate(self, batch: Any) -> dict[str, Tensor]:
        """Scalar metrics of a batch of fixed items, in eval mode under the averaged weights."""

    def extra_state(self) -> nn.Module:
        """A module without parameters whose buffers are saved with the run: averages and pools that no group owns."""
        return nn.Module()

    def epoch_metrics(self) -> dict[str, Tensor]:
        """Scalar metrics gathered over the calls of `validate` since the last report."""
        return {}

    def sample_audio(self, batch: Any) -> dict[str, Audio]:
        """Audio worth hearing, by name; logged as wav and spectrogram."""
        return {}
