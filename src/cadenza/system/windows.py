"""Windowed generation of clips longer than the context of a generator.

A window begins `stride` frames after the previous one and starts with the frames that both share. Positions count from its
start, as in training; conditions and random numbers are those of the clip's own frames, so the tokens of an item do not
depend on the batch. (The extended generation of arXiv:2306.05284, as a stream.)
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
    generator: Generator, branches: Sequence[GuidanceBranch], inputs: GenerationInputs, *, stride: int | None = None
) -> Iterator[Codes | Latents]:
    """Yield the frames of clips of any length, each frame once; `branches` hold the conditions of the whole clips.

    Raises RequestError if a clip needs several windows and `stride` frames or the known frames do not suit one.
    """
    context, total, known = generator.spec.max_frames, inputs.frames.cpu(), inputs.known_frames
    stride = max(1, round(SHARE * context)) if stride is None else stride
    if int(total.max()) > context:
        if not 0 < stride < context:
            raise RequestError(
                f"a stride of {stride} frames does not suit windows of {context}; it must lie between 0 and that"
            )
        if known is not None and bool(known.mask[:, context:].any()):
            raise RequestError(f"frames are known after the first {context}, a window of this generator; give fewer")
    rows, start, shared = torch.arange(len(total)), 0, 0
    while True:
        left, window = total[rows] - start, slice(start, start + context)
        part = replace(
            inputs,
            frames=torch.full_like(left, context) if generator.spec.fixed_length else left.clamp(max=context),
            seeds=[inputs.seeds[i] for i in rows.tolist()],
            known_frames=known,
            start_frame=inputs.start_frame + start,
            guidance_schedule=_select(inputs.guidance_schedule, rows, window),
        )
        parts = [replace(branch, fused=_window_conditions(branch.fused, rows, window, total)) for branch in branches]
        generated, done = [], 0
        with closing(generator.stream(parts, part)) as chunks:  # type: ignore[type-var]  # a generator function's
            for chunk in chunks:
                generated.append(chunk)
                skip = max(0, shared - done)
                new = _cut(chunk, skip, left - done - skip, rows, len(total))
                done += chunk.data.shape[-1]
                if new.data.shape[-1]:
                    yield new
        whole = type(generated[0]).cat(generated)
        continues = (whole.lengths.cpu() == context) & (left > context)
        if not continues.any():
            return
        shared = context - stride
        data = whole.data[continues.to(whole.lengths.device), :, stride:]
        mask = torch.ones(len(data), data.shape[-1], dtype=torch.bool, device=data.device)
        known = KnownFrames(whole.with_data(data, mask.sum(1)), mask)
        rows, start = rows[continues], start + stride


def _select(x: Tensor | None, rows: Int[Tensor, " r"], window: slice = slice(None)) -> Tensor | None:
    """Return the items `rows` of a tensor [b, f, ...], and their frames in the window."""
    return None if x is None else x[rows.to(x.device), window]


def _window_conditions(
    fused: FusedConditions, rows: Int[Tensor, " r"], window: slice, total: Int[Tensor, " b"]
) -> FusedConditions:
    """Return the conditions of items `rows` at the frames of a window of clips of `total` frames."""

    def tokens(part: MaskedSequence | None) -> MaskedSequence | None:
        if part is None:
            return None
        own = rows.to(part.x.device)
        return MaskedSequence(part.x[own], part.mask[own], None if part.bias is None else part.bias[own, :, window])

    def curve(part: InterpolatedCondition) -> InterpolatedCondition:
        x, lengths, longest, frames = part.x, part.lengths, int(total.max()), total.to(part.x.device)
        context, own = window.stop - window.start, rows.to(part.x.device)
        if longest > context:
            whole = resample_sequence(x, lengths, frames, size=longest, mode=part.resize)[:, window]
            several, size = frames > context, max(whole.shape[1], x.shape[1])
            lengths = torch.where(several, (frames - window.start).clamp(0, whole.shape[1]), lengths)
            whole, x = (F.pad(each, (0, 0, 0, size - each.shape[1])) for each in (whole, x))
            x = torch.where(several[:, None, None], whole, x)  # a clip of one window keeps its own vectors, as it does alone
        return InterpolatedCondition(x[own], lengths[own], part.resize)

    return FusedConditions(
        cross=tokens(fused.cross),
        prepend=tokens(fused.prepend),
        add=_select(fused.add, rows, window),
        concat=_select(fused.concat, rows, window),
        global_vector=_select(fused.global_vector, rows),
        interpolated=None if fused.interpolated is None else tuple(map(curve, fused.interpolated)),
    )


def _cut(chunk: Codes | Latents, skip: int, left: Int[Tensor, " r"], rows: Int[Tensor, " r"], batch: int) -> Codes | Latents:
    """Return the frames of a chunk after `skip`, at most `left` of each item, as `rows` of a batch; others have length 0."""
    left, rows, data = left.to(chunk.lengths.device).clamp(min=0), rows.to(chunk.lengths.device), chunk.data
    lengths = torch.minimum((chunk.lengths - skip).clamp(min=0), left)
    data = data[..., skip : skip + int(left.max())]
    data = torch.where((torch.arange(data.shape[-1], device=data.device) < lengths[:, None])[:, None], data, 0)
    everything = data.new_zeros(batch, *data.shape[1:]).index_copy(0, rows, data)
    return chunk.with_data(everything, lengths.new_zeros(batch).index_copy(0, rows, lengths))
