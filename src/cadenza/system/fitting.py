"""Fitting: the course of a job that its memory allows, or an error that names what would fit."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from cadenza.core.errors import RequestError
from cadenza.core.memory import format_bytes
from cadenza.system.forecast import BatchPlan, GenerationJob, MemoryEstimate, SystemLike, estimate_memory
from cadenza.system.request import Request
from cadenza.system.spec import SystemSpec

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
