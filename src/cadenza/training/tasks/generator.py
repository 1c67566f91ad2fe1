"""Training a generator and its conditioners on what a frozen codec makes of audio."""

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

Chance = Annotated[float, Field(ge=0, le=1)]


class GeneratorTaskSpec(TaskSpec):
    """How often conditions are dropped, so that any subset of them can be asked for and guidance has its null."""

    type: Literal["generator"] = "generator"
    cfg_dropout: Chance = 0.1  # of an item: all its conditions together (Ho & Salimans 2022)
    attribute_dropout: Chance | dict[str, Chance] = (
        0.1  # of one condition of an item: for all, or by id; "a+b": of both at once
    )

    def build(self, system: Any) -> "GeneratorTask":
        return GeneratorTask(self, system)


class GeneratorTask(Task):
    """A batch is a mapping with `codes`, `latents` or `audio`, `prepared` conditions, and `metadata` for samples."""

    input_kinds: ClassVar[tuple[str, ...]] = ("audio", "codes", "latents")

    def __init__(self, spec: GeneratorTaskSpec, system: System) -> None:
        if system.generator is None:
            raise TrainingError("this system is a codec alone; add a generator, or choose task: {type: codec}")
        chances = spec.attribute_dropout if isinstance(spec.attribute_dropout, dict) else {}
        if unknown := {name for names in chances for name in _together(names)} - set(system.conditioners):
            raise TrainingError(
                f"task.attribute_dropout names {sorted(unknown)}, but the conditioners are: {', '.join(system.conditioners)}"
            )
        self.spec, self.system, self.generator = spec, system, system.generator
        self._learning = nn.ModuleDict({"generator": system.generator, "conditioners": system.conditioners})
        system.codec.requires_grad_(False).eval()

    def optimized_modules(self) -> dict[str, nn.Module]:
        return {"generator": self._learning}

    def step(self, batch: Mapping[str, Any], progress: StepContext) -> Iterator[Yield]:
        target = self._target(batch)
        keep = {pair: kept.to(target.lengths.device) for pair, kept in self._keep(len(target), progress.rng).items()}
        prepared = self.system.conditioners.augment(batch.get("prepared", {}), progress.rng)
        losses = self._losses(prepared, target, keep, progress.rng)
        yield "generator", {"loss": losses["loss"]} | {name: value.detach() for name, value in losses.items() if name != "loss"}

    @torch.no_grad()
    def validate(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """The losses with every condition there is, and as `unconditioned` what they would be without any."""
        target = self._target(batch)
        nothing = torch.zeros(len(target), dtype=torch.bool, device=target.lengths.device)
        empty = dict.fromkeys(self.system.spec.fusion.slot_ids(), nothing)
        prepared = batch.get("prepared", {})
        free = self._losses(prepared, target, empty, torch.Generator().manual_seed(0))["loss"] if empty else None
        told = self._losses(prepared, target, {}, torch.Generator().manual_seed(0))
        return told if free is None else {**told, "unconditioned": free}

    @torch.no_grad()
    def sample_audio(self, batch: Mapping[str, Any]) -> dict[str, Audio]:
        """What the items' metadata generates, beside the items themselves through the codec."""
        target = self._target(batch)
        items = [self._own(item) for item in batch["metadata"]]
        frame_format, frames = self.system.codec.frame_format, int(target.lengths.max())
        seconds = min(frames, self.system.spec.generator.max_frames) / frame_format.frame_rate  # type: ignore[union-attr]
        made = self.system.generate(items, seconds=seconds, seed=0)
        return {"reference": self.system.codec.decode(target), "generated": made}

    def _own(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """The values of a clip of its own: what is timed counts from the clip's start."""
        conditioners = self.system.conditioners
        found = {id: item[id] for id in conditioners.input_ids() if item.get(id) is not None}
        return found if "seconds_start" in found else conditioners.crop_values(found, item.get("seconds_start", 0.0))

    def _losses(
        self,
        prepared: Mapping[str, PreparedInputs],
        target: Codes | Latents,
        keep: Mapping[tuple[Slot, str], Tensor],
        rng: torch.Generator,
    ) -> dict[str, Tensor]:
        frames = (target.ids if isinstance(target, Codes) else target.z).shape[-1]
        conditions = self.system.encode_conditions(prepared)
        return self.generator.losses(
            target, self.system.fuse(conditions, frames=frames, keep=keep, lengths=target.lengths), rng
        )

    def _keep(self, items: int, rng: torch.Generator) -> dict[tuple[Slot, str], Bool[Tensor, " b"]]:
        """What dropout leaves, drawn on the host: one draw an item for all, one an item and id for itself, then for groups.

        What guidance leaves alone, its dropout does too.
        """
        all_kept = torch.rand(items, generator=rng) >= self.spec.cfg_dropout
        chances = self.spec.attribute_dropout
        kept = {}
        for name in self.system.conditioners:
            chance = chances.get(name, 0.0) if isinstance(chances, dict) else chances
            kept[name] = torch.rand(items, generator=rng) >= chance
        for names, chance in chances.items() if isinstance(chances, dict) else ():
            if len(together := _together(names)) > 1:
                both = torch.rand(items, generator=rng) >= chance
                kept |= {name: kept[name] & both for name in together}
        return {
            (slot, route.id): kept[route.id] & all_kept if route.guided else kept[route.id]
            for slot, routes in self.system.spec.fusion.routes_by_slot().items()
            for route in routes
        }

    @torch.no_grad()
    def _target(self, batch: Mapping[str, Any]) -> Codes | Latents:
        """The batch's frames, encoded here if they are not yet, with what is known of where pieces end."""
        frames = batch.get("codes") or batch.get("latents")
        if frames is None:
            with torch.autocast(batch["audio"].wave.device.type, enabled=False):
                frames = self.system.codec.encode(batch["audio"])
        if isinstance(frames, Codes) and frames.ended is None and "metadata" in batch:
            return replace(frames, ended=self._ended(frames, batch["metadata"]))
        return frames

    def _ended(self, codes: Codes, metadata: list[Mapping[str, Any]]) -> Bool[Tensor, " b"]:
        """Whether each segment reaches the end of its piece, to within half a frame; not so where times are not known."""
        rate = self.system.codec.frame_format.frame_rate
        starts = torch.tensor([float(item.get("seconds_start", 0.0)) for item in metadata], dtype=torch.float64)
        totals = torch.tensor([float(item.get("seconds_total", torch.inf)) for item in metadata], dtype=torch.float64)
        device = codes.lengths.device
        return starts.to(device) + codes.lengths / rate >= totals.to(device) - 0.5 / rate


def _together(names: str) -> list[str]:
    """The ids of a group, `a+b`."""
    return [name.strip() for name in names.split("+")]
