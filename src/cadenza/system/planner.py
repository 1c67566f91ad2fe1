"""Forecast: the bytes that a request takes, by what they are for, told before they are taken."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from cadenza.codecs.base import Codec
from cadenza.conditioners.base import ConditionerSet
from cadenza.core.errors import RequestError
from cadenza.core.memory import format_bytes
from cadenza.core.types import Slot
from cadenza.generators.base import BatchShape, Generator
from cadenza.nn.weight_quantization import packed_bytes
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


SPARE = 1.05  # of what is foreseen, that must be free: it is not exact
_PIECES = (None, 24)  # frames decoded at a time: as the codec likes, or few
_SMALLEST = BatchPlan(1, _PIECES[-1])
_QUANTIZED = ("int8", "int4")


@dataclass(frozen=True)
class Plan:
    """A job with its course and what it needs; `why` says what was chosen because of the memory, if anything."""

    job: GenerationJob
    course: BatchPlan
    needs: MemoryEstimate
    why: str = ""


Needing = Callable[[GenerationJob, BatchPlan], MemoryEstimate]


def plan_within_memory(
    spec: SystemSpec, job: GenerationJob, needing: Needing, *, room: int | None, narrow: bool = False, new: bool = True
) -> Plan:
    """How a job can be done in `room` bytes, or in any number of them if that is None.

    First all clips together, then in smaller groups, then where `narrow` allows it in bfloat16. RequestError says what
    else would fit where nothing of that does; a `new` system could be loaded in other ways.
    """

    def tried(job: GenerationJob) -> Plan | None:
        for course in _courses(job):
            found = needing(job, course)
            if room is None or found.peak * SPARE <= room:
                return Plan(job, course, found, _why(job, course))
        return None

    if found := tried(job):
        return found
    plain = new and job.dtype == torch.float32 and job.quantize is None
    if plain and narrow and (found := tried(replace(job, dtype=torch.bfloat16))):
        return replace(found, why="; ".join(filter(None, ["in bfloat16, as float32 does not fit", found.why])))

    def possible(job: GenerationJob) -> bool:
        try:
            return needing(job, _SMALLEST).peak * SPARE <= (room or 0)
        except RequestError:  # of other dimensions, or for another device
            return False

    would = ["--half"] * bool(plain and not narrow and possible(replace(job, dtype=torch.bfloat16)))
    would += [f"--quantize {kind}" for kind in _QUANTIZED if plain and possible(replace(job, quantize=kind))]
    would += _smaller(spec, job, possible)
    least = needing(job, _SMALLEST)
    parts = ", ".join(
        f"{name} {format_bytes(size)}" for name, size in sorted(least.breakdown().items(), key=lambda part: -part[1])[:3]
    )
    mend = f"what would fit: {', or '.join(would)}" if would else "nothing of this model fits; take a smaller one"
    raise RequestError(
        f"too little memory: {format_bytes(least.peak)} are needed at least ({parts}, ...), {format_bytes(room or 0)} are there; {mend}"
    )


def estimator_for_loaded(system: SystemLike) -> Needing:
    """What jobs need beside a system that is there."""

    def needing(job: GenerationJob, course: BatchPlan) -> MemoryEstimate:
        found = estimate_memory(system, job, course)
        encoders = {name: size for name, size in found.persistent.items() if name.endswith("encoder")}
        return MemoryEstimate(encoders, found.phases)

    return needing


def split_request(request: Request, together: int) -> list[Request]:
    """A request as several, of so many clips each."""
    clips, negatives = request.expand(), request.negative_items()
    if together >= len(clips):
        return [request]
    parts = []
    for i in range(0, len(clips), together):
        own = clips[i : i + together]
        guidance = request.guidance
        if guidance is not None and negatives is not None:
            guidance = guidance.model_copy(update={"negative": tuple(negatives[i : i + together])})
        here = {
            "items": tuple(dict(clip.item) for clip in own),
            "seconds": None if request.seconds is None else tuple(clip.seconds for clip in own),
            "seed": tuple(clip.seed for clip in own),
            "continue_from": None if request.continue_from is None else tuple(clip.continue_from for clip in own),
            "variations": 1,
            "guidance": guidance,
        }
        parts.append(request.model_copy(update=here))
    return parts


def _courses(job: GenerationJob) -> Iterator[BatchPlan]:
    """From the quickest to the smallest."""
    together = len(job.frames)
    while True:
        for piece in _PIECES:
            yield BatchPlan(together, piece)
        if together == 1:
            return
        together = -(-together // 2)


def _why(job: GenerationJob, course: BatchPlan) -> str:
    together = f"{course.batch_size} of {len(job.frames)} clips at a time" if course.batch_size < len(job.frames) else ""
    pieces = f"{course.decode_chunk_frames} frames decoded at a time" if course.decode_chunk_frames else ""
    said = " and ".join(filter(None, [together, pieces]))
    return f"{said}, as the memory asks" if said else ""


def _smaller(spec: SystemSpec, job: GenerationJob, possible: Callable[[GenerationJob], bool]) -> list[str]:
    """Shorter clips and fewer of them, where these would fit."""
    rate = spec.codec.frame_format.frame_rate
    seconds = _most(int(max(job.frames) / rate), lambda n: possible(_cut(job, round(n * rate))))
    fewer = _most(len(job.frames), lambda n: possible(job.with_frames(job.frames[:n])))
    would = [f"clips of up to {seconds} s"] * bool(seconds)
    return would + [f"{fewer} clip{'s' if fewer > 1 else ''} instead of {len(job.frames)}"] * bool(fewer)


def _cut(job: GenerationJob, frames: int) -> GenerationJob:
    return job.with_frames(tuple(min(frames, each) for each in job.frames))


def _most(above: int, possible: Callable[[int], bool]) -> int:
    """The largest number below `above` that is possible, as all smaller ones are then; 0 where none is."""
    low = 0
    while above - low > 1:
        middle = (low + above) // 2
        low, above = (middle, above) if possible(middle) else (low, middle)
    return low
