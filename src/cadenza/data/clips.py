"""Clips: segments of audio files as items; which segment depends on (seed, epoch, index) alone."""

import random
from collections.abc import Collection, Iterator
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset

from cadenza.core.errors import AudioError, DataError
from cadenza.data.items import SampleIndex, SegmentInfo, ToItem, compose, pick_alternatives, sample_rng, select_keys
from cadenza.data.manifest import Manifest, ManifestClip
from cadenza.dsp import files
from cadenza.dsp.audio import Audio


class ItemDataset(Protocol):
    """What the loader reads from: items by draw, and their ids."""

    def __len__(self) -> int: ...

    def __getitem__(self, draw: SampleIndex, /) -> dict[str, Any]: ...

    def name(self, index: int) -> str:
        """The id of the item at an index."""
        ...


TRIES = 20  # segments drawn in the stead of one that was rejected, before it is an error
FINEST = 64  # places at most that a clip's weight is worth, so that epochs stay finite


class AudioDataset(Dataset[dict[str, Any]]):
    """Segments of `seconds` at one sample rate and channel count, short ones padded and with their true length.

    A clip counts as often as it holds whole segments (at least once), times its weight; each draw takes one at a
    random place, or with `fixed` the segment of that number. `to_item` makes items of the metadata, after what the
    manifest makes of it; a segment that it rejects gives way to another. `ids` limits the metadata that travels.
    """

    def __init__(  # noqa: PLR0913
        self, manifest: Manifest, *, seconds: float, sample_rate: int, channels: int = 1, seed: int = 0,
        fixed: bool = False, ids: Collection[str] | None = None, to_item: ToItem | None = None,
    ) -> None:  # fmt: skip
        self.manifest, self.sample_rate, self.channels = manifest, sample_rate, channels
        self.samples = round(seconds * sample_rate)
        if self.samples < 1:
            raise DataError(f"segments of {seconds} s hold no sample at {sample_rate} Hz; give more seconds")
        self.seconds, self.seed, self.fixed, self.ids, self.to_item = seconds, seed, fixed, ids, to_item
        self._to_item = compose(manifest.to_item, to_item)
        self.places = [(clip, part) for clip, count in enumerate(self._counts()) for part in range(count)]
        if not self.places:
            raise DataError(f"{manifest.folder}: every clip has weight 0; give one some weight")

    def __len__(self) -> int:
        return len(self.places)

    def item_id(self, index: int) -> str:
        return self.manifest.clips[self.places[index][0]].id

    def __getitem__(self, draw: SampleIndex | int) -> dict[str, Any]:
        draw = draw if isinstance(draw, SampleIndex) else SampleIndex(draw)
        rng = None if self.fixed else sample_rng(self.seed, draw)
        index = draw.index
        for _ in range(TRIES):
            clip, segment = self._segment(index, rng)
            item = self._item(clip, segment)
            if item is not None:
                given = item.pop("audio", None)
                audio = segment.audio if given is None else given.resample(self.sample_rate).to_channels(self.channels)
                return {**item, "id": clip.id, "audio": crop_or_pad(audio.wave, self.samples, self.sample_rate)}
            index = (index + 1) % len(self) if rng is None else rng.randrange(len(self))
        raise DataError(
            f"to_item rejected {TRIES} segments on end, from '{self.item_id(draw.index)}' on; leave such clips out of the data"
        )

    def metadata_items(self) -> Iterator[dict[str, Any]]:
        """The item of each clip without its audio and without chance, lists of texts whole; rejected ones are left out."""
        for index, (which, part) in enumerate(self.places):
            if part:
                continue
            clip = self.manifest.clips[which]
            item: dict[str, Any] | None = select_keys(clip.metadata(), self.ids)
            if self._to_item is not None:
                item = self._item(*self._segment(index, None), choose=False)
            if item is not None:
                yield {**{name: value for name, value in item.items() if name != "audio"}, "id": clip.id}

    def _counts(self) -> list[int]:
        """Places of each clip."""
        clips, whole = self.manifest.clips, self.manifest.random_crop
        counts = [max(1, int(clip.seconds / self.seconds + 1e-6)) if whole and clip.seconds else 1 for clip in clips]
        weights = [clip.weight for clip in clips]
        if self.fixed or len(set(weights)) == 1:
            return [count if weight else 0 for count, weight in zip(counts, weights, strict=True)]
        shares = [count * weight for count, weight in zip(counts, weights, strict=True)]
        unit = max(min((share for share in shares if share), default=1.0), max(shares) / FINEST / max(counts))
        return [max(1, round(share / unit)) if share else 0 for share in shares]

    def _segment(self, index: int, rng: random.Random | None) -> tuple[ManifestClip, SegmentInfo]:
        which, part = self.places[index]
        clip = self.manifest.clips[which]
        info = clip.info()
        wanted = -(-self.samples * info.sample_rate // self.sample_rate)
        spare = max(0, info.frames - wanted) if self.manifest.random_crop else 0
        start = min(part * wanted, spare) if rng is None else rng.randint(0, spare)

        def read() -> Audio:
            return _read(clip, start, wanted).resample(self.sample_rate).to_channels(self.channels)

        return clip, SegmentInfo(clip.id, str(clip.audio), start / info.sample_rate, info.seconds, rng, read)

    def _item(self, clip: ManifestClip, segment: SegmentInfo, *, choose: bool = True) -> dict[str, Any] | None:
        """The item of a segment, or None where it is rejected."""
        made: Any = clip.metadata()
        if self._to_item is not None:
            made = self._to_item(made, segment)
            if made is None:
                return None
        audio = {"audio": made["audio"]} if isinstance(made.get("audio"), Audio) else {}
        made = select_keys(made, self.ids)
        times = {"seconds_start": segment.start, "seconds_total": segment.total}
        return {**times, **(pick_alternatives(made, segment.rng) if choose else made), **audio}

    def split(self, count: int) -> tuple["AudioDataset", "AudioDataset"]:
        """The data set without, and as fixed segments with only, `count` clips held out by the hash of their ids."""
        same = {"seconds": self.seconds, "sample_rate": self.sample_rate, "channels": self.channels, "ids": self.ids}
        same |= {"to_item": self.to_item}
        rest, held = self.manifest.split(count)
        return AudioDataset(rest, **same, seed=self.seed, fixed=self.fixed), AudioDataset(
            held, **same, seed=self.seed, fixed=True
        )


def crop_or_pad(wave: Tensor, samples: int, sample_rate: int) -> Audio:
    """A wave [1, c, t] cut or filled with zeros to `samples`, with its true length."""
    length = min(wave.shape[-1], samples)
    room = wave.new_zeros(1, wave.shape[1], samples)
    room[..., :length] = wave[..., :length]
    return Audio(room, sample_rate, torch.tensor([length]))


def _read(clip: ManifestClip, start: int, wanted: int) -> Audio:
    samples, sample_rate = files.read(clip.audio, start, wanted)
    if clip.sample_rate not in (None, sample_rate):
        raise AudioError(f"{clip.audio}: has {sample_rate} Hz, but the manifest says {clip.sample_rate}; make it again")
    return Audio(torch.from_numpy(samples.T.copy())[None], sample_rate)
