"""Clips: segments of audio files as items; which segment depends on (seed, epoch, index) alone."""

from collections.abc import Collection
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cadenza.core.errors import AudioError, DataError
from cadenza.data.items import Draw, chosen, draw_rng, kept
from cadenza.data.manifest import Clip, Manifest
from cadenza.dsp import files
from cadenza.dsp.audio import Audio


class Drawn(Protocol):
    """What the loader reads from: items by draw, and their ids."""

    def __len__(self) -> int: ...

    def __getitem__(self, draw: Draw, /) -> dict[str, Any]: ...

    def name(self, index: int) -> str:
        """The id of the item at an index."""
        ...


class Clips(Dataset[dict[str, Any]]):
    """Segments of `seconds` at one sample rate and channel count, short ones padded and with their true length.

    A clip counts as often as it holds whole segments (at least once); each draw takes one at a random place, or with
    `fixed` the segment of that number. `ids` limits the metadata that travels.
    """

    def __init__(
        self, manifest: Manifest, *, seconds: float, sample_rate: int, channels: int = 1, seed: int = 0,
        fixed: bool = False, ids: Collection[str] | None = None,
    ) -> None:  # fmt: skip
        self.manifest, self.sample_rate, self.channels = manifest, sample_rate, channels
        self.samples = round(seconds * sample_rate)
        if self.samples < 1:
            raise DataError(f"segments of {seconds} s hold no sample at {sample_rate} Hz; give more seconds")
        self.seconds, self.seed, self.fixed, self.ids = seconds, seed, fixed, ids
        counts = [1 if clip.seconds is None else max(1, int(clip.seconds / seconds + 1e-6)) for clip in manifest.clips]
        self.places = [(clip, part) for clip, count in enumerate(counts) for part in range(count)]

    def __len__(self) -> int:
        return len(self.places)

    def name(self, index: int) -> str:
        return self.manifest.clips[self.places[index][0]].id

    def __getitem__(self, draw: Draw | int) -> dict[str, Any]:
        draw = draw if isinstance(draw, Draw) else Draw(draw)
        rng = None if self.fixed else draw_rng(self.seed, draw)
        which, part = self.places[draw.index]
        clip = self.manifest.clips[which]
        info = clip.info()
        wanted = -(-self.samples * info.sample_rate // self.sample_rate)
        spare = max(0, info.frames - wanted)
        start = min(part * wanted, spare) if rng is None else rng.randint(0, spare)
        metadata = chosen(kept(clip.metadata(), self.ids), rng)
        wave = _read(clip, start, wanted).resample(self.sample_rate).mix(self.channels).wave
        times = {"seconds_start": start / info.sample_rate, "seconds_total": info.seconds}
        return {**times, **metadata, "id": clip.id, "audio": padded(wave, self.samples, self.sample_rate)}

    def split(self, count: int) -> tuple["Clips", "Clips"]:
        """The data set without, and as fixed segments with only, `count` clips held out by the hash of their ids."""
        same = {"seconds": self.seconds, "sample_rate": self.sample_rate, "channels": self.channels, "ids": self.ids}
        rest, held = self.manifest.split(count)
        return Clips(rest, **same, seed=self.seed, fixed=self.fixed), Clips(held, **same, seed=self.seed, fixed=True)


def padded(wave: Tensor, samples: int, sample_rate: int) -> Audio:
    """A wave [1, c, t] cut or filled with zeros to `samples`, with its true length."""
    length = min(wave.shape[-1], samples)
    room = wave.new_zeros(1, wave.shape[1], samples)
    room[..., :length] = wave[..., :length]
    return Audio(room, sample_rate, torch.tensor([length]))


def _read(clip: Clip, start: int, wanted: int) -> Audio:
    samples, sample_rate = files.read(clip.audio, start, wanted)
    if clip.sample_rate not in (None, sample_rate):
        raise AudioError(f"{clip.audio}: has {sample_rate} Hz, but the manifest says {clip.sample_rate}; make it again")
    return Audio(torch.from_numpy(samples.T.copy())[None], sample_rate)
