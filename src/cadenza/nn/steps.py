"""What belongs to frames, brought to the steps of a sequence that writes them.

`frame` [b k s] says which frame each codebook holds at each step, below 0 where none. The output of a step predicts
the step after it, so what a frame should hear enters one step before.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from cadenza.core.types import InterpolatedCondition, MaskedSequence
from cadenza.nn.positions import sinusoidal_embedding
from cadenza.nn.resize import resample_sequence


def frames_to_steps(x: Float[Tensor, "b f d"], frame: Int[Tensor, "b k s"]) -> Float[Tensor, "b s d"]:
    """Frame t's vector at the step whose output predicts codebook 0 of frame t, nothing at the others."""
    coming = F.pad(frame[:, 0, 1:], (0, 1), value=-1)
    there = (coming >= 0) & (coming < x.shape[1])
    index = coming.where(there, 0)[..., None].expand(-1, -1, x.shape[-1])
    return x.gather(1, index).masked_fill(~there[..., None], 0)


def interpolate_to_steps(curve: InterpolatedCondition, frame: Int[Tensor, "b k s"]) -> Float[Tensor, "b s d"]:
    """A curve stretched over all steps of each item, from the first up to the last that holds a frame."""
    steps = frame.shape[2]
    used = ((frame >= 0).any(1) * torch.arange(1, steps + 1, device=frame.device)).amax(1)
    return resample_sequence(curve.x, curve.lengths, used, size=steps, mode=curve.resize)


def latest_predicted_frame(frame: Int[Tensor, "b k s"], frames: int) -> Int[Tensor, "b s"]:
    """The latest of the frames that a step's output predicts, within `frames`; the first where it predicts none."""
    return F.pad(frame[:, :, 1:], (0, 1), value=-1).amax(1).clamp(0, frames - 1)


def expand_token_bias(tokens: MaskedSequence, frame: Int[Tensor, "b k s"], prefix: int) -> MaskedSequence:
    """Tokens whose bias is that of each position, after a prefix that hears what the first step does."""
    if tokens.bias is None:
        return tokens
    moment = latest_predicted_frame(frame, tokens.bias.shape[2])
    moment = torch.cat([moment[:, :1].expand(-1, prefix), moment], 1)
    index = moment[:, None].expand(-1, tokens.bias.shape[1], -1)
    return MaskedSequence(tokens.x, tokens.mask, tokens.bias.gather(2, index))


def add_token_positions(tokens: MaskedSequence, scale: float, *, attend_padding: bool) -> MaskedSequence:
    """Tokens with sinusoids of their places added; padding has a place only where it is attended to."""
    if attend_padding:
        places = torch.arange(tokens.x.shape[1], device=tokens.x.device).expand(len(tokens.x), -1)
    else:
        places = tokens.mask.cumsum(1) - tokens.mask.long()
    return MaskedSequence(
        tokens.x + scale * sinusoidal_embedding(places, tokens.x.shape[-1]).to(tokens.x.dtype), tokens.mask, tokens.bias
    )
