"""Audio clips: loading, saving, resampling, batching."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from cadenza.core.errors import AudioError, RequestError
from cadenza.dsp import audio_io
from cadenza.dsp.byte_range import AudioPath


def resampled_length(samples: int, before: int, after: int) -> int:
    """Return the number of samples after resampling: ceil(samples * after / before)."""
    return -(-samples * after // before)


def resample(wave: Float[Tensor, "*rest t"], before: int, after: int) -> Float[Tensor, "*rest u"]:
    """Resample on the CPU with soxr (high quality) to exactly ceil(t * after / before) samples; no gradient."""
    import soxr

    if before <= 0 or after <= 0:
        raise AudioError(f"resample: cannot convert {before} Hz to {after} Hz; sample rates must be positive")
    if before == after:
        return wave
    length = resampled_length(wave.shape[-1], before, after)
    if wave.numel() == 0:
        return wave.new_zeros(*wave.shape[:-1], length)
    rows = wave.detach().to("cpu", torch.float32).reshape(-1, wave.shape[-1]).numpy()
    out = np.zeros((len(rows), length), dtype=np.float32)
    for row, target in zip(rows, out, strict=True):
        resampled = soxr.resample(row, before, after, quality="HQ")[:length]
        target[: len(resampled)] = resampled
    return torch.from_numpy(out).reshape(*wave.shape[:-1], length).to(wave.device, wave.dtype)


@dataclass(frozen=True)
class Audio:
    """A batch of clips: samples in [-1, 1], sample rate in Hz, true samples of each clip (default all)."""

    wave: Float[Tensor, "b c t"]
    sample_rate: int
    lengths: Int[Tensor, " b"] = None  # type: ignore[assignment]  # filled in below

    def __post_init__(self) -> None:
        if self.lengths is None:
            full = torch.full((self.wave.shape[0],), self.wave.shape[-1], dtype=torch.long, device=self.wave.device)
            object.__setattr__(self, "lengths", full)

    @classmethod
    def pad_and_stack(cls, clips: Sequence["Audio"]) -> "Audio":
        """Return clips of one sample rate and channel count as one batch, zero-padded at the end."""
        kinds = {(clip.sample_rate, clip.wave.shape[1]) for clip in clips}
        if len(kinds) != 1:
            given = ", ".join(f"{channels} channel(s) at {rate} Hz" for rate, channels in sorted(kinds)) or "no clip"
            problem = f"a batch needs clips of one sample rate and channel count, got {given}"
            raise AudioError(f"{problem}; use `resample` and `to_channels` first")
        waves = [clip.wave[0, :, : int(clip.lengths[0])] for part in clips for clip in part]
        lengths = torch.tensor([wave.shape[-1] for wave in waves], device=waves[0].device)
        batch = waves[0].new_zeros(len(waves), waves[0].shape[0], int(lengths.max()))
        for row, wave in zip(batch, waves, strict=True):
            row[:, : wave.shape[-1]] = wave
        return cls(batch, clips[0].sample_rate, lengths)

    def __len__(self) -> int:
        return len(self.wave)

    def __iter__(self) -> Iterator["Audio"]:
        """Yield each clip as a batch of one without its padding."""
        for i, length in enumerate(self.lengths.tolist()):
            yield Audio(self.wave[i : i + 1, :, :length], self.sample_rate, self.lengths[i : i + 1])

    @property
    def seconds(self) -> Float[Tensor, " b"]:
        return self.lengths / self.sample_rate

    def to(self, device: torch.device | str) -> Self:
        return replace(self, wave=self.wave.to(device), lengths=self.lengths.to(device))

    def resample(self, sample_rate: int) -> "Audio":
        """Resample each clip by itself, so that padding does not leak."""
        if sample_rate == self.sample_rate:
            return self
        return Audio.pad_and_stack([Audio(resample(c.wave, self.sample_rate, sample_rate), sample_rate) for c in self])

    def to_channels(self, channels: int) -> "Audio":
        """Average to mono, then repeat to `channels`; unchanged if it has that many."""
        if self.wave.shape[1] == channels:
            return self
        return replace(self, wave=self.wave.mean(1, keepdim=True).expand(-1, channels, -1))

    def save(self, path: str | Path, *, tags: Mapping[str, str] | None = None, subtype: str | None = None) -> list[Path]:
        """Write one file per clip (`out.wav`, or `out-1.wav`, `out-2.wav`, ...), atomically, not clipped; return paths."""
        path = Path(path)
        paths = [path] if len(self) == 1 else [path.with_stem(f"{path.stem}-{i + 1}") for i in range(len(self))]
        for clip, target in zip(self, paths, strict=True):
            samples = clip.wave[0].detach().float().cpu().numpy().T
            audio_io.write_samples(target, samples, self.sample_rate, tags=tags, subtype=subtype)
        return paths


def load_audio(path: AudioPath, start: int = 0, frames: int | None = None) -> Audio:
    """Load an audio file, or `frames` samples of it from sample `start`, as a batch of one clip."""
    samples, sample_rate = audio_io.read_samples(path, start, frames)
    return Audio(torch.from_numpy(samples.T.copy())[None], sample_rate)


def load_condition_audio(values: Sequence[Any], sample_rate: int, *, channels: int = 1) -> Audio:
    """Return values (Audio of one clip, or a path) as one batch; raise RequestError for unusable ones."""
    return Audio.pad_and_stack([_load_value(value).resample(sample_rate).to_channels(channels) for value in values])


def silence(sample_rate: int, *, samples: int = 1) -> Audio:
    """Return `samples` zeros, the placeholder of absent audio."""
    return Audio(torch.zeros(1, 1, samples), sample_rate)


def _load_value(value: Any) -> Audio:
    if isinstance(value, str | Path):
        try:
            value = load_audio(value)
        except AudioError as error:
            raise RequestError(str(error)) from None
    if not isinstance(value, Audio):
        raise RequestError(f"expected Audio or the path of an audio file, not {type(value).__name__}")
    if len(value) != 1:
        raise RequestError(f"expected one clip for each item, but this Audio holds {len(value)}; give one each")
    if int(value.lengths) == 0:
        raise RequestError("the audio has no samples; give a longer clip, or leave it out")
    if not bool(torch.isfinite(value.wave).all()):
        raise RequestError("the audio contains NaN or infinite samples; export it again")
    return value
