"""Items: flat mappings from id to value; what is drawn when, and what could not be read."""

import hashlib
import random
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from cadenza.core.errors import DataError

Item = Mapping[str, Any]
Broken = Literal["raise", "skip"]  # what to do about a file that cannot be read: stop, or count and name it


@dataclass(frozen=True, slots=True)
class Draw:
    """One reading of one place of a data set; the same draw gives the same item in any process."""

    index: int
    epoch: int = 0


def draw_rng(seed: int, draw: Draw) -> random.Random:
    """The chance of one draw, which depends on nothing else."""
    return random.Random(f"{seed}/{draw.epoch}/{draw.index}")


def chosen(metadata: Item, rng: random.Random | None) -> dict[str, Any]:
    """The same metadata with one string of each list of strings: by chance, or the first without `rng`."""
    return {key: _one(value, rng) if _alternatives(value) else value for key, value in metadata.items()}


def kept(metadata: Item, ids: Collection[str] | None) -> dict[str, Any]:
    """The metadata under `ids`, or all of it."""
    return dict(metadata) if ids is None else {key: value for key, value in metadata.items() if key in ids}


def held_out(ids: Iterable[str], count: int) -> set[str]:
    """`count` of the ids, the same ones however the data grows around them: those of the smallest hashes."""
    return set(sorted(ids, key=lambda name: hashlib.sha256(name.encode()).digest())[:count])


@dataclass
class Report:
    """How many items were read, and which could not be and why."""

    read: int = 0
    broken: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        if not self.broken:
            return f"{self.read} items, none broken"
        named = "".join(f"\n  {name}: {reason}" for name, reason in list(self.broken.items())[:20])
        more = f"\n  and {len(self.broken) - 20} more" if len(self.broken) > 20 else ""
        return f"{self.read} items, {len(self.broken)} broken:{named}{more}"

    def note(self, name: str, reason: str, broken: Broken = "skip") -> None:
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
