"""Datasets of windows of codes or latents: from an encoded store, or from a `pre_encode` folder.

A `pre_encode` folder of stable-audio-tools has one `.npy` and one `.json` per clip. Floats [d, f] are latents and
integers [k, f] are codes; frames that `padding_mask` marks as padding are not used.
"""

import math
import random
from abc import ABC
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cadenza.codecs.base import Codec
from cadenza.core.errors import DataError
from cadenza.core.types import Codes, FrameFormat, Latents
from cadenza.data.encoded_store import EncodedStore
from cadenza.data.items import SegmentDataset, SegmentInfo, ToItem, compose
from cadenza.data.manifest import check_mapping, read_json
from cadenza.dsp.audio import Audio

_CROP_KEYS = (  # of the crop that was encoded, not of the clip
    "padding_mask", "seconds_start", "seconds_total", "timestamps", "path", "relpath", "load_time", "latent_filename",
)  # fmt: skip


class _WindowDataset(SegmentDataset, ABC):
    """Base of both datasets: windows of `frames` frames; short clips are zero-padded."""

    def __init__(self, frames: int, seed: int, fixed: bool, ids: Collection[str] | None, to_item: ToItem | None) -> None:
        if frames < 1:
            raise DataError(f"windows of {frames} frames are empty; use at least 1")
        self.frames, self.seed, self.fixed, self.ids, self.to_item = frames, seed, fixed, ids, to_item

    def _item(
        self, metadata: dict[str, Any], segment: SegmentInfo, kind: str, frames: Tensor, **fields: Tensor | None
    ) -> dict[str, Any]:
        """Return an item with frames [k, f] zero-padded to [1, k, frames]; raise DataError if `to_item` rejects it."""
        item = metadata if self.to_item is None else self.to_item(dict(metadata), segment)
        if item is None:
            raise DataError(f"{segment.source}: encoded clips cannot be rejected; exclude the clip before encoding")
        padded = F.pad(frames, (0, self.frames - frames.shape[-1]))[None]
        signal = {"latents": Latents, "codes": Codes}[kind](padded, torch.tensor([frames.shape[-1]]), **fields)
        return {**self.finish_item(item, segment), "id": segment.id, kind: signal}


class EncodedDataset(_WindowDataset):
    """Windows of `frames` frames of an encoded store.

    A clip has as many windows as fit into it (at least one). Raises DataError if `codec` did not encode the store.
    """

    def __init__(  # noqa: PLR0913
        self, store: EncodedStore | str | Path, *, frames: int, seed: int = 0, fixed: bool = False,
        ids: Collection[str] | None = None, codec: Codec | None = None, to_item: ToItem | None = None,
    ) -> None:  # fmt: skip
        super().__init__(frames, seed, fixed, ids, to_item)
        self.store = store if isinstance(store, EncodedStore) else EncodedStore(store)
        if codec is not None:
            self.store.header.check_codec(codec, self.store.path)
        self.frame_rate = self.store.header.frame_rate
        self.use_clips(range(len(self.store)))

    def clip_id(self, clip: int) -> str:
        return self.store.metadata(clip)["id"]

    def count_segments(self) -> list[int]:
        return [max(1, self.store.length(clip) // self.frames) for clip in self.clip_indices]

    def metadata_items(self) -> list[dict[str, Any]]:
        """Return the stored metadata of each clip."""
        return [self.store.metadata(clip) for clip in self.clip_indices]

    def read_item(self, index: int, rng: random.Random | None) -> dict[str, Any]:
        clip, part = self.segments[index]
        shard, row = self.store.rows[clip]
        header, total = shard.header, self.store.length(clip)
        start = self.segment_start(part, self.frames, total, rng)
        frames, first = shard.frames(row, start, min(start + self.frames, total)), start * header.hop
        samples = torch.tensor([max(0, min(frames.shape[-1] * header.hop, shard.samples[row] - first))])
        metadata, rate = shard.metadata(row), header.sample_rate
        source = f"{self.store.path}:{metadata['id']}"
        segment = SegmentInfo(metadata["id"], source, first / rate, shard.samples[row] / rate, rng, _refuse_audio)
        scale = {} if shard.scale is None else {"scale": shard.scale[row : row + 1]}
        return self._item(metadata, segment, header.kind, frames, samples=samples, **scale)


@dataclass(frozen=True)
class PreEncodedClip:
    """An encoded clip: its file, metadata and number of frames without padding."""

    id: str
    path: Path
    frames: int
    metadata: dict[str, Any]
    start: float  # of the first frame in the original audio, in seconds
    total: float | None  # seconds of the original audio


@dataclass(frozen=True)
class PreEncodedFolder:
    """Encoded clips in a fixed order, and the function that builds their items."""

    clips: Sequence[PreEncodedClip]
    to_item: ToItem | None = None
    random_crop: bool = True  # False: only the beginning of each clip is used
    frames: int | None = None  # window length, if the dataset config sets it

    def with_transform(self, to_item: ToItem) -> Self:
        """Return a copy that applies `to_item` after the present function."""
        return replace(self, to_item=compose(self.to_item, to_item))


class PreEncodedDataset(_WindowDataset):
    """Windows of `frames` frames of a `pre_encode` folder, in a codec's `frame_format`.

    A clip has as many windows as fit into it (at least one); without random crops, one from its start.
    """

    def __init__(
        self, folder: PreEncodedFolder, *, frames: int, frame_format: FrameFormat, seed: int = 0, fixed: bool = False,
        ids: Collection[str] | None = None, to_item: ToItem | None = None,
    ) -> None:  # fmt: skip
        frames = frames if folder.frames is None else folder.frames
        super().__init__(frames, seed, fixed, ids, compose(folder.to_item, to_item))
        if not folder.clips:
            raise DataError("no encoded clips found; use a folder of .npy files")
        self.folder, self.frame_format, self.frame_rate = folder, frame_format, frame_format.frame_rate
        self.use_clips(range(len(folder.clips)))

    def clip_id(self, clip: int) -> str:
        return self.folder.clips[clip].id

    def count_segments(self) -> list[int]:
        clips = [self.folder.clips[clip] for clip in self.clip_indices]
        return [max(1, clip.frames // self.frames) if self.folder.random_crop else 1 for clip in clips]

    def read_item(self, index: int, rng: random.Random | None) -> dict[str, Any]:
        number, part = self.segments[index]
        clip = self.folder.clips[number]
        start = self.segment_start(part, self.frames, clip.frames, rng, random_crop=self.folder.random_crop)
        values = torch.from_numpy(np.array(self._array(clip)[:, start : min(start + self.frames, clip.frames)]))
        total = clip.start + clip.frames / self.frame_rate if clip.total is None else clip.total
        seconds = clip.start + start / self.frame_rate
        segment = SegmentInfo(clip.id, str(clip.path), seconds, total, rng, _refuse_audio)
        kind = self.frame_format.kind
        return self._item(clip.metadata, segment, kind, values.long() if kind == "codes" else values.float())

    def _array(self, clip: PreEncodedClip) -> np.ndarray:
        """Return the array of a clip; raise DataError unless it has the codec's frame format."""
        array, expected = load_array(clip.path), self.frame_format
        kind = "codes" if np.issubdtype(array.dtype, np.integer) else "latents"
        if kind != expected.kind or len(array) != expected.channels:
            raise DataError(
                f"{clip.path}: contains {kind} of {len(array)} rows, but the codec has {expected.kind} of "
                f"{expected.channels}; encode the audio with this codec"
            )
        if kind == "codes" and array.size and not 0 <= int(array.min()) <= int(array.max()) < expected.cardinality:
            raise DataError(
                f"{clip.path}: contains codes outside 0 to {expected.cardinality - 1}; encode the audio with this codec"
            )
        return array


def load_array(path: Path) -> np.ndarray:
    """Return the memory-mapped array [rows, frames] of a file; a leading axis of size 1 is removed."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path}: not a complete .npy array ({error}); encode the clip again") from None
    array = array[0] if array.ndim == 3 and len(array) == 1 else array
    if array.ndim != 2 or not array.size or array.dtype.kind not in "fiu":
        raise DataError(f"{path}: contains {array.dtype} {list(array.shape)}. Expected numbers [rows, frames]")
    return array


def scan_pre_encoded(folder: str | Path, *, prefix: str = "") -> PreEncodedFolder:
    """Return the encoded clips under a folder in order of path, or those that its `filelist.txt` names."""
    folder = Path(folder)
    filelist = folder / "filelist.txt"
    if filelist.is_file():
        names = [line.strip() for line in filelist.read_text(encoding="utf-8").splitlines() if line.strip()]
        paths = [folder / name for name in names]
        if missing := [path for path in paths if not path.is_file()]:
            raise DataError(f"{filelist}: {len(missing)} files not found, the first is {missing[0]}; fix the list")
    else:
        paths = sorted(path for path in folder.rglob("*.npy") if not path.name.startswith("."))
    if not paths:
        raise DataError(f"{folder}: no .npy file found; use a folder that pre_encode wrote")
    clips = [_read_clip(path, prefix + path.relative_to(folder).with_suffix("").as_posix()) for path in paths]
    return PreEncodedFolder(clips)


def is_pre_encoded(path: str | Path) -> bool:
    """Return whether a folder or a subfolder contains a `.npy` with its `.json`."""
    path = Path(path)
    array = next(path.rglob("*.npy"), None) if path.is_dir() else None
    return array is not None and array.with_suffix(".json").exists()


def _read_clip(path: Path, name: str) -> PreEncodedClip:
    sidecar = path.with_suffix(".json")
    data = check_mapping(read_json(sidecar, fix="encode the clip again") if sidecar.exists() else {}, sidecar)
    frames = load_array(path).shape[1]
    mask = np.asarray(data.get("padding_mask") or [], dtype=float).reshape(-1)
    length = int(mask.sum()) if len(mask) == frames and mask.any() else frames
    metadata = {key: value for key, value in data.items() if key not in (*_CROP_KEYS, "id", "audio")}
    start, total = _seconds(data.get("seconds_start")), _seconds(data.get("seconds_total"))
    return PreEncodedClip(name, path, length, metadata, start or 0.0, total)


def _seconds(value: Any) -> float | None:
    """Return seconds from a number or a list of one number, otherwise None."""
    value = value[0] if isinstance(value, list) and len(value) == 1 else value
    return float(value) if isinstance(value, int | float) and 0 <= value < math.inf else None


def _refuse_audio() -> Audio:
    raise DataError("encoded clips have no audio; compute values that need it before encoding, or train on the audio")
