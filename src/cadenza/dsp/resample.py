"""Resampling at file boundaries: soxr at high quality on the host."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cadenza.core.errors import AudioError


def resampled_length(samples: int, before: int, after: int) -> int:
    """How many samples `samples` at rate `before` become at rate `after`: the exact quotient, rounded up."""
    return -(-samples * after // before)


def resample(wave: Float[Tensor, "*rest t"], before: int, after: int) -> Float[Tensor, "*rest u"]:
    """The same sound at rate `after`, with exactly `ceil(t * after / before)` samples; carries no gradient."""
    import soxr

    if before <= 0 or after <= 0:
        raise AudioError(f"resample: cannot go from {before} Hz to {after} Hz; sample rates are positive")
    if before == after or wave.numel() == 0:
        return wave if before == after else wave.new_zeros(*wave.shape[:-1], resampled_length(wave.shape[-1], before, after))
    wanted = resampled_length(wave.shape[-1], before, after)
    rows = wave.detach().to("cpu", torch.float32).reshape(-1, wave.shape[-1]).numpy()
    out = np.zeros((len(rows), wanted), dtype=np.float32)
    for row, target in zip(rows, out, strict=True):
        made = soxr.resample(row, before, after, quality="HQ")[:wanted]
        target[: len(made)] = made
    return torch.from_numpy(out).reshape(*wave.shape[:-1], wanted).to(wave.device, wave.dtype)
