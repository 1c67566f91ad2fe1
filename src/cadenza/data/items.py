"""Items (mappings from id to value), random segments, and the base class of datasets."""

import hashlib
import random
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Literal, Protocol, Self

from torch.utils.data import Dataset

from cadenza.core.errors import DataError
from cadenza.dsp.audio import Audio

Item = Mapping[str, Any]
SIGNALS = ("audio", "codes", "latents")  # keys of an item that are not metadata
OnBrokenFile = Literal["raise", "skip"]  # if a file cannot be read: raise, or skip it and list it in the report


@dataclass(frozen=True, slots=True)
class SampleIndex:
    """Index of a segment and the epoch it is read in; equal values give equal items in any process."""

    index: int
    epoch: int = 0


@dataclass(frozen=True)
class SegmentInfo:
    """A segment of a clip, passed to functions that build items; times are in seconds."""

    id: str
    source: str  # path of the clip
    start: float
    total: float  # length of the whole clip
    rng: random.Random | None  # None: the item must not be random
    read: Callable[[], Audio]

    @cached_property
    def audio(self) -> Audio:
        """The segment at the dataset's sample rate and channels; read on first use."""
        return self.read()


ToItem = Callable[[dict[str, Any], SegmentInfo], Item | None]  # metadata to item; None rejects the segment


def compose(*functions: ToItem | None) -> ToItem | None:
    """Return one function that applies all that are not None, in order; None if there are none."""
    present = tuple(function for function in functions if function is not None)
    return partial(_apply, present) if present else None


def _apply(functions: Sequence[ToItem], metadata: dict[str, Any], segment: SegmentInfo) -> Item | None:
    """Apply functions in order; stop and return None at the first that rejects the segment."""
    item: Item | None = metadata
    for function in functions:
        item = function(dict(item), segment)
        if item is None:
            return None
        if not isinstance(item, Mapping):
            raise DataError(f"{segment.source}: to_item returned a {type(item).__name__}. Return a mapping, or None to reject")
    return item


def sample_rng(seed: int, sample: SampleIndex) -> random.Random:
    """Return the random generator of one sample; it depends on nothing else."""
    return random.Random(f"{seed}/{sample.epoch}/{sample.index}")


def pick_alternatives(metadata: Item, rng: random.Random | None) -> dict[str, Any]:
    """Replace each list of strings by one of them: a random one, or the first if `rng` is None; an empty list by None."""
    item = dict(metadata)
    for key, value in metadata.items():
        if is_text_list(value):
            item[key] = None if not value else value[0] if rng is None else rng.choice(value)
    return item


def is_text_list(value: Any) -> bool:
    """Return whether a value is a list of alternative texts."""
    return isinstance(value, list | tuple) and all(isinstance(entry, str) for entry in value)


def select_holdout(ids: Iterable[str], count: int) -> set[str]:
    """Return the `count` ids with the smallest hashes, so that a growing dataset keeps its holdout."""
    return set(sorted(ids, key=lambda name: hashlib.sha256(name.encode()).digest())[:count])


@dataclass
class ReadReport:
    """Count of items read, and the broken ones with the reason for each."""

    read: int = 0
    broken: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        if not self.broken:
            return f"{self.read} items, none broken"
        reasons = "".join(f"\n  {name}: {reason}" for name, reason in list(self.broken.items())[:20])
        more = f"\n  and {len(self.broken) - 20} more" if len(self.broken) > 20 else ""
        return f"{self.read} items, {len(self.broken)} broken:{reasons}{more}"

    def record_broken(self, name: str, reason: str, on_broken_file: OnBrokenFile = "skip") -> None:
        """Add a broken item; raise DataError if `on_broken_file` is 'raise'."""
        if on_broken_file == "raise":
            raise DataError(f"cannot read item '{name}': {reason}. Fix or remove the file, or set on_broken_file='skip'")
        self.broken[name] = reason


class ItemDataset(Protocol):
    """Interface that the loader needs of a dataset."""

    def __len__(self) -> int: ...

    def __getitem__(self, sample: SampleIndex, /) -> dict[str, Any]: ...

    def item_id(self, index: int) -> str: ...


class SegmentDataset(Dataset[dict[str, Any]], ABC):
    """Base of datasets: a clip gives one item per segment, chosen by (seed, epoch, index) alone.

    With `fixed`, item i is segment i of the dataset in order, without randomness. `segments[i]` is (clip, part).
    """

    seed: int
    fixed: bool
    ids: Collection[str] | None = None  # metadata keys of an item; None: all
    clip_indices: list[int]  # the clips of the source that this dataset uses
    segments: list[tuple[int, int]]

    @abstractmethod
    def clip_id(self, clip: int) -> str:
        """Return the id of a clip of the source."""

    @abstractmethod
    def read_item(self, index: int, rng: random.Random | None) -> dict[str, Any]:
        """Return the item of segment `index`; without `rng` it is not random."""

    def count_segments(self) -> list[int]:
        """Return the number of segments of each clip in `clip_indices`."""
        return [1] * len(self.clip_indices)

    def use_clips(self, clips: Iterable[int]) -> None:
        """Use these clips of the source, and list their segments."""
        self.clip_indices = list(clips)
        counts = zip(self.clip_indices, self.count_segments(), strict=True)
        self.segments = [(clip, part) for clip, count in counts for part in range(count)]

    def __len__(self) -> int:
        return len(self.segments)

    def __getitem__(self, sample: SampleIndex | int) -> dict[str, Any]:
        sample = sample if isinstance(sample, SampleIndex) else SampleIndex(sample)
        return self.read_item(sample.index, None if self.fixed else sample_rng(self.seed, sample))

    def item_id(self, index: int) -> str:
        """Return the id of the clip that a segment is from."""
        return self.clip_id(self.segments[index][0])

    def metadata_items(self) -> Iterable[dict[str, Any]]:
        """Yield the item of each clip without its signal and without randomness."""
        for index in self.first_segments():
            yield {key: value for key, value in self.read_item(index, None).items() if key not in SIGNALS}

    def first_segments(self) -> list[int]:
        """Return the index of the first segment of each clip."""
        return [index for index, (_, part) in enumerate(self.segments) if part == 0]

    @staticmethod
    def segment_start(part: int, size: int, total: int, rng: random.Random | None, *, random_crop: bool = True) -> int:
        """Return the start of a segment of `size` in a clip of `total`: random, or that of `part` if `rng` is None.

        Without `random_crop` it is 0. A segment ends after the clip only if the clip is shorter than the segment.
        """
        latest = max(0, total - size) if random_crop else 0
        return min(part * size, latest) if rng is None else rng.randint(0, latest)

    def finish_item(self, item: Item, segment: SegmentInfo, *, pick: bool = True) -> dict[str, Any]:
        """Return the metadata under `ids` with the times of the segment, and one of each list of texts if `pick`."""
        values = dict(item) if self.ids is None else {key: value for key, value in item.items() if key in self.ids}
        values = pick_alternatives(values, segment.rng) if pick else values
        return {"seconds_start": segment.start, "seconds_total": segment.total, **values}

    def split(self, count: int) -> tuple[Self, Self]:
        """Return the dataset without `count` clips, and those clips as fixed segments; the choice is by hash of ids."""
        if not 0 <= count < len(self.clip_indices):
            raise DataError(f"cannot hold out {count} of {len(self.clip_indices)} clips; leave at least one to train on")
        ids = {clip: self.clip_id(clip) for clip in self.clip_indices}
        chosen = select_holdout(ids.values(), count)
        train, holdout = copy(self), copy(self)
        holdout.fixed = True
        train.use_clips(clip for clip in ids if ids[clip] not in chosen)
        holdout.use_clips(clip for clip in ids if ids[clip] in chosen)
        return train, holdout
