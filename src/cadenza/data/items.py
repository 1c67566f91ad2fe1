"""Items: flat mappings from id to value; what is drawn when, and what could not be read."""

import hashlib
import random
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from cadenza.core.errors import DataError
from cadenza.dsp.audio import Audio

Item = Mapping[str, Any]
Broken = Literal["raise", "skip"]  # what to do about a file that cannot be read: stop, or count and name it


@dataclass(frozen=True, slots=True)
class SampleIndex:
    """One reading of one place of a data set; the same draw gives the same item in any process."""

    index: int
    epoch: int = 0


@dataclass(frozen=True)
class SegmentInfo:
    """What is drawn of a clip, for a function that makes an item of its metadata; all times are in seconds."""

    id: str
    source: str  # where the clip is
    start: float
    total: float  # of the whole clip
    rng: random.Random | None  # the chance of this draw; None where the same item must come each time
    read: Callable[[], Audio]

    @cached_property
    def audio(self) -> Audio:
        """The sound of the segment at the sample rate and channels of the data set, read when first asked for."""
        return self.read()


ToItem = Callable[[dict[str, Any], SegmentInfo], Item | None]  # metadata to item; None rejects the segment


@dataclass(frozen=True)
class Compose:
    """Functions to items one after another; what one rejects, the next does not see."""

    functions: tuple[ToItem, ...]

    def __call__(self, metadata: dict[str, Any], segment: SegmentInfo) -> Item | None:
        item: Item | None = metadata
        for function in self.functions:
            item = function(dict(item), segment)
            if item is None:
                return None
            if not isinstance(item, Mapping):
                raise DataError(
                    f"{segment.source}: its to_item gave a {type(item).__name__}; give a mapping, or None to reject"
                )
        return item


def compose(*functions: ToItem | None) -> ToItem | None:
    """The functions as one, leaving out those that are None."""
    given = tuple(function for function in functions if function is not None)
    return Compose(given) if given else None


def sample_rng(seed: int, draw: SampleIndex) -> random.Random:
    """The chance of one draw, which depends on nothing else."""
    return random.Random(f"{seed}/{draw.epoch}/{draw.index}")


def pick_alternatives(metadata: Item, rng: random.Random | None) -> dict[str, Any]:
    """The same metadata with one string of each list of strings: by chance, or the first without `rng`."""
    return {key: _one(value, rng) if _alternatives(value) else value for key, value in metadata.items()}


def select_keys(metadata: Item, ids: Collection[str] | None) -> dict[str, Any]:
    """The metadata under `ids`, or all of it."""
    return dict(metadata) if ids is None else {key: value for key, value in metadata.items() if key in ids}


def select_holdout(ids: Iterable[str], count: int) -> set[str]:
    """`count` of the ids, the same ones however the data grows around them: those of the smallest hashes."""
    return set(sorted(ids, key=lambda name: hashlib.sha256(name.encode()).digest())[:count])


@dataclass
class ReadReport:
    """How many items were read, and which could not be and why."""

    read: int = 0
    broken: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        if not self.broken:
            return f"{self.read} items, none broken"
        named = "".join(f"\n  {name}: {reason}" for name, reason in list(self.broken.items())[:20])
        more = f"\n  and {len(self.broken) - 20} more" if len(self.broken) > 20 else ""
        return f"{self.read} items, {len(self.broken)} broken:{named}{more}"

    def add_broken(self, name: str, reason: str, broken: Broken = "skip") -> None:
        """Counts a broken item, or raises where that was asked for."""
        if broken == "raise":
            raise DataError(f"item '{name}' cannot be read: {reason}; mend or remove it, or load with broken='skip'")
        self.broken[name] = reason


def _alternatives(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(entry, str) for entry in value)


def _one(values: list[str], rng: random.Random | None) -> str | None:
    if not values:
        return None
    return values[0] if rng is None else rng.choice(values)
