"""Values that change over time: spans of a clip with one value each."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

from cadenza.core.errors import RequestError

_KEYS = {"start", "end", "value"}
_ADJACENT = 1e-6  # seconds; spans closer than this are adjacent


class TimeSpan(NamedTuple):
    """A value from `start` to `end` seconds; the value None means absent."""

    start: float
    end: float
    value: Any


@dataclass(frozen=True)
class Timeline:
    """Spans ordered by start; adjacent spans cross-fade over `fade` seconds centered on their boundary.

    Where spans overlap, both values apply; outside all spans the value is absent.
    """

    spans: tuple[TimeSpan, ...]
    fade: float = 0.0

    @classmethod
    def parse(cls, value: Any) -> "Timeline | None":
        """Return the timeline that `value` describes, or None if it is a plain value; raise RequestError if malformed.

        A timeline is a list of (start, end, value) or of mappings with these keys, in seconds, where an end of None is open,
        or `{"timeline": list, "fade": seconds}`.
        """
        if isinstance(value, Timeline):
            return value
        if not isinstance(value, Mapping):
            return cls(_sorted_spans(value)) if _is_span_list(value) else None
        if "timeline" not in value or not set(value) <= {"timeline", "fade"}:
            return None
        spans, fade = value["timeline"], value.get("fade", 0.0)
        if not _is_number(fade) or fade < 0:
            raise RequestError(f"the fade of a timeline must be a number of seconds, 0 or more, got {fade!r}")
        if not _is_span_list(spans):
            raise RequestError(f"a timeline must be a list of (start, end, value) in seconds, got {spans!r}")
        return cls(_sorted_spans(spans), float(fade))

    def shifted(self, start: float) -> "Timeline":
        """Return the timeline with times relative to `start` seconds."""
        return Timeline(tuple(TimeSpan(a - start, b - start, value) for a, b, value in self.spans), self.fade)

    def value_at(self, second: float) -> Any:
        """Return the value at a time, of the span that started last if several overlap; None outside all spans."""
        return next((value for start, end, value in reversed(self.spans) if start <= second < end), None)

    def bounds_with_fades(self) -> list[tuple[float, float, float, float]]:
        """Return (start, end, fade in, fade out) of each span in seconds; a fade is at most as long as either span."""
        rows = []
        for start, end, _ in self.spans:
            before = [min(end - start, b - a) for a, b, _ in self.spans if abs(b - start) < _ADJACENT]
            after = [min(end - start, b - a) for a, b, _ in self.spans if abs(a - end) < _ADJACENT]
            fade_in, fade_out = (min([self.fade, *lengths]) if lengths else 0.0 for lengths in (before, after))
            rows.append((start, end, fade_in, fade_out))
        return rows


def _is_span_list(value: Any) -> bool:
    """Return whether this is a list of spans; their values are not checked."""
    return isinstance(value, list | tuple) and bool(value) and all(map(_is_span, value))


def _is_span(entry: Any) -> bool:
    if isinstance(entry, Mapping):
        return {"start", "value"} <= set(entry) <= _KEYS
    if not isinstance(entry, list | tuple) or len(entry) != len(_KEYS):
        return False
    return _is_number(entry[0]) and (entry[1] is None or _is_number(entry[1]))


def _sorted_spans(entries: Any) -> tuple[TimeSpan, ...]:
    spans = []
    for entry in entries:
        start, end, value = (entry["start"], entry.get("end"), entry["value"]) if isinstance(entry, Mapping) else entry
        end = math.inf if end is None else end
        if not _is_number(start) or not _is_number(end) or math.isnan(end) or not -math.inf < start < end:
            raise RequestError(f"a span of a timeline needs a start in seconds and a later end (or None); got {entry!r}")
        spans.append(TimeSpan(float(start), float(end), value))
    return tuple(sorted(spans, key=lambda span: span.start))


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
