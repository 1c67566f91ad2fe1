"""Forecast: the bytes that a request takes, by what they are for, told before they are taken."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from cadenza.codecs.base import Codec
from cadenza.conditioners.base import ConditionerSet
from cadenza.core.errors import RequestError
from cadenza.core.types import Slot
from cadenza.generators.base import BatchShape, Generator
from cadenza.nn.packed import packed_bytes
from cadenza.samplers.guidance import expand_guidance
from cadenza.system.request import ClipRequest, Request
from cadenza.system.spec import SystemSpec

LONGEST = 3600  # seconds of a clip; more than this is rather a mistake
CODE = 24 * 2**20  # of libraries, which the first computation brings into memory


@runtime_checkable
class SystemLike(Protocol):
    """A system, or the outline of one, whose tensors hold no numbers."""

    spec: SystemSpec
    codec: Codec
    conditioners: ConditionerSet
    generator: Generator | None


@dataclass(frozen=True)
class GenerationJob:
    """What is to be made: the frames of each clip, and how they are computed."""

    frames: tuple[int, ...]
    branches: int = 2  # of guidance
    two_step: bool = False
    stride: float | None = None  # seconds, from window to window
    dtype: torch.dtype = torch.float32
    quantize: str | None = None
    device: str = "cpu"

    @classmethod
    def from_request(cls, spec: SystemSpec, request: Request, **how: Any) -> "GenerationJob":
        """That of a request to a system; `how` are dtype, quantize and device."""
        clips = request.expand()
        frames = tuple(spec.codec.num_frames(num_samples(spec, clip)) for clip in clips)
        guided = [route.id for routes in spec.fusion.routes_by_slot().values() for route in routes if route.guided]
        said = {name for clip in clips for name in clip.item} & set(guided)
        asked = expand_guidance(request.effective_guidance, spec.defaults.guidance, guided, said)
        plain = request.effective_guidance.is_scheduled or request.effective_guidance.rescale > 0
        branches = sum(term.weight != 0 or bool(plain and term.unguided_weight) for term in asked)
        stride = request.stride or spec.defaults.stride
        return cls(frames, max(1, branches), request.two_step_cfg, stride, **how)

    def with_frames(self, frames: tuple[int, ...]) -> "GenerationJob":
        """The same of other clips."""
        return replace(self, frames=frames)


def num_samples(spec: SystemSpec, clip: ClipRequest) -> int:
    """Samples of a clip; RequestError where it is too long to be meant."""
    assert spec.generator is not None
    window = spec.generator.max_frames / spec.codec.frame_format.frame_rate
    seconds = min(spec.defaults.seconds, window) if clip.seconds is None else clip.seconds
    if seconds > LONGEST:
        raise RequestError(f"{seconds:g} seconds are too long: a clip may have up to {LONGEST}; make several and join them")
    return max(1, round(seconds * spec.codec.sample_rate))


@dataclass(frozen=True)
class BatchPlan:
    """How a job is done: clips that are generated together, and frames decoded at a time, as the codec likes with None."""

    batch_size: int
    decode_chunk_frames: int | None = None

    def batches(self, job: GenerationJob) -> list[tuple[int, ...]]:
        """The frames of the clips that are generated together, group by group."""
        return [job.frames[i : i + self.batch_size] for i in range(0, len(job.frames), self.batch_size)]


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by what they are for: `always` from loading on, and what each phase adds to them while it lasts."""

    persistent: Mapping[str, int]
    phases: Mapping[str, Mapping[str, int]]

    @property
    def peak(self) -> int:
        """What is needed at the worst moment."""
        return sum(self.persistent.values()) + max((sum(phase.values()) for phase in self.phases.values()), default=0)

    @property
    def peak_phase(self) -> str:
        """The phase of that moment."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    def breakdown(self) -> dict[str, int]:
        """What the peak is made of."""
        return {name: size for name, size in {**self.persistent, **self.phases[self.peak_phase]}.items() if size}


def estimate_memory(
    system: SystemLike, job: GenerationJob, course: BatchPlan, *, program: int = 0, stored: int | None = None
) -> MemoryEstimate:
    """What a job takes of a system, or of its outline; a `stored` number of bytes says that it is still to be loaded.

    `program` is what is taken by everything else. On a GPU neither counts, as they lie elsewhere.
    """
    sizes = weight_bytes(system)
    outside = {name: part.unloaded_bytes() for name, part in system.conditioners.items()}  # type: ignore[operator]
    reading = sum(part.peak_loading_bytes() for part in system.conditioners.values())  # type: ignore[operator]
    host = job.device.partition(":")[0] == "cpu"
    always: dict[str, int] = {"program": program + CODE} if host else {}
    always |= {f"{name} weights": size for name, size in sizes.items()}
    always |= {f"{name} encoder": size for name, size in outside.items()}
    kinds = {(max(group),) * len(group) for group in course.batches(job)}
    phases = [_working(system, job.with_frames(kind)) for kind in kinds]
    biggest = max(phases, key=lambda phase: sum(phase.values()))
    audio = _audio(system, job.frames)
    size = _itemsize(system.codec)
    at_once = system.spec.codec.decode_chunk_frames(max(job.frames), job.device.partition(":")[0])
    at_once = at_once if course.decode_chunk_frames is None else min(course.decode_chunk_frames, at_once)
    decoding = system.spec.codec.decode_memory_bytes(at_once, clips=min(course.batch_size, len(job.frames)), itemsize=size)
    scratch = sizes["codec"] // 2 if host else 0  # weights of the decoder in the order in which it reads them
    result = {"generating": biggest, "decoding": {"codec's layers": decoding + scratch, "audio": audio}}
    if host and stored is not None:
        result["loading"] = {"files": max(0, stored - sum(sizes.values()) - sum(outside.values()))}
    if host and reading:
        result["reading"] = {"files of encoders": max(0, reading - sum(outside.values()))}
    return MemoryEstimate(always, result)


def weight_bytes(system: SystemLike) -> dict[str, int]:
    """Bytes of the weights of each part that has some."""
    parts: dict[str, nn.Module | None] = {
        "codec": system.codec,
        "conditioners": system.conditioners,
        "generator": system.generator,
    }
    sizes = {name: 0 if part is None else module_bytes(part) for name, part in parts.items()}
    return {name: size for name, size in sizes.items() if size or name == "codec"}


def module_bytes(module: nn.Module) -> int:
    """Bytes of the parameters and buffers of a module."""
    return sum(x.numel() * x.element_size() for x in (*module.parameters(), *module.buffers()))


def _working(system: SystemLike, job: GenerationJob) -> dict[str, int]:
    """Bytes that generating a group of clips takes."""
    spec, generator = system.spec, system.generator
    assert spec.generator is not None and generator is not None
    rows, longest = len(job.frames) * job.branches, max(job.frames)
    positions: dict[Slot, int] = {}
    conditions = 0
    for slot, routes in spec.fusion.routes_by_slot().items():
        each = [spec.conditioners[route.id] for route in routes]
        positions[slot] = sum(part.num_tokens(longest) for part in each) if slot in ("cross", "prepend") else longest
        if slot in ("add", "concat"):  # each is made, and spread over the frames in every branch
            conditions += sum(part.output_dim for part in each) * rows * longest * _itemsize(generator)
    window = spec.generator.max_frames if spec.generator.fixed_length else min(longest, spec.generator.max_frames)
    load = BatchShape(rows, window, positions, spec.slot_dims(), _dtype(generator), job.quantize is not None, job.device)
    held = spec.generator.activation_bytes(spec.codec.frame_format, load)
    held["conditions"] = held.get("conditions", 0) + conditions
    one = len(job.frames) if job.two_step else rows
    return {"packed copies": packed_bytes(generator, one, device=job.device.partition(":")[0])} | held


def _audio(system: SystemLike, frames: tuple[int, ...]) -> int:
    codec = system.spec.codec
    return 2 * len(frames) * max(frames) * codec.hop_length * codec.channels * 4


def _dtype(module: nn.Module) -> torch.dtype:
    return next((x.dtype for x in module.parameters() if x.is_floating_point()), torch.float32)


def _itemsize(module: nn.Module) -> int:
    return _dtype(module).itemsize
