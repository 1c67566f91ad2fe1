"""Windowed generation of clips longer than the context of a generator.

A window begins `stride` frames after the one before it and its first frames are those that both share. Positions count from
its start, as in training; conditions and random numbers are those of the clip's own frames. So the tokens of an
item do not depend on the batch. (The extended generation of arXiv:2306.05284, made a stream.)
"""

from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F

from cadenza.core.errors import RequestError
from cadenza.core.types import (
    Codes,
    FusedConditions,
    GuidanceBranch,
    InterpolatedCondition,
    KnownFrames,
    Latents,
    MaskedSequence,
)
from cadenza.generators.base import GenerationInputs, Generator
from cadenza.nn.conditioning import resample_sequence

SHARE = 0.6  # default stride / window, as in MusicGen: 18 of 30 seconds


def generate_windows(
    generator: Generator, branches: Sequence[GuidanceBranch], plan: GenerationInputs, *, stride: int | None = None
) -> Iterator[Codes | Latents]:
    """Yield the frames of clips of any length, each frame once; `branches` hold the conditions of the whole clips."""
    context = generator.spec.max_frames
    stride = max(1, round(SHARE * context)) if stride is None else stride
    total = plan.frames.cpu()
    _check(plan, context, stride, int(total.max()))
    rows, first, shared, known = torch.arange(len(total)), 0, 0, plan.known_frames
    while True:
        left = total[rows] - first
        frames = torch.full_like(left, context) if generator.spec.fixed_length else left.clamp(max=context)
        seeds = [plan.seeds[i] for i in rows.tolist()]
        last = first + context
        strength = (
            None
            if plan.guidance_schedule is None
            else plan.guidance_schedule[rows.to(plan.guidance_schedule.device), first:last]
        )
        part = replace(
            plan,
            frames=frames,
            seeds=seeds,
            known_frames=known,
            start_frame=plan.start_frame + first,
            guidance_schedule=strength,
        )
        there = [replace(branch, fused=_part(branch.fused, rows, first, last, total)) for branch in branches]
        window, done = [], 0
        with closing(generator.stream(there, part)) as chunks:  # type: ignore[type-var]  # a generator function's
            for chunk in chunks:
                window.append(chunk)
                skip = max(0, shared - done)
                new = _cut(chunk, skip, (left - done - skip).to(chunk.lengths.device))
                done += chunk.data.shape[-1]
                if new.data.shape[-1]:
                    yield _spread(new, rows, len(total))
        whole = type(window[0]).cat(window)
        goes_on = (whole.lengths.cpu() == context) & (left > context)
        if not goes_on.any():
            return
        shared = context - stride
        known = _tail(whole, goes_on, stride)
        rows, first = rows[goes_on], first + stride


def _check(plan: GenerationInputs, context: int, stride: int, longest: int) -> None:
    if longest <= context:
        return
    if not 0 < stride < context:
        raise RequestError(f"a stride of {stride} frames does not suit windows of {context}; it must lie between 0 and that")
    if plan.known_frames is not None and bool(plan.known_frames.mask[:, context:].any()):
        raise RequestError(f"frames are known after the first {context}, a window of this generator; give fewer")


def _part(fused: FusedConditions, rows: Int[Tensor, " r"], first: int, last: int, total: Int[Tensor, " b"]) -> FusedConditions:
    """Return the conditions of items `rows` at frames `first` to `last` of clips of `total` frames."""

    def tokens(x: MaskedSequence | None) -> MaskedSequence | None:
        if x is None:
            return None
        own = rows.to(x.x.device)
        return MaskedSequence(x.x[own], x.mask[own], None if x.bias is None else x.bias[own, :, first:last])

    def frames(x: Tensor | None) -> Tensor | None:
        return None if x is None else x[rows.to(x.device), first:last]

    def curve(x: InterpolatedCondition) -> InterpolatedCondition:
        longest, all_frames = int(total.max()), total.to(x.x.device)
        if longest > last - first:
            whole = resample_sequence(x.x, x.lengths, all_frames, size=longest, mode=x.resize)[:, first:last]
            lengths, continues = (all_frames - first).clamp(0, whole.shape[1]), all_frames > last - first
            size = max(whole.shape[1], x.x.shape[1])  # a clip of one window keeps its own vectors, as it does alone
            parts = [F.pad(each, (0, 0, 0, size - each.shape[1])) for each in (whole, x.x)]
            vectors = torch.where(continues[:, None, None], *parts)
            x = InterpolatedCondition(vectors, torch.where(continues, lengths, x.lengths), x.resize)
        own = rows.to(x.x.device)
        return InterpolatedCondition(x.x[own], x.lengths[own], x.resize)

    return FusedConditions(
        cross=tokens(fused.cross),
        prepend=tokens(fused.prepend),
        add=frames(fused.add),
        concat=frames(fused.concat),
        global_vector=None if fused.global_vector is None else fused.global_vector[rows.to(fused.global_vector.device)],
        interpolated=None if fused.interpolated is None else tuple(map(curve, fused.interpolated)),
    )


def _cut(chunk: Codes | Latents, skip: int, left: Int[Tensor, " r"]) -> Codes | Latents:
    """Remove the first `skip` frames of a chunk, and keep at most `left` frames of each item."""
    lengths = torch.minimum((chunk.lengths - skip).clamp(min=0), left.clamp(min=0))
    width = min(max(0, chunk.data.shape[-1] - skip), max(0, int(left.max())))
    content = chunk.data[..., skip : skip + width]
    there = torch.arange(width, device=content.device) < lengths[:, None]
    return chunk.with_data(torch.where(there[:, None], content, 0), lengths)


def _spread(chunk: Codes | Latents, rows: Int[Tensor, " r"], batch: int) -> Codes | Latents:
    """Return the chunk as one of the whole batch, with length 0 for the other items."""
    content, lengths = chunk.data, chunk.lengths
    if len(rows) == batch:
        return chunk
    rows = rows.to(content.device)
    everything = content.new_zeros(batch, *content.shape[1:]).index_copy(0, rows, content)
    return chunk.with_data(everything, lengths.new_zeros(batch).index_copy(0, rows, lengths))


def _tail(window: Codes | Latents, goes_on: Tensor, stride: int) -> KnownFrames:
    """Return the known frames of the next window: those of this one from `stride` on."""
    content = window.data[goes_on.to(window.lengths.device), :, stride:]
    mask = torch.ones(len(content), content.shape[-1], dtype=torch.bool, device=content.device)
    return KnownFrames(window.with_data(content, mask.sum(1)), mask)
