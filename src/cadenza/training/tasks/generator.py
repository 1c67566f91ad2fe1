"""Train a generator and its conditioners on the codes or latents of a frozen codec."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from jaxtyping import Bool
from pydantic import Field
from torch import Tensor, nn

from cadenza.conditioners.base import PreparedInputs
from cadenza.core.errors import TrainingError
from cadenza.core.types import Codes, Latents, Slot
from cadenza.dsp.audio import Audio
from cadenza.system.system import System
from cadenza.training.tasks.base import StepContext, Task, TaskSpec, Yield

Probability = Annotated[float, Field(ge=0, le=1)]


class GeneratorTaskSpec(TaskSpec):
    """Dropout of conditions, needed for guidance and for requests with a subset of the conditions."""

    type: Literal["generator"] = "generator"
    cfg_dropout: Probability = 0.1  # of all conditions of an item together (Ho & Salimans 2022)
    attribute_dropout: Probability | dict[str, Probability] = 0.1  # of each condition, or by id; "a+b": both together

    def build(self, system: Any) -> "GeneratorTask":
        return GeneratorTask(self, system)


class GeneratorTask(Task):
    """Train on batches with `codes`, `latents` or `audio`, `prepared` conditions, and `metadata` for samples."""

    input_kinds: ClassVar[tuple[str, ...]] = ("audio", "codes", "latents")

    def __init__(self, spec: GeneratorTaskSpec, system: System) -> None:
        if system.generator is None:
            raise TrainingError("this system is only a codec; add a generator, or set task: {type: codec}")
        probabilities = spec.attribute_dropout if isinstance(spec.attribute_dropout, dict) else {}
        if unknown := {name for names in probabilities for name in _split_ids(names)} - set(system.conditioners):
            raise TrainingError(
                f"task.attribute_dropout names {sorted(unknown)}, but the conditioners are: {', '.join(system.conditioners)}"
            )
        self.spec, self.system, self.generator = spec, system, system.generator
        self._trained = nn.ModuleDict({"generator": system.generator, "conditioners": system.conditioners})
        system.codec.requires_grad_(False).eval()

    def optimized_modules(self) -> dict[str, nn.Module]:
        return {"generator": self._trained}

    def step(self, batch: Mapping[str, Any], progress: StepContext) -> Iterator[Yield]:
        target = self._target(batch)
        masks = self._dropout_masks(len(target), progress.rng)
        keep = {pair: mask.to(target.lengths.device) for pair, mask in masks.items()}
        prepared = self.system.conditioners.augment(batch.get("prepared", {}), progress.rng)
        losses = self._losses(prepared, target, keep, progress.rng)
        yield "generator", {"loss": losses["loss"]} | {name: value.detach() for name, value in losses.items() if name != "loss"}

    @torch.no_grad()
    def validate(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Return the losses with all conditions, and as `unconditioned` the loss without any."""
        target = self._target(batch)
        none = torch.zeros(len(target), dtype=torch.bool, device=target.lengths.device)
        empty = dict.fromkeys(self.system.spec.fusion.slot_ids(), none)
        prepared = batch.get("prepared", {})
        losses = self._losses(prepared, target, {}, torch.Generator().manual_seed(0))
        if empty:
            losses["unconditioned"] = self._losses(prepared, target, empty, torch.Generator().manual_seed(0))["loss"]
        return losses

    @torch.no_grad()
    def sample_audio(self, batch: Mapping[str, Any]) -> dict[str, Audio]:
        """Return audio generated from the items' metadata, and the items through the codec."""
        target = self._target(batch)
        items = [self._values(item) for item in batch["metadata"]]
        frame_format, frames = self.system.codec.frame_format, int(target.lengths.max())
        seconds = min(frames, self.system.spec.generator.max_frames) / frame_format.frame_rate  # type: ignore[union-attr]
        audio = self.system.generate(items, seconds=seconds, seed=0)
        return {"reference": self.system.codec.decode(target), "generated": audio}

    def _values(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """Return the condition values of an item, with times relative to the segment's start."""
        conditioners = self.system.conditioners
        values = {id: item[id] for id in conditioners.input_ids() if item.get(id) is not None}
        return values if "seconds_start" in values else conditioners.crop_values(values, item.get("seconds_start", 0.0))

    def _losses(
        self,
        prepared: Mapping[str, PreparedInputs],
        target: Codes | Latents,
        keep: Mapping[tuple[Slot, str], Tensor],
        rng: torch.Generator,
    ) -> dict[str, Tensor]:
        frames = (target.ids if isinstance(target, Codes) else target.z).shape[-1]
        conditions = self.system.encode_conditions(prepared)
        fused = self.system.fuse(conditions, frames=frames, keep=keep, lengths=target.lengths)
        return self.generator.losses(target, fused, rng)

    def _dropout_masks(self, items: int, rng: torch.Generator) -> dict[tuple[Slot, str], Bool[Tensor, " b"]]:
        """Return masks of the conditions that dropout keeps, by slot and id.

        Random numbers are drawn on the host: per item, then per id, then per group of ids. Routes without guidance have
        no `cfg_dropout`.
        """
        keep_item = torch.rand(items, generator=rng) >= self.spec.cfg_dropout
        probabilities = self.spec.attribute_dropout
        keep = {}
        for name in self.system.conditioners:
            probability = probabilities.get(name, 0.0) if isinstance(probabilities, dict) else probabilities
            keep[name] = torch.rand(items, generator=rng) >= probability
        for names, probability in probabilities.items() if isinstance(probabilities, dict) else ():
            if len(group := _split_ids(names)) > 1:
                both = torch.rand(items, generator=rng) >= probability
                keep |= {name: keep[name] & both for name in group}
        return {
            (slot, route.id): keep[route.id] & keep_item if route.guided else keep[route.id]
            for slot, routes in self.system.spec.fusion.routes_by_slot().items()
            for route in routes
        }

    @torch.no_grad()
    def _target(self, batch: Mapping[str, Any]) -> Codes | Latents:
        """Return the batch's frames, encoded if necessary, with flags of items that reach the end of their clip."""
        frames = batch.get("codes") or batch.get("latents")
        if frames is None:
            with torch.autocast(batch["audio"].wave.device.type, enabled=False):
                frames = self.system.codec.encode(batch["audio"])
        if isinstance(frames, Codes) and frames.ended is None and "metadata" in batch:
            return replace(frames, ended=self._ended(frames, batch["metadata"]))
        return frames

    def _ended(self, codes: Codes, metadata: list[Mapping[str, Any]]) -> Bool[Tensor, " b"]:
        """Return whether each segment reaches the end of its clip within half a frame; False if times are unknown."""
        rate = self.system.codec.frame_format.frame_rate
        starts = torch.tensor([float(item.get("seconds_start", 0.0)) for item in metadata], dtype=torch.float64)
        totals = torch.tensor([float(item.get("seconds_total", torch.inf)) for item in metadata], dtype=torch.float64)
        device = codes.lengths.device
        return starts.to(device) + codes.lengths / rate >= totals.to(device) - 0.5 / rate


def _split_ids(names: str) -> list[str]:
    """Return the ids of a group `a+b`."""
    return [name.strip() for name in names.split("+")]
