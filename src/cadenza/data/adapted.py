"""Adapted: any map-style torch dataset of a user's as items."""

from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from cadenza.core.errors import DataError
from cadenza.data.clips import crop_or_pad
from cadenza.data.items import SampleIndex, pick_alternatives, sample_rng, select_holdout
from cadenza.dsp.audio import Audio, load_audio

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

    def name(self, index: int) -> str:
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
        where = f"item {self.name(draw.index)} of {type(self.dataset).__name__}"
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
        return {"id": self.name(draw.index), **times, **pick_alternatives(item, rng), "audio": audio}


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
