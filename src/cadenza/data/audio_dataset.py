"""Clips: segments of audio files as items; which segment depends on (seed, epoch, index) alone."""

import random
from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from cadenza.core.errors import AudioError, DataError
from cadenza.data.items import (
    SampleIndex,
    SegmentInfo,
    ToItem,
    compose,
    pick_alternatives,
    sample_rng,
    select_holdout,
    select_keys,
)
from cadenza.data.manifest import Manifest, ManifestClip
from cadenza.dsp import audio_io
from cadenza.dsp.audio import Audio, load_audio


class ItemDataset(Protocol):
    """What the loader reads from: items by draw, and their ids."""

    def __len__(self) -> int: ...

    def __getitem__(self, draw: SampleIndex, /) -> dict[str, Any]: ...

    def item_id(self, index: int) -> str:
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
    samples, sample_rate = audio_io.read(clip.audio, start, wanted)
    if clip.sample_rate not in (None, sample_rate):
        raise AudioError(f"{clip.audio}: has {sample_rate} Hz, but the manifest says {clip.sample_rate}; make it again")
    return Audio(torch.from_numpy(samples.T.copy())[None], sample_rate)


_MEND = "return a mapping such as {'audio': wave, 'prompt': text}"


class TorchDatasetAdapter(Dataset[dict[str, Any]]):
    """Items of segments like those of `Clips`, from a dataset of mappings with item ids, or of tuples in any order.

    In a tuple the one float tensor is the audio, the one string the prompt, and mappings are metadata; anything else
    is an error. `data_rate` is the sample rate of raw tensors (an `Audio` or a "sample_rate" in the mapping says its own).
    """

    def __init__(
        self, dataset: Any, *, seconds: float, sample_rate: int, channels: int = 1, data_rate: int | None = None,
        seed: int = 0, fixed: bool = False,
    ) -> None:  # fmt: skip
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise DataError(f"{type(dataset).__name__} has no __len__ and __getitem__; training needs to reach items by index")
        if not len(dataset):
            raise DataError(f"{type(dataset).__name__} is empty")
        self.dataset, self.sample_rate, self.channels, self.data_rate = dataset, sample_rate, channels, data_rate
        self.samples, self.seed, self.fixed = max(1, round(seconds * sample_rate)), seed, fixed
        self.places = list(range(len(dataset)))

    def __len__(self) -> int:
        return len(self.places)

    def item_id(self, index: int) -> str:
        return str(self.places[index])

    def split(self, count: int) -> tuple["TorchDatasetAdapter", "TorchDatasetAdapter"]:
        """The data set without, and as fixed segments with only, `count` items held out by the hash of their indices."""
        if not 0 <= count < len(self):
            raise DataError(f"cannot hold out {count} of {len(self)} items; leave at least one to train on")
        out = select_holdout(map(str, self.places), count)
        rest, held = copy(self), copy(self)
        rest.places = [place for place in self.places if str(place) not in out]
        held.places, held.fixed = [place for place in self.places if str(place) in out], True
        return rest, held

    def __getitem__(self, draw: SampleIndex | int) -> dict[str, Any]:
        draw = draw if isinstance(draw, SampleIndex) else SampleIndex(draw)
        rng = None if self.fixed else sample_rng(self.seed, draw)
        where = f"item {self.item_id(draw.index)} of {type(self.dataset).__name__}"
        item = to_item(self.dataset[self.places[draw.index]], where)
        rate = item.pop("sample_rate", None) or self.data_rate
        whole = to_audio(item.pop("audio"), rate, where)
        wanted = -(-self.samples * whole.sample_rate // self.sample_rate)
        spare = max(0, whole.wave.shape[-1] - wanted)
        start = 0 if rng is None else rng.randint(0, spare)
        part = Audio(whole.wave[..., start : start + wanted], whole.sample_rate)
        wave = part.resample(self.sample_rate).to_channels(self.channels).wave
        times = {"seconds_start": start / whole.sample_rate, "seconds_total": whole.wave.shape[-1] / whole.sample_rate}
        audio = crop_or_pad(wave, self.samples, self.sample_rate)
        return {"id": self.item_id(draw.index), **times, **pick_alternatives(item, rng), "audio": audio}


def to_item(raw: Any, where: str) -> dict[str, Any]:
    """What a user's dataset returned, as a mapping with "audio"; DataError that names the choices if that is a guess."""
    if isinstance(raw, Mapping):
        if "audio" not in raw:
            raise DataError(f"{where}: has no 'audio'; there are: {', '.join(map(str, raw)) or 'no keys'}; {_MEND}")
        return dict(raw)
    if isinstance(raw, Tensor | np.ndarray | Audio):
        raw = (raw,)
    if not isinstance(raw, Sequence) or isinstance(raw, str):
        raise DataError(f"{where}: is a {type(raw).__name__}; {_MEND}")
    audio = [place for place, value in enumerate(raw) if _is_audio(value)]
    texts = [place for place, value in enumerate(raw) if isinstance(value, str)]
    for kind, places in {"audio": audio, "prompt": texts}.items():
        if len(places) > 1:
            said = ", ".join(f"{place}: {_describe(raw[place])}" for place in places)
            raise DataError(f"{where}: which of these is the {kind}? ({said}); {_MEND}")
    if not audio:
        said = ", ".join(f"{place}: {_describe(value)}" for place, value in enumerate(raw))
        raise DataError(f"{where}: no float tensor that could be the audio ({said}); {_MEND}")
    item: dict[str, Any] = {"audio": raw[audio[0]]}
    if texts:
        item["prompt"] = raw[texts[0]]
    for place, value in enumerate(raw):
        if isinstance(value, Mapping):
            item |= {key: entry for key, entry in value.items() if key not in item}
        elif value is not None and place not in (*audio, *texts):
            raise DataError(f"{where}: what is {place}: {_describe(value)}? {_MEND}")
    return item


def to_audio(value: Any, sample_rate: int | None, where: str) -> Audio:
    """One clip from an `Audio`, a path, or a wave [t] or [c, t] of a declared sample rate."""
    if isinstance(value, str | Path):
        return load_audio(value)
    if isinstance(value, Audio):
        if len(value) != 1:
            raise DataError(f"{where}: its audio is a batch of {len(value)}; give one clip an item")
        return next(iter(value))
    try:
        wave = torch.as_tensor(value).detach().cpu()
    except (RuntimeError, TypeError, ValueError):
        raise DataError(f"{where}: its audio is {_describe(value)}; give an Audio, a path or a wave") from None
    if not wave.is_floating_point():
        raise DataError(f"{where}: its audio is {_describe(value)}; give floats at full scale ±1")
    shape, wave = list(wave.shape), wave[None] if wave.ndim == 1 else wave
    if wave.ndim != 2 or not wave.numel() or wave.shape[0] > max(8, wave.shape[1]):
        raise DataError(f"{where}: its audio has shape {shape}; give [samples] or [channels, samples]")
    if sample_rate is None:
        raise DataError(f"{where}: its audio is a bare tensor; declare the sample rate with data_rate=, or return an Audio")
    if not bool(wave.isfinite().all()):
        raise DataError(f"{where}: its audio holds NaN or infinite samples")
    return Audio(wave.float()[None], int(sample_rate))


def _is_audio(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point() and value.ndim > 0
    return isinstance(value, Audio) or (isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.ndim > 0)


def _describe(value: Any) -> str:
    if isinstance(value, Tensor | np.ndarray):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return repr(value)[:40]
