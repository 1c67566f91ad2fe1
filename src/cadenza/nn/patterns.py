"""Codebook patterns: which codes of which frames are predicted at which step of a sequence.

A pattern is a list of steps, and a step a list of (frame, codebook). Step 0 is usually empty: the start. A frame at or
past the pattern's end means that its codebook waits at this step, and holds the special id.
"Simple and Controllable Music Generation" (arXiv:2306.05284), section 2.1.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Annotated, ClassVar, Literal

import torch
from jaxtyping import Bool, Float, Int, Shaped
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn.functional import pad

from cadenza.core.spec import Spec

Step = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Pattern:
    """The order of the codes of `frames` frames and `codebooks` codebooks; every code occurs at most once."""

    codebooks: int
    frames: int
    steps: tuple[Step, ...]

    def __post_init__(self) -> None:
        latest = [-1] * self.codebooks
        for number, step in enumerate(self.steps):
            rows = [row for _, row in step]
            if len(set(rows)) < len(rows):
                raise ValueError(f"step {number} of the pattern names a codebook twice: {step}")
            for frame, row in step:
                if frame <= latest[row]:
                    raise ValueError(f"step {number} of the pattern goes back to frame {frame} of codebook {row}")
                latest[row] = frame

    def __len__(self) -> int:
        return len(self.steps)

    @property
    def valid_steps(self) -> int:
        """Steps before the first one that contains a frame past the end."""
        return len(self.steps) - max([0, *(frame + 1 - self.frames for step in self.steps for frame, _ in step)])

    @property
    def starts_empty(self) -> bool:
        return bool(self.steps) and not self.steps[0]

    @cached_property
    def frame_at_step(self) -> Int[Tensor, "k s"]:
        """Return the frame of each codebook at each step, -1 for none; past the end while it waits."""
        table = torch.full((self.codebooks, len(self.steps)), -1)
        cells = [(row, number, frame) for number, step in enumerate(self.steps) for frame, row in step]
        if cells:
            rows, numbers, frames = torch.tensor(cells).unbind(1)
            table[rows, numbers] = frames
        return table

    @cached_property
    def step_of_frame(self) -> Int[Tensor, "k f"]:
        """Return the step of each code, -1 for none."""
        table = torch.full((self.codebooks, self.frames), -1)
        inside = (self.frame_at_step >= 0) & (self.frame_at_step < self.frames)
        rows, numbers = inside.nonzero(as_tuple=True)
        table[rows, self.frame_at_step[rows, numbers]] = numbers
        return table

    def complete_frames_after(self) -> list[int]:
        """Return for each step the number of leading frames that are complete after it."""
        last = self.step_of_frame.max(0).values.cummax(0).values if self.frames else torch.zeros(0, dtype=torch.long)
        return torch.searchsorted(last, torch.arange(len(self.steps)), right=True).tolist()


def stack_tables(tables: Sequence[Int[Tensor, "k _"]]) -> Int[Tensor, "b k n"]:
    """Stack `frame_at_step` or `step_of_frame` of several patterns, padded with -1."""
    longest = max(table.shape[1] for table in tables)
    return torch.stack([pad(table, (0, longest - table.shape[1]), value=-1) for table in tables])


def build_sequence(
    pattern: Pattern, ids: Int[Tensor, "b k f"], special: int, *, steps: int | None = None
) -> tuple[Int[Tensor, "b k s"], Bool[Tensor, "k s"]]:
    """Arrange codes in the order of the pattern's first `steps` steps; return them with the mask of the codes."""
    _check(pattern, ids, frames=ids.shape[-1])
    frame = pattern.frame_at_step[:, :steps].to(ids.device)
    mask = (frame >= 0) & (frame < pattern.frames)
    padded = pad(ids, (0, 1), value=special)
    return padded.gather(2, frame.where(mask, pattern.frames).expand(len(ids), -1, -1)), mask


def revert_logits(
    pattern: Pattern, logits: Float[Tensor, "b k s v"], fill: float = float("nan")
) -> tuple[Float[Tensor, "b k f v"], Bool[Tensor, "k f"]]:
    """Arrange logits by frame, with the mask of those available; a step's output predicts the next step."""
    _check(pattern, logits)
    step = pattern.step_of_frame.to(logits.device)
    mask = (step >= 0) & (step < logits.shape[2])
    index = (step - int(pattern.starts_empty)).where(mask, 0)[None, :, :, None].expand(len(logits), -1, -1, logits.shape[-1])
    return logits.gather(2, index).masked_fill(~mask[None, :, :, None], fill), mask


def _check(pattern: Pattern, x: Shaped[Tensor, "b k ..."], frames: int | None = None) -> None:
    if x.shape[1] != pattern.codebooks:
        raise ValueError(f"the pattern has {pattern.codebooks} codebooks, the tensor {x.shape[1]}")
    if frames is not None and frames != pattern.frames:
        raise ValueError(f"the pattern has {pattern.frames} frames, the codes {frames}")


class _Rule(Spec):
    """Rule that gives a pattern for a number of codebooks and frames."""

    prefix_stable: ClassVar[bool] = True  # longer clips have the same first steps, so that the model can end a clip

    def pattern(self, codebooks: int, frames: int) -> Pattern:
        """Return the pattern of a clip; raise ValueError, naming the field, for an unsuitable number of codebooks."""
        return _pattern(self, codebooks, frames)  # type: ignore[arg-type]  # frozen, so hashable

    def iter_steps(self, codebooks: int, frames: int) -> Iterable[Step]:
        """Yield the steps of a clip."""
        raise NotImplementedError(f"{type(self).__name__} must define iter_steps")


@lru_cache(256)
def _pattern(rule: _Rule, codebooks: int, frames: int) -> Pattern:
    return Pattern(codebooks, frames, tuple(rule.iter_steps(codebooks, frames)))


class Parallel(_Rule):
    """All codebooks of a frame at one step."""

    type: Literal["parallel"] = "parallel"
    empty_initial: int = Field(default=0, ge=-1)  # empty steps after the start; -1 omits the start as well

    def iter_steps(self, codebooks: int, frames: int) -> Iterable[Step]:
        yield from [()] * (1 + self.empty_initial)
        for frame in range(frames):
            yield tuple((frame, row) for row in range(codebooks))


class Delay(_Rule):
    """Codebook k of a frame `delays[k]` steps after codebook 0; 0, 1, 2, ... when not given."""

    type: Literal["delay"] = "delay"
    delays: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    flatten_first: int = Field(default=0, ge=0)  # leading frames that are written one code a step
    empty_initial: int = Field(default=0, ge=0)

    def iter_steps(self, codebooks: int, frames: int) -> Iterable[Step]:
        delays = _per_codebook("delays", self.delays, tuple(range(codebooks)))
        yield from [()] * (1 + self.empty_initial)
        for frame in range(min(frames, self.flatten_first)):
            yield from (((frame, row),) for row in range(codebooks))
        yield from _delayed(delays, self.flatten_first, frames, first_row=0)


class Unroll(_Rule):
    """Each frame over several steps: codebooks with equal `flattening` share one; `delays` shift whole steps."""

    type: Literal["unroll"] = "unroll"
    flattening: tuple[Annotated[int, Field(ge=0)], ...] | None = None  # 0, 1, 2, ... when not given
    delays: tuple[Annotated[int, Field(ge=0)], ...] | None = None  # none when not given

    @model_validator(mode="after")
    def _one_delay_a_step(self) -> "Unroll":
        pairs = set(zip(self.flattening or (), self.delays or (), strict=False))
        if len(pairs) > len({inner for inner, _ in pairs}):
            raise ValueError("delays: codebooks that share a step (equal flattening) must have the same delay")
        return self

    def iter_steps(self, codebooks: int, frames: int) -> Iterable[Step]:
        flattening = _per_codebook("flattening", self.flattening, tuple(range(codebooks)))
        delays = _per_codebook("delays", self.delays, (0,) * codebooks)
        groups = [[row for row in range(codebooks) if flattening[row] == inner] for inner in sorted(set(flattening))]
        moments = range(frames + max(delays))
        timed = [
            (moment, tuple((moment - delays[group[0]], row) for row in group))
            for moment in moments
            for group in groups
            if moment >= delays[group[0]]
        ]
        yield ()
        yield from (step for _, step in sorted(timed))


class CoarseFirst(_Rule):
    """Codebook 0 of the whole clip, then the others with `delays` among them."""

    type: Literal["coarse_first"] = "coarse_first"
    delays: tuple[Annotated[int, Field(ge=0)], ...] | None = None  # of codebooks 1, 2, ...; none when not given
    prefix_stable: ClassVar[bool] = False

    def iter_steps(self, codebooks: int, frames: int) -> Iterable[Step]:
        delays = _per_codebook("delays", self.delays, (0,) * (codebooks - 1))
        yield ()
        yield from (((frame, 0),) for frame in range(frames))
        yield from _delayed(delays, 0, frames, first_row=1)


class MusicLM(_Rule):
    """Codebooks in groups of `group_by`, one group after the other over the whole clip, one code a step."""

    type: Literal["musiclm"] = "musiclm"
    group_by: int = Field(default=2, ge=1)
    prefix_stable: ClassVar[bool] = False

    def iter_steps(self, codebooks: int, frames: int) -> Iterable[Step]:
        if codebooks % self.group_by:
            raise ValueError(f"group_by: {codebooks} codebooks do not make groups of {self.group_by}")
        yield ()
        for group in range(0, codebooks, self.group_by):
            for frame in range(frames):
                yield from (((frame, row),) for row in range(group, group + self.group_by))


PatternSpec = Annotated[Delay | Parallel | Unroll | CoarseFirst | MusicLM, Field(discriminator="type")]


def _delayed(delays: tuple[int, ...], start: int, frames: int, *, first_row: int) -> Iterable[Step]:
    for moment in range(start, frames + max(delays, default=-frames)):
        yield tuple((moment - delay, first_row + i) for i, delay in enumerate(delays) if moment - delay >= start)


def _per_codebook(name: str, given: tuple[int, ...] | None, default: tuple[int, ...]) -> tuple[int, ...]:
    if given is not None and len(given) != len(default):
        raise ValueError(f"{name}: {len(given)} numbers are given, this codec needs {len(default)}")
    return default if given is None else given
