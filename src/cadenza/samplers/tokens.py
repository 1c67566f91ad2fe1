"""Sampling of tokens, and the token buffer of a generation in progress.

A token is drawn by the inverse of the cumulative distribution at a uniform number that depends only on the item's seed,
the frame and the codebook; it is therefore independent of the batch, the order of items, the window and the pattern.
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

_NOISE_BLOCK = 64  # frames per call of the random number generator


class TokenSampling(Spec):
    """Options of token sampling; temperature 0 takes the most likely token."""

    temperature: float = Field(default=1.0, ge=0, le=100, allow_inf_nan=False)
    top_k: int = Field(default=250, ge=0)  # sample from the k most likely tokens; 0: from all
    top_p: float = Field(default=0.0, ge=0, le=1)  # sample from the most likely tokens whose probabilities reach p; 0: from all
    allow_eos: bool = True  # the model may end an item before the requested frames


def uniform_noise(seeds: Sequence[int], first_frame: int, frames: int, codebooks: int) -> Float[Tensor, "b k f"]:
    """Return numbers in [0, 1), each a pure function of (seed, absolute frame, codebook)."""
    blocks = range(first_frame // _NOISE_BLOCK, (first_frame + frames + _NOISE_BLOCK - 1) // _NOISE_BLOCK)
    values = [[[_draw(seed, codebook, block) for block in blocks] for codebook in range(codebooks)] for seed in seeds]
    table = np.asarray(values, dtype=np.float32).reshape(len(seeds), codebooks, len(blocks) * _NOISE_BLOCK)
    offset = first_frame % _NOISE_BLOCK
    return torch.from_numpy(table[:, :, offset : offset + frames].copy())


def _draw(seed: int, codebook: int, block: int) -> np.ndarray:
    """Return 24 random bits as a float in [0, 1) for each frame of a block (Philox, Salmon et al. 2011)."""
    bits = np.random.Philox(key=seed % 2**64, counter=[0, block, codebook, 0]).random_raw(_NOISE_BLOCK)
    return (bits >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)


def sample_tokens(
    logits: Float[Tensor, "*shape v"], uniform: Float[Tensor, "*shape"], sampling: TokenSampling
) -> Int[Tensor, "*shape"]:
    """Return one token for each row of logits."""
    if sampling.temperature == 0:
        return logits.argmax(-1)
    logits = logits.float()
    logits = (logits - logits.amax(-1, keepdim=True)) / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        smallest = logits.topk(sampling.top_k).values[..., -1:]
        logits = logits.masked_fill(logits < smallest, -torch.inf)
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
    """Tokens of a generation in progress, with its noise and settings; only `sequence` and `lengths` change."""

    sequence: Int[Tensor, "b k s"]  # ids in pattern order; the special id at positions without a code
    lengths: Int[Tensor, " b"]  # frames of each item; smaller once its end is sampled
    frame: Int[Tensor, "b k s"]  # frame of each position; past every end for positions of no frame
    known: Bool[Tensor, "b k s"]  # codes that are given and not sampled
    uniform: Float[Tensor, "b k s"]  # noise
    eos_forbidden: Bool[Tensor, "b k s"] | None  # positions that cannot predict the end; None: the model has no end
    strength: Float[Tensor, "b s"] | None  # share of guidance at each step
    guidance: GuidanceMixer
    sampling: TokenSampling
    special: int  # id of positions without a code, and of the end

    def sample_step(self, logits: Float[Tensor, "nb k v"], step: PositionRange) -> None:
        """Sample one step from the logits of all branches; an item that has ended gets the special id."""
        strength = None if self.strength is None else step.shifted(-1).gather(self.strength, 1)[:, 0]
        logits = self.guidance(logits.float(), strength, spread=self.special)
        if self.eos_forbidden is not None:
            logits[:, :, -1].masked_fill_(self._at(self.eos_forbidden, step), -torch.inf)
        tokens = sample_tokens(logits, self._at(self.uniform, step), self.sampling)  # [b, k]
        tokens = torch.where(self._at(self.known, step), self._at(self.sequence, step), tokens)
        frame = self._at(self.frame, step)
        if self.eos_forbidden is not None:
            ended = (tokens[:, 0] == self.special) & (frame[:, 0] < self.lengths)
            self.lengths.copy_(torch.where(ended, frame[:, 0], self.lengths))
        tokens = tokens.masked_fill(frame >= self.lengths[:, None], self.special)
        step.scatter_(self.sequence, 2, tokens[:, :, None])

    def read_frames(self, steps: Int[Tensor, "b k f"], first: int) -> Codes:
        """Return the f frames from `first` on, whose codes are at `steps`; 0 after the end of an item."""
        ids, remaining = self.sequence.gather(2, steps.clamp(min=0)), self.lengths - first
        valid = torch.arange(ids.shape[2], device=ids.device) < remaining[:, None]
        return Codes(ids.masked_fill(~valid[:, None], 0), remaining.clamp(0, ids.shape[2]))

    @staticmethod
    def _at(x: Tensor, step: PositionRange) -> Tensor:
        return step.gather(x, 2)[:, :, 0]
