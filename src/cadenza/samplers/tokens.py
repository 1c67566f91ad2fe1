"""Tokens from logits: one uniform number per code, drawn beforehand, and the inverse of the cumulative distribution.

A uniform depends on the item's seed, the frame and the codebook alone; so a token does not depend on the batch,
the order of items, the window or the pattern.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from cadenza.core.spec import Spec
from cadenza.core.types import Codes
from cadenza.nn.kv_cache import PositionRange
from cadenza.samplers.guidance import GuidanceMixer

_BLOCK = 64  # frames that are drawn together


class TokenSampling(Spec):
    """How tokens are drawn; temperature 0 takes the likeliest."""

    temperature: float = Field(default=1.0, ge=0, le=100, allow_inf_nan=False)
    top_k: int = Field(default=250, ge=0)  # draw among the k likeliest; 0: among all
    top_p: float = Field(default=0.0, ge=0, le=1)  # draw among the likeliest that together reach p; 0: among all
    allow_eos: bool = True  # whether the model may end an item before the frames asked for


def uniform_noise(seeds: Sequence[int], first_frame: int, frames: int, codebooks: int) -> Float[Tensor, "b k f"]:
    """Numbers in [0, 1), each a pure function of (seed, absolute frame, codebook)."""
    blocks = range(first_frame // _BLOCK, (first_frame + frames + _BLOCK - 1) // _BLOCK)
    drawn = [[[_draw(seed, row, block) for block in blocks] for row in range(codebooks)] for seed in seeds]
    table = np.asarray(drawn, dtype=np.float32).reshape(len(seeds), codebooks, len(blocks) * _BLOCK)
    offset = first_frame % _BLOCK
    return torch.from_numpy(table[:, :, offset : offset + frames].copy())


def _draw(seed: int, row: int, block: int) -> np.ndarray:
    """24 bits for each of `_BLOCK` frames from a counter-based generator (Philox, Salmon et al. 2011)."""
    bits = np.random.Philox(key=seed % 2**64, counter=[0, block, row, 0]).random_raw(_BLOCK)
    return (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def sample_tokens(
    logits: Float[Tensor, "*shape v"], uniform: Float[Tensor, "*shape"], sampling: TokenSampling
) -> Int[Tensor, "*shape"]:
    """One token for each row of logits."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    logits = logits.float()
    logits = (logits - logits.amax(-1, keepdim=True)) / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        least = logits.topk(sampling.top_k).values[..., -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    probability = logits.softmax(-1)
    if 0 < sampling.top_p < 1:
        ranked, order = probability.sort(dim=-1, descending=True)
        outside = ranked.cumsum(-1) - ranked >= sampling.top_p
        probability = probability.scatter(-1, order, ranked.masked_fill(outside, 0))
    cumulative = probability.cumsum(-1)
    below = cumulative <= uniform.to(cumulative)[..., None] * cumulative[..., -1:]
    return below.sum(-1).clamp(max=logits.shape[-1] - 1)


@dataclass
class DecodingBuffer:
    """A batch being written; `sequence` and `ends` change in place, and nothing else does."""

    sequence: Int[Tensor, "b k s"]
    lengths: Int[Tensor, " b"]  # frames of each item, as far as is known
    frame: Int[Tensor, "b k s"]  # that each code belongs to; past every end where to none
    known: Bool[Tensor, "b k s"]
    uniform: Float[Tensor, "b k s"]
    eos_forbidden: Bool[Tensor, "b k s"] | None  # where an item cannot end; None: nowhere can it
    strength: Float[Tensor, "b s"] | None  # of guidance at each step
    guidance: GuidanceMixer
    sampling: TokenSampling
    special: int  # the id of what holds no code, and the last one predicted where items can end

    def sample_step(self, logits: Float[Tensor, "nb k v"], step: PositionRange) -> None:
        """Writes one step, of which the branches of guidance say `logits`; of an item that has ended the special id."""
        strength = None if self.strength is None else step.shifted(-1).gather(self.strength, 1)[:, 0]
        logits = self.guidance(logits.float(), strength, spread=self.special)
        if self.eos_forbidden is not None:
            logits[:, :, -1].masked_fill_(self._at(self.eos_forbidden, step), -torch.inf)
        drawn = sample_tokens(logits, self._at(self.uniform, step), self.sampling)
        drawn = torch.where(self._at(self.known, step), self._at(self.sequence, step), drawn)
        frame = self._at(self.frame, step)
        if self.eos_forbidden is not None:
            ended = (drawn[:, 0] == self.special) & (frame[:, 0] < self.lengths)
            self.lengths.copy_(torch.where(ended, frame[:, 0], self.lengths))
        step.scatter_(self.sequence, 2, drawn.masked_fill(frame >= self.lengths[:, None], self.special)[:, :, None])

    def read_frames(self, steps: Int[Tensor, "b k f"], first: int) -> Codes:
        """The frames from `first` on that were written at `steps`, 0 where an item has ended."""
        ids, left = self.sequence.gather(2, steps.clamp(min=0)), self.lengths - first
        true = torch.arange(ids.shape[2], device=ids.device) < left[:, None]
        return Codes(ids.masked_fill(~true[:, None], 0), left.clamp(0, ids.shape[2]))

    @staticmethod
    def _at(x: Tensor, step: PositionRange) -> Tensor:
        return step.gather(x, 2)[:, :, 0]
