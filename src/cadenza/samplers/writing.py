"""Sequences of codes that are written step by step, where they lie: guided, drawn and ended without the host.

`torch.where` with a number would send that to a GPU and wait; `masked_fill` does not.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from cadenza.core.types import Codes
from cadenza.nn.span import PositionRange
from cadenza.samplers.guidance import GuidanceMixer
from cadenza.samplers.tokens import TokenSampling, sample_tokens


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
