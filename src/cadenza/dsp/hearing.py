"""Hearing: sounds that a condition is given as, of one kind and as one batch."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from cadenza.core.errors import AudioError, RequestError
from cadenza.dsp.audio import Audio, load_audio


def load_condition_audio(values: Sequence[Any], sample_rate: int, *, channels: int = 1) -> Audio:
    """Values, each Audio of one clip or the path of a file, as one batch; RequestError says what cannot be heard."""
    return Audio.pad_and_stack([_one(value).resample(sample_rate).to_channels(channels) for value in values])


def silence(sample_rate: int, *, samples: int = 1) -> Audio:
    """What stands in for a sound that is absent: `samples` zeros."""
    return Audio(torch.zeros(1, 1, samples), sample_rate)


def _one(value: Any) -> Audio:
    if isinstance(value, str | Path):
        try:
            value = load_audio(value)
        except AudioError as error:
            raise RequestError(str(error)) from None
    if not isinstance(value, Audio):
        raise RequestError(f"a sound is Audio or the path of an audio file, not {type(value).__name__}")
    if len(value) != 1:
        raise RequestError(f"one clip is needed for each item, and this Audio holds {len(value)}; give one each")
    if int(value.lengths) == 0:
        raise RequestError("the sound has no samples; give one that lasts, or leave it out")
    if not bool(torch.isfinite(value.wave).all()):
        raise RequestError("the sound holds samples that are not finite; write it anew")
    return value
