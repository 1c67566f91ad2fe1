"""Datasets of audio segments: from the files of a manifest, or from a user's torch dataset."""

import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import IterableDataset

from cadenza.core.errors import AudioError, DataError
from cadenza.data.items import SegmentDataset, SegmentInfo, ToItem, compose
from cadenza.data.manifest import Manifest, ManifestClip
from cadenza.dsp import audio_io
from cadenza.dsp.audio import Audio, load_audio

MAX_REJECTED = 20  # segments that `to_item` may reject in a row
MAX_SEGMENTS_PER_WEIGHT = 64  # bounds the epoch length if weights differ by much
_EXPECTED_ITEM = "return a mapping such as {'audio': wave, 'prompt': text}"


class AudioDataset(SegmentDataset):
    """Segments of `seconds` at one sample rate and channel count; short clips are padded with zeros.

    A clip has as many segments as fit into it (at least one), times its weight. `to_item` builds items from the
    metadata after the manifest's own function; if it rejects a segment, another one is taken. `ids` selects metadata.
    """

    def __init__(  # noqa: PLR0913
        self, manifest: Manifest, *, seconds: float, sample_rate: int, channels: int = 1, seed: int = 0,
        fixed: bool = False, ids: Collection[str] | None = None, to_item: ToItem | None = None,
    ) -> None:  # fmt: skip
        self.manifest, self.sample_rate, self.channels = manifest, sample_rate, channels
        self.samples = round(seconds * sample_rate)
        if self.samples < 1:
            raise DataError(f"segments of {seconds} s are shorter than one sample at {sample_rate} Hz; use a larger `seconds`")
        self.seconds, self.seed, self.fixed, self.ids, self.to_item = seconds, seed, fixed, ids, to_item
        self._to_item = compose(manifest.to_item, to_item)
        self.use_clips(range(len(manifest.clips)))

    def use_clips(self, clips: Iterable[int]) -> None:
        super().use_clips(clips)
        if not self.segments:
            raise DataError(f"{self.manifest.folder}: every clip has weight 0; set a positive weight")

    def clip_id(self, clip: int) -> str:
        return self.manifest.clips[clip].id

    def count_segments(self) -> list[int]:
        clips, random_crop = [self.manifest.clips[clip] for clip in self.clip_indices], self.manifest.random_crop
        counts = [max(1, int(clip.seconds / self.seconds + 1e-6)) if random_crop and clip.seconds else 1 for clip in clips]
        weights = [clip.weight for clip in clips]
        if self.fixed or len(set(weights)) == 1:
            return [count if weight else 0 for count, weight in zip(counts, weights, strict=True)]
        shares = [count * weight for count, weight in zip(counts, weights, strict=True)]
        smallest = min((share for share in shares if share), default=1.0)
        unit = max(smallest, max(shares) / MAX_SEGMENTS_PER_WEIGHT / max(counts))
        return [max(1, round(share / unit)) if share else 0 for share in shares]

    def read_item(self, index: int, rng: random.Random | None) -> dict[str, Any]:
        first = index
        for _ in range(MAX_REJECTED):
            clip, segment = self._segment(index, rng)
            item = self._item(clip, segment)
            if item is not None:
                audio = item.pop("audio", None)
                audio = segment.audio if audio is None else audio.resample(self.sample_rate).to_channels(self.channels)
                return {**item, "id": clip.id, "audio": crop_or_pad(audio.wave, self.samples, self.sample_rate)}
            index = (index + 1) % len(self) if rng is None else rng.randrange(len(self))
        raise DataError(
            f"to_item rejected {MAX_REJECTED} segments in a row, starting at '{self.item_id(first)}'; exclude such clips"
        )

    def metadata_items(self) -> Iterator[dict[str, Any]]:
        """Yield the item of each clip that is not rejected, without audio or randomness; lists of texts stay whole."""
        for index in self.first_segments():
            clip = self.manifest.clips[self.segments[index][0]]
            if self._to_item is None:  # reads no audio
                metadata = clip.metadata()
                yield {**{key: x for key, x in metadata.items() if self.ids is None or key in self.ids}, "id": clip.id}
            elif (item := self._item(*self._segment(index, None), pick=False)) is not None:
                yield {**{key: value for key, value in item.items() if key != "audio"}, "id": clip.id}

    def _segment(self, index: int, rng: random.Random | None) -> tuple[ManifestClip, SegmentInfo]:
        number, part = self.segments[index]
        clip = self.manifest.clips[number]
        info = clip.info()
        frames = -(-self.samples * info.sample_rate // self.sample_rate)
        start = self.segment_start(part, frames, info.frames, rng, random_crop=self.manifest.random_crop)

        def read() -> Audio:
            return _read_clip(clip, start, frames).resample(self.sample_rate).to_channels(self.channels)

        return clip, SegmentInfo(clip.id, str(clip.audio), start / info.sample_rate, info.seconds, rng, read)

    def _item(self, clip: ManifestClip, segment: SegmentInfo, *, pick: bool = True) -> dict[str, Any] | None:
        """Return the item of a segment, or None if it is rejected."""
        item: Any = clip.metadata()
        if self._to_item is not None:
            item = self._to_item(item, segment)
            if item is None:
                return None
        audio = {"audio": item["audio"]} if isinstance(item.get("audio"), Audio) else {}
        return {**self.finish_item(item, segment, pick=pick), **audio}


def crop_or_pad(wave: Tensor, samples: int, sample_rate: int) -> Audio:
    """Return a wave [1, c, t] cut or zero-padded to `samples`, with its true length."""
    length = min(wave.shape[-1], samples)
    return Audio(F.pad(wave[..., :length], (0, samples - length)), sample_rate, torch.tensor([length]))


def _read_clip(clip: ManifestClip, start: int, frames: int) -> Audio:
    samples, sample_rate = audio_io.read_samples(clip.audio, start, frames)
    if clip.sample_rate not in (None, sample_rate):
        raise AudioError(
            f"{clip.audio}: sample rate is {sample_rate} Hz, but the manifest has {clip.sample_rate} Hz; create it again"
        )
    return Audio(torch.from_numpy(samples.T.copy())[None], sample_rate)


class TorchDatasetAdapter(SegmentDataset):
    """One segment per item of a torch dataset that returns mappings with item ids, or tuples in any order.

    In a tuple the only float tensor is the audio, the only string the prompt, and mappings are metadata; anything else
    raises DataError. `data_rate` is the sample rate in Hz of bare tensors; an `Audio` or a "sample_rate" overrides it.
    """

    def __init__(
        self, dataset: Any, *, seconds: float, sample_rate: int, channels: int = 1, data_rate: int | None = None,
        seed: int = 0, fixed: bool = False,
    ) -> None:  # fmt: skip
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
            raise DataError(f"{type(dataset).__name__} has no __len__ and __getitem__; training reads items by index")
        if not len(dataset):
            raise DataError(f"{type(dataset).__name__} is empty")
        self.dataset, self.sample_rate, self.channels, self.data_rate = dataset, sample_rate, channels, data_rate
        self.samples, self.seed, self.fixed = max(1, round(seconds * sample_rate)), seed, fixed
        self.use_clips(range(len(dataset)))

    def clip_id(self, clip: int) -> str:
        return str(clip)

    def read_item(self, index: int, rng: random.Random | None) -> dict[str, Any]:
        name = self.item_id(index)
        source = f"item {name} of {type(self.dataset).__name__}"
        item = _parse_item(self.dataset[self.segments[index][0]], source)
        sample_rate = item.pop("sample_rate", None) or self.data_rate
        clip = _parse_audio(item.pop("audio"), sample_rate, source)
        frames = -(-self.samples * clip.sample_rate // self.sample_rate)
        start = self.segment_start(0, frames, clip.wave.shape[-1], rng)
        segment = Audio(clip.wave[..., start : start + frames], clip.sample_rate)
        wave = segment.resample(self.sample_rate).to_channels(self.channels).wave
        total = clip.wave.shape[-1] / clip.sample_rate
        info = SegmentInfo(name, source, start / clip.sample_rate, total, rng, lambda: segment)
        return {"id": name, **self.finish_item(item, info), "audio": crop_or_pad(wave, self.samples, self.sample_rate)}


def _parse_item(raw: Any, source: str) -> dict[str, Any]:
    """Return an item of a user's dataset as a mapping with "audio"; DataError lists the choices if it is ambiguous."""
    if isinstance(raw, Mapping):
        if "audio" not in raw:
            raise DataError(f"{source}: key 'audio' not found. Keys: {', '.join(map(str, raw)) or 'none'}; {_EXPECTED_ITEM}")
        return dict(raw)
    if isinstance(raw, Tensor | np.ndarray | Audio):
        raw = (raw,)
    if not isinstance(raw, Sequence) or isinstance(raw, str):
        raise DataError(f"{source}: is a {type(raw).__name__}; {_EXPECTED_ITEM}")
    entries = [f"{index}: {_describe(value)}" for index, value in enumerate(raw)]
    audio = [index for index, value in enumerate(raw) if _is_audio(value)]
    texts = [index for index, value in enumerate(raw) if isinstance(value, str)]
    for kind, indices in {"audio": audio, "prompt": texts}.items():
        if len(indices) > 1:
            candidates = ", ".join(entries[index] for index in indices)
            raise DataError(f"{source}: several entries could be the {kind} ({candidates}); {_EXPECTED_ITEM}")
    if not audio:
        raise DataError(
            f"{source}: no entry is a float tensor that could be the audio ({', '.join(entries)}); {_EXPECTED_ITEM}"
        )
    item: dict[str, Any] = {"audio": raw[audio[0]]}
    if texts:
        item["prompt"] = raw[texts[0]]
    for index, value in enumerate(raw):
        if isinstance(value, Mapping):
            item |= {key: entry for key, entry in value.items() if key not in item}
        elif value is not None and index not in (*audio, *texts):
            raise DataError(f"{source}: entry {entries[index]} is not audio, text or a mapping; {_EXPECTED_ITEM}")
    return item


def _parse_audio(value: Any, sample_rate: int | None, source: str) -> Audio:
    """Return one clip from an `Audio`, a path, or a float wave [t] or [c, t] at `sample_rate` Hz."""
    if isinstance(value, str | Path):
        return load_audio(value)
    if isinstance(value, Audio):
        if len(value) != 1:
            raise DataError(f"{source}: the audio is a batch of {len(value)}; return one clip per item")
        return next(iter(value))
    try:
        wave = torch.as_tensor(value).detach().cpu()
    except (RuntimeError, TypeError, ValueError):
        raise DataError(f"{source}: the audio is {_describe(value)}; return an Audio, a path or a wave") from None
    if not wave.is_floating_point():
        raise DataError(f"{source}: the audio is {_describe(value)}; return floats in -1 to 1")
    shape, wave = list(wave.shape), wave[None] if wave.ndim == 1 else wave
    if wave.ndim != 2 or not wave.numel() or wave.shape[0] > max(8, wave.shape[1]):
        raise DataError(f"{source}: the audio has shape {shape}; return [samples] or [channels, samples]")
    if sample_rate is None:
        raise DataError(f"{source}: the audio is a bare tensor; declare the sample rate with data_rate=, or return an Audio")
    if not bool(wave.isfinite().all()):
        raise DataError(f"{source}: the audio contains NaN or infinite samples")
    return Audio(wave.float()[None], int(sample_rate))


def _is_audio(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.is_floating_point() and value.ndim > 0
    return isinstance(value, Audio) or (isinstance(value, np.ndarray) and value.dtype.kind == "f" and value.ndim > 0)


def _describe(value: Any) -> str:
    if isinstance(value, Tensor | np.ndarray):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return repr(value)[:40]
