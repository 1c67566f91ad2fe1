"""Arrays: folders of encoded clips as stable-audio-tools writes them, one `.npy` and one `.json` each, as items.

Floats [d, f] are latents and integers [k, f] codes. What is drawn knows its true place: `seconds_start` is that of the
window, and frames that the json's `padding_mask` calls padding are not part of the clip.
"""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch.utils.data import Dataset

from cadenza.codecs.base import Codec
from cadenza.core.errors import DataError
from cadenza.core.types import Codes, FrameFormat, Latents
from cadenza.data.encoded_store import EncodedStore
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
from cadenza.dsp.audio import Audio

_OF_THE_CUT = (
    "padding_mask",
    "seconds_start",
    "seconds_total",
    "timestamps",
    "path",
    "relpath",
    "load_time",
    "latent_filename",
)


@dataclass(frozen=True)
class PreEncodedClip:
    """One encoded clip: its file, what is beside it, and how much of it is real."""

    id: str
    path: Path
    frames: int
    metadata: dict[str, Any]
    start: float  # of the first frame in the sound it was cut from, in seconds
    total: float | None  # of that sound


@dataclass(frozen=True)
class PreEncodedFolder:
    """Encoded clips in a fixed order, and how items are made of them."""

    clips: Sequence[PreEncodedClip]
    to_item: ToItem | None = None
    random_crop: bool = True  # otherwise only the beginning of each clip is used
    frames: int | None = None  # of a window, where the data say it

    def with_transform(self, to_item: ToItem) -> Self:
        """The same clips, with `to_item` made of what is an item so far."""
        return replace(self, to_item=compose(self.to_item, to_item))


class PreEncodedDataset(Dataset[dict[str, Any]]):
    """Windows of `frames` frames of a codec's `frame_format`, short clips padded with zeros and with their true length.

    A clip counts as often as it holds whole windows (at least once); without random crops, once and from its start.
    """

    def __init__(
        self, arrays: PreEncodedFolder, *, frames: int, frame_format: FrameFormat, seed: int = 0, fixed: bool = False,
        ids: Collection[str] | None = None, to_item: ToItem | None = None,
    ) -> None:  # fmt: skip
        self.frames = frames if arrays.frames is None else arrays.frames
        if self.frames < 1:
            raise DataError(f"windows of {self.frames} frames hold nothing; give at least 1")
        if not arrays.clips:
            raise DataError("no encoded clip to learn from; give a folder of .npy files")
        self.clips, self.frame_format, self.seed, self.fixed, self.ids = list(arrays.clips), frame_format, seed, fixed, ids
        self.random_crop, self.to_item = arrays.random_crop, compose(arrays.to_item, to_item)
        self.places = self._places()

    def __len__(self) -> int:
        return len(self.places)

    @property
    def frame_rate(self) -> float:
        return self.frame_format.frame_rate

    def item_id(self, index: int) -> str:
        return self.clips[self.places[index][0]].id

    def __getitem__(self, draw: SampleIndex | int) -> dict[str, Any]:
        draw = draw if isinstance(draw, SampleIndex) else SampleIndex(draw)
        rng = None if self.fixed else sample_rng(self.seed, draw)
        which, part = self.places[draw.index]
        clip = self.clips[which]
        spare = max(0, clip.frames - self.frames) if self.random_crop else 0
        start = min(part * self.frames, spare) if rng is None else rng.randint(0, spare)
        length = min(self.frames, clip.frames - start)
        found = torch.from_numpy(np.array(self._array(clip)[:, start : start + length]))
        signal = self._signal(found, length)
        total = clip.start + clip.frames / self.frame_rate if clip.total is None else clip.total
        segment = SegmentInfo(clip.id, str(clip.path), clip.start + start / self.frame_rate, total, rng, _no_audio)
        item = clip.metadata if self.to_item is None else self.to_item(dict(clip.metadata), segment)
        if item is None:
            raise DataError(f"{clip.path}: encoded clips cannot be rejected; leave it out of the folder")
        times = {"seconds_start": segment.start, "seconds_total": segment.total}
        return {**times, **pick_alternatives(select_keys(item, self.ids), rng), "id": clip.id, self.frame_format.kind: signal}

    def metadata_items(self) -> list[dict[str, Any]]:
        """The item of each clip without its frames and without chance."""
        plain = copy(self)
        plain.fixed = True
        first = [index for index, (_, part) in enumerate(self.places) if part == 0]
        return [{name: value for name, value in plain[index].items() if name != self.frame_format.kind} for index in first]

    def split(self, count: int) -> tuple[Self, Self]:
        """The data set without, and as fixed windows with only, `count` clips held out by the hash of their ids."""
        if not 0 <= count < len(self.clips):
            raise DataError(f"cannot hold out {count} of {len(self.clips)} clips; leave at least one to train on")
        out = select_holdout((clip.id for clip in self.clips), count)
        rest, held = copy(self), copy(self)
        rest.clips = [clip for clip in self.clips if clip.id not in out]
        held.clips, held.fixed = [clip for clip in self.clips if clip.id in out], True
        rest.places, held.places = rest._places(), held._places()
        return rest, held

    def _places(self) -> list[tuple[int, int]]:
        counts = [max(1, clip.frames // self.frames) if self.random_crop else 1 for clip in self.clips]
        return [(clip, part) for clip, count in enumerate(counts) for part in range(count)]

    def _array(self, clip: PreEncodedClip) -> np.ndarray:
        found = load_array(clip.path)
        kind = "codes" if np.issubdtype(found.dtype, np.integer) else "latents"
        if kind != self.frame_format.kind or len(found) != self.frame_format.channels:
            raise DataError(
                f"{clip.path}: holds {kind} of {len(found)} rows, and this system's codec makes {self.frame_format.kind} of "
                f"{self.frame_format.channels}; encode the audio with this codec"
            )
        if kind == "codes" and found.size and not 0 <= int(found.min()) <= int(found.max()) < self.frame_format.cardinality:
            raise DataError(
                f"{clip.path}: holds codes outside 0 to {self.frame_format.cardinality - 1}; encode the audio with this codec"
            )
        return found

    def _signal(self, found: torch.Tensor, length: int) -> Codes | Latents:
        codes = self.frame_format.kind == "codes"
        room = torch.zeros(1, len(found), self.frames, dtype=torch.long if codes else torch.float32)
        room[0, :, :length] = found
        return (Codes if codes else Latents)(room, torch.tensor([length]))


def load_array(path: Path) -> np.ndarray:
    """The array [rows, frames] in a file, mapped and not read; a leading axis of one is taken off."""
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not a whole .npy array ({error}); encode the clip again") from None
    found = found[0] if found.ndim == 3 and len(found) == 1 else found
    if found.ndim != 2 or not found.size or found.dtype.kind not in "fiu":
        raise DataError(f"{path}: holds {found.dtype} {list(found.shape)}; an encoded clip is numbers [rows, frames]")
    return found


def scan_pre_encoded(folder: str | Path, *, prefix: str = "", random_crop: bool = True) -> PreEncodedFolder:
    """The encoded clips under a folder, in order of path, or those that its `filelist.txt` names."""
    folder = Path(folder)
    listed = folder / "filelist.txt"
    if listed.is_file():
        names = [line.strip() for line in listed.read_text(encoding="utf-8").splitlines() if line.strip()]
        paths = [folder / name for name in names]
        if missing := [path for path in paths if not path.is_file()]:
            raise DataError(f"{listed}: names {len(missing)} files that are not there, the first {missing[0]}; mend the list")
    else:
        paths = sorted(path for path in folder.rglob("*.npy") if not path.name.startswith("."))
    if not paths:
        raise DataError(f"{folder}: no .npy file in it; give a folder that pre_encode wrote")
    clips = [_array(path, prefix + path.relative_to(folder).with_suffix("").as_posix()) for path in paths]
    return PreEncodedFolder(clips, random_crop=random_crop)


def is_pre_encoded(path: str | Path) -> bool:
    """Whether a path is a folder of encoded clips: it or a folder in it has a `.npy` with its `.json`."""
    path = Path(path)
    found = next(path.rglob("*.npy"), None) if path.is_dir() else None
    return found is not None and found.with_suffix(".json").exists()


def _array(path: Path, name: str) -> PreEncodedClip:
    beside = path.with_suffix(".json")
    try:
        data = json.loads(beside.read_text(encoding="utf-8")) if beside.exists() else {}
    except (OSError, ValueError) as error:
        raise DataError(f"{beside}: cannot be read: {error}; encode the clip again") from None
    if not isinstance(data, Mapping):
        raise DataError(f"{beside}: must hold a mapping from id to value, not a {type(data).__name__}")
    frames = load_array(path).shape[1]
    mask = np.asarray(data.get("padding_mask") or [], dtype=float).reshape(-1)
    real = int(mask.sum()) if len(mask) == frames and mask.any() else frames
    metadata = {key: value for key, value in data.items() if key not in (*_OF_THE_CUT, "id", "audio")}
    total = data.get("seconds_total")
    start = data.get("seconds_start")
    return PreEncodedClip(name, path, real, metadata, _seconds(start) or 0.0, _seconds(total))


def _seconds(value: Any) -> float | None:
    """Seconds from a number or a list of one."""
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    return float(value) if isinstance(value, int | float) and 0 <= value < math.inf else None


def _no_audio() -> Audio:
    raise DataError("encoded clips hold no audio; make what needs it before they are encoded, or train on the audio")


class EncodedDataset(Dataset[dict[str, Any]]):
    """Windows of `frames` frames, short clips padded with zeros and with their true length.

    A clip counts as often as it holds whole windows (at least once), as in `Clips`. With `codec` given, a store that
    another codec made is refused. `only` limits which clips there are, by number. `to_item` makes items of the metadata.
    """

    def __init__(  # noqa: PLR0913
        self, store: EncodedStore | str | Path, *, frames: int, seed: int = 0, fixed: bool = False,
        ids: Collection[str] | None = None, codec: Codec | None = None, only: Sequence[int] | None = None,
        to_item: ToItem | None = None,
    ) -> None:  # fmt: skip
        if frames < 1:
            raise DataError(f"windows of {frames} frames hold nothing; give at least 1")
        self.store = store if isinstance(store, EncodedStore) else EncodedStore(store, codec=codec)
        if codec is not None and isinstance(store, EncodedStore):
            store.header.check_codec(codec, store.path)
        self.frames, self.seed, self.fixed, self.ids, self.to_item = frames, seed, fixed, ids, to_item
        clips = range(len(self.store)) if only is None else only
        self.places = [(clip, part) for clip in clips for part in range(max(1, self.store.length(clip) // frames))]

    def __len__(self) -> int:
        return len(self.places)

    @property
    def frame_rate(self) -> float:
        return self.store.header.frame_rate

    def item_id(self, index: int) -> str:
        return self.store.metadata(self.places[index][0])["id"]

    def __getitem__(self, draw: SampleIndex | int) -> dict[str, Any]:
        draw = draw if isinstance(draw, SampleIndex) else SampleIndex(draw)
        rng = None if self.fixed else sample_rng(self.seed, draw)
        clip, part = self.places[draw.index]
        shard, inside = self.store.locate(clip)
        header, total = shard.header, self.store.length(clip)
        spare = max(0, total - self.frames)
        start = min(part * self.frames, spare) if rng is None else rng.randint(0, spare)
        length = min(self.frames, total - start)
        found = shard.frames(inside, start, start + length)
        room = found.new_zeros(1, header.rows, self.frames)
        room[0, : len(found), :length] = found
        samples = torch.tensor([max(0, min(length * header.hop, shard.samples[inside] - start * header.hop))])
        metadata = shard.metadata(inside)
        times = {
            "seconds_start": start * header.hop / header.sample_rate,
            "seconds_total": shard.samples[inside] / header.sample_rate,
        }
        if self.to_item is not None:
            name = f"{self.store.path}:{metadata['id']}"
            segment = SegmentInfo(metadata["id"], name, times["seconds_start"], times["seconds_total"], rng, _no_audio_encoded)
            metadata = self.to_item(metadata, segment)
            if metadata is None:
                raise DataError(f"{name}: a window of codes cannot be rejected; leave the clip out before it is encoded")
        item = {**times, **pick_alternatives(select_keys(metadata, self.ids), rng), "id": self.item_id(draw.index)}
        if header.kind == "latents":
            return {**item, "latents": Latents(room, torch.tensor([length]), samples)}
        scale = None if shard.scale is None else shard.scale[inside : inside + 1]
        return {**item, "codes": Codes(room, torch.tensor([length]), samples, scale)}

    def split(self, count: int) -> tuple[Self, Self]:
        """The data set without, and as fixed windows with only, `count` clips held out by the hash of their ids."""
        clips = sorted({clip for clip, _ in self.places})
        if not 0 <= count < len(clips):
            raise DataError(f"cannot hold out {count} of {len(clips)} clips; leave at least one to train on")
        names = {clip: self.store.metadata(clip)["id"] for clip in clips}
        out = select_holdout(names.values(), count)
        same = {"frames": self.frames, "seed": self.seed, "ids": self.ids, "to_item": self.to_item}
        rest = [clip for clip in clips if names[clip] not in out]
        held = [clip for clip in clips if names[clip] in out]
        return type(self)(self.store, **same, fixed=self.fixed, only=rest), type(self)(
            self.store, **same, fixed=True, only=held
        )


def _no_audio_encoded() -> Audio:
    raise DataError("an encoded store holds no audio; make what needs it before the store is, or train on the audio")
