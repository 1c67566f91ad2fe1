"""Audio: waves of a batch of clips with their true lengths."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cadenza.core.errors import AudioError
from cadenza.dsp import files
from cadenza.dsp.resample import resample
from cadenza.dsp.sections import Place


@dataclass(frozen=True)
class Audio:
    """`wave` is full scale at ±1; `lengths` are true samples per clip (all of them when not given)."""

    wave: Float[Tensor, "b c t"]
    sample_rate: int
    lengths: Int[Tensor, " b"] = None  # type: ignore[assignment]  # filled in below

    def __post_init__(self) -> None:
        if self.lengths is None:
            full = torch.full((self.wave.shape[0],), self.wave.shape[-1], dtype=torch.long, device=self.wave.device)
            object.__setattr__(self, "lengths", full)

    @classmethod
    def pad_and_stack(cls, clips: Sequence["Audio"]) -> "Audio":
        """Clips of one sample rate and channel count as one batch, padded with zeros at the end."""
        kinds = {(clip.sample_rate, clip.wave.shape[1]) for clip in clips}
        if len(kinds) != 1:
            found = ", ".join(f"{channels} channel(s) at {rate} Hz" for rate, channels in sorted(kinds)) or "no clip"
            raise AudioError(f"a batch needs clips of one kind and got {found}; use `resample` and `mix` first")
        waves = [clip.wave[0, :, : int(clip.lengths[0])] for part in clips for clip in part]
        lengths = torch.tensor([wave.shape[-1] for wave in waves], device=waves[0].device)
        batch = waves[0].new_zeros(len(waves), waves[0].shape[0], int(lengths.max()))
        for row, wave in zip(batch, waves, strict=True):
            row[:, : wave.shape[-1]] = wave
        return cls(batch, clips[0].sample_rate, lengths)

    def __len__(self) -> int:
        return len(self.wave)

    def __iter__(self) -> Iterator["Audio"]:
        """Each clip as a batch of one, without its padding."""
        for i, length in enumerate(self.lengths.tolist()):
            yield Audio(self.wave[i : i + 1, :, :length], self.sample_rate, self.lengths[i : i + 1])

    @property
    def seconds(self) -> Float[Tensor, " b"]:
        return self.lengths / self.sample_rate

    def to(self, device: torch.device | str) -> Self:
        return replace(self, wave=self.wave.to(device), lengths=self.lengths.to(device))

    def resample(self, sample_rate: int) -> "Audio":
        """The same sound at another sample rate, each clip by itself so that padding does not leak."""
        if sample_rate == self.sample_rate:
            return self
        return Audio.pad_and_stack([Audio(resample(c.wave, self.sample_rate, sample_rate), sample_rate) for c in self])

    def to_channels(self, channels: int) -> "Audio":
        """The same sound in mono (mean of the channels) or copied to `channels`."""
        if self.wave.shape[1] == channels:
            return self
        return replace(self, wave=self.wave.mean(1, keepdim=True).expand(-1, channels, -1))

    def save(self, path: str | Path, *, tags: Mapping[str, str] | None = None, subtype: str | None = None) -> list[Path]:
        """Writes one file a clip (`out.wav`, or `out-1.wav`, `out-2.wav`, ... for several); never partly, never clipped."""
        path = Path(path)
        paths = [path] if len(self) == 1 else [path.with_stem(f"{path.stem}-{i + 1}") for i in range(len(self))]
        for clip, target in zip(self, paths, strict=True):
            files.write(target, clip.wave[0].detach().float().cpu().numpy().T, self.sample_rate, tags=tags, subtype=subtype)
        return paths


def load_audio(path: Place, start: int = 0, frames: int | None = None) -> Audio:
    """An audio file, or `frames` samples of it from `start`, as a batch of one clip."""
    samples, sample_rate = files.read(path, start, frames)
    return Audio(torch.from_numpy(samples.T.copy())[None], sample_rate)
