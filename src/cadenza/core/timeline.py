"""Timeline: a value that changes, as spans of a clip in which each of several values holds."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, NamedTuple

from cadenza.core.errors import RequestError

_KEYS = {"start", "end", "value"}
_CLOSE = 1e-6  # seconds; ends and starts nearer than this meet


class TimeSpan(NamedTuple):
    """A value from `start` to `end`, in seconds; None holds as no value does."""

    start: float
    end: float
    value: Any


@dataclass(frozen=True)
class Timeline:
    """Spans in order of their starts; where two meet, one fades into the other over `fade` seconds around that moment.

    Spans may overlap, and both values hold then; where there is none, no value does.
    """

    spans: tuple[TimeSpan, ...]
    fade: float = 0.0

    @classmethod
    def parse(cls, value: Any) -> "Timeline | None":
        """The timeline that a value is, or None where it is a value like any other; RequestError for a wrong one.

        It is a list of (start, end, value), or of mappings of these names, where an end of None is open; or
        `{"timeline": list, "fade": seconds}`.
        """
        if isinstance(value, Timeline):
            return value
        if isinstance(value, Mapping):
            if "timeline" not in value or not set(value) <= {"timeline", "fade"}:
                return None
            spans, fade = value["timeline"], value.get("fade", 0.0)
            if not _number(fade) or fade < 0:
                raise RequestError(f"the fade of a timeline is a number of seconds from 0 on, got {fade!r}")
            if not _spans(spans):
                raise RequestError(f"a timeline is a list of (start, end, value) in seconds, got {spans!r}")
            return cls(_sorted(spans), float(fade))
        return cls(_sorted(value)) if _spans(value) else None

    def shifted(self, start: float) -> "Timeline":
        """The same with seconds that count from `start` on."""
        return Timeline(tuple(TimeSpan(a - start, b - start, value) for a, b, value in self.spans), self.fade)

    def value_at(self, second: float) -> Any:
        """The value that holds then, the one that began last where there are several; None where there is none."""
        return next((value for start, end, value in reversed(self.spans) if start <= second < end), None)

    def bounds_with_fades(self) -> list[tuple[float, float, float, float]]:
        """Of each span its start, its end, and the seconds of the fade at either, no longer than what meets there."""
        found = []
        for i, (start, end, _) in enumerate(self.spans):
            others = [span for j, span in enumerate(self.spans) if j != i]
            before = [min(end - start, span.end - span.start) for span in others if abs(span.end - start) < _CLOSE]
            after = [min(end - start, span.end - span.start) for span in others if abs(span.start - end) < _CLOSE]
            found.append((start, end, min([self.fade, *before]) if before else 0.0, min([self.fade, *after]) if after else 0.0))
        return found


def _spans(value: Any) -> bool:
    """Whether this is a list of spans, whatever they hold."""
    return isinstance(value, list | tuple) and bool(value) and all(map(_span, value))


def _span(entry: Any) -> bool:
    if isinstance(entry, Mapping):
        return {"start", "value"} <= set(entry) <= _KEYS
    if not isinstance(entry, list | tuple) or len(entry) != len(_KEYS):
        return False
    return _number(entry[0]) and (entry[1] is None or _number(entry[1]))


def _sorted(entries: Any) -> tuple[TimeSpan, ...]:
    """The spans, checked."""
    spans = []
    for entry in entries:
        start, end, value = (entry["start"], entry.get("end"), entry["value"]) if isinstance(entry, Mapping) else entry
        end = math.inf if end is None else end
        if not _number(start) or not _number(end) or math.isnan(end) or not -math.inf < start < end:
            raise RequestError(f"a span of a timeline must start, in seconds, and end after that or not at all; got {entry!r}")
        spans.append(TimeSpan(float(start), float(end), value))
    return tuple(sorted(spans, key=lambda span: span.start))


def _number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
