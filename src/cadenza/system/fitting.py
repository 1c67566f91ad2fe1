"""Fitting: the course of a job that its memory allows, or an error that names what would fit."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from cadenza.core.errors import RequestError
from cadenza.core.memory import shown
from cadenza.system.forecast import Course, Job, Needs, Parts, needs
from cadenza.system.request import Request
from cadenza.system.spec import SystemSpec

SPARE = 1.05  # of what is foreseen, that must be free: it is not exact
_PIECES = (None, 24)  # frames decoded at a time: as the codec likes, or few
_SMALLEST = Course(1, _PIECES[-1])
_QUANTIZED = ("int8", "int4")


@dataclass(frozen=True)
class Fit:
    """A job with its course and what it needs; `why` says what was chosen because of the memory, if anything."""

    job: Job
    course: Course
    needs: Needs
    why: str = ""


Needing = Callable[[Job, Course], Needs]


def fitted(spec: SystemSpec, job: Job, needing: Needing, *, room: int | None, narrow: bool = False, new: bool = True) -> Fit:
    """How a job can be done in `room` bytes, or in any number of them if that is None.

    First all clips together, then in smaller groups, then where `narrow` allows it in bfloat16. RequestError says what
    else would fit where nothing of that does; a `new` system could be loaded in other ways.
    """

    def tried(job: Job) -> Fit | None:
        for course in _courses(job):
            found = needing(job, course)
            if room is None or found.peak * SPARE <= room:
                return Fit(job, course, found, _why(job, course))
        return None

    if found := tried(job):
        return found
    plain = new and job.dtype == torch.float32 and job.quantize is None
    if plain and narrow and (found := tried(replace(job, dtype=torch.bfloat16))):
        return replace(found, why="; ".join(filter(None, ["in bfloat16, as float32 does not fit", found.why])))

    def possible(job: Job) -> bool:
        try:
            return needing(job, _SMALLEST).peak * SPARE <= (room or 0)
        except RequestError:  # of other dimensions, or for another device
            return False

    would = ["--half"] * bool(plain and not narrow and possible(replace(job, dtype=torch.bfloat16)))
    would += [f"--quantize {kind}" for kind in _QUANTIZED if plain and possible(replace(job, quantize=kind))]
    would += _smaller(spec, job, possible)
    least = needing(job, _SMALLEST)
    parts = ", ".join(f"{name} {shown(size)}" for name, size in sorted(least.parts().items(), key=lambda part: -part[1])[:3])
    mend = f"what would fit: {', or '.join(would)}" if would else "nothing of this model fits; take a smaller one"
    raise RequestError(
        f"too little memory: {shown(least.peak)} are needed at least ({parts}, ...), {shown(room or 0)} are there; {mend}"
    )


def beside(system: Parts) -> Needing:
    """What jobs need beside a system that is there."""

    def needing(job: Job, course: Course) -> Needs:
        found = needs(system, job, course)
        encoders = {name: size for name, size in found.always.items() if name.endswith("encoder")}
        return Needs(encoders, found.phases)

    return needing


def groups(request: Request, together: int) -> list[Request]:
    """A request as several, of so many clips each."""
    clips, negatives = request.clips(), request.negatives()
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


def _courses(job: Job) -> Iterator[Course]:
    """From the quickest to the smallest."""
    together = len(job.frames)
    while True:
        for piece in _PIECES:
            yield Course(together, piece)
        if together == 1:
            return
        together = -(-together // 2)


def _why(job: Job, course: Course) -> str:
    together = f"{course.together} of {len(job.frames)} clips at a time" if course.together < len(job.frames) else ""
    pieces = f"{course.piece} frames decoded at a time" if course.piece else ""
    said = " and ".join(filter(None, [together, pieces]))
    return f"{said}, as the memory asks" if said else ""


def _smaller(spec: SystemSpec, job: Job, possible: Callable[[Job], bool]) -> list[str]:
    """Shorter clips and fewer of them, where these would fit."""
    rate = spec.codec.grid.frame_rate
    seconds = _most(int(max(job.frames) / rate), lambda n: possible(_cut(job, round(n * rate))))
    fewer = _most(len(job.frames), lambda n: possible(job.part(job.frames[:n])))
    would = [f"clips of up to {seconds} s"] * bool(seconds)
    return would + [f"{fewer} clip{'s' if fewer > 1 else ''} instead of {len(job.frames)}"] * bool(fewer)


def _cut(job: Job, frames: int) -> Job:
    return job.part(tuple(min(frames, each) for each in job.frames))


def _most(above: int, possible: Callable[[int], bool]) -> int:
    """The largest number below `above` that is possible, as all smaller ones are then; 0 where none is."""
    low = 0
    while above - low > 1:
        middle = (low + above) // 2
        low, above = (middle, above) if possible(middle) else (low, middle)
    return low
