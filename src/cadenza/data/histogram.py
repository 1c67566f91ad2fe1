"""Histogram: how many values are where, in numbers and as text for a terminal."""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)  # seconds
_WIDTH = 40


@dataclass(frozen=True)
class Histogram:
    """`counts[i]` values are at least `edges[i]` and under the next edge; -inf and inf are edges like others."""

    edges: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()

    @classmethod
    def from_values(cls, values: Sequence[float], edges: Sequence[float]) -> "Histogram":
        """The values between given edges, without the empty ends."""
        if not values:
            return cls()
        counts = [0] * (len(edges) - 1)
        for value in values:
            counts[min(max(bisect_right(edges, value) - 1, 0), len(counts) - 1)] += 1
        first = next(i for i, count in enumerate(counts) if count)
        last = next(i for i in reversed(range(len(counts))) if counts[i])
        return cls(tuple(edges[first : last + 2]), tuple(counts[first : last + 1]))

    @classmethod
    def of_durations(cls, seconds: Sequence[float]) -> "Histogram":
        """Seconds in steps that grow with them."""
        return cls.from_values(seconds, (0.0, *_STEPS, math.inf))

    @classmethod
    def of_loudness(cls, levels: Sequence[float]) -> "Histogram":
        """Levels in LUFS in steps of 3, silence for itself."""
        return cls.from_values(levels, (-math.inf, *range(-69, 1, 3), math.inf))

    def to_dict(self) -> dict[str, list[Any]]:
        """Plain data, where None is an open end."""
        return {"edges": [edge if math.isfinite(edge) else None for edge in self.edges], "counts": list(self.counts)}

    def lines(self, title: str) -> list[str]:
        """A bar for each step."""
        names = [f"{_said(low)} to {_said(high)}" for low, high in zip(self.edges, self.edges[1:], strict=False)]
        names = [f"under {_said(self.edges[i + 1])}" if math.isinf(self.edges[i]) else name for i, name in enumerate(names)]
        names = [f"{_said(self.edges[i])} or more" if math.isinf(self.edges[i + 1]) else name for i, name in enumerate(names)]
        wide, most = max(map(len, names)), max(self.counts)
        bars = ["#" * math.ceil(_WIDTH * count / most) for count in self.counts]
        rows = [f"{name:>{wide}} {bar} {count}" for name, bar, count in zip(names, bars, self.counts, strict=True)]
        return [title, *rows]


def _said(value: float) -> str:
    return f"{value:g}"
