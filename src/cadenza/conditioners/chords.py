"""Chords as one vector per frame, from chord names with times or a line of bars."""

import re
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from cadenza.conditioners.base import FramewiseConditionerSpec, SpanConditioner, is_number, zero_linear
from cadenza.core.errors import RequestError
from cadenza.core.spec import did_you_mean
from cadenza.core.timeline import Timeline, TimeSpan
from cadenza.core.types import MaskedSequence
from cadenza.dsp.chords import parse_chord

_FEATURES = 3 * 12 + 3  # root, bass, tones; no chord; time since start and until end
_MAX_SECONDS = 2.0  # longer times are clipped


class ChordsSpec(FramewiseConditionerSpec):
    """Bar length of chord lines without times, and an optional `vocabulary`.

    A bar lasts four beats of the item's tempo (id `tempo`) at the start of the bar, or `bar_seconds` without a tempo. With a
    `vocabulary` a chord is a row of a table, as in JASCO (arXiv:2406.10970); else its root, bass and tones.
    """

    type: Literal["chords"] = "chords"
    widget: ClassVar[str] = "chords"
    bar_seconds: float = Field(default=2.0, gt=0, allow_inf_nan=False)
    tempo: str | None = "tempo"
    vocabulary: tuple[str, ...] = ()
    hidden: int = Field(default=128, ge=1)

    @classmethod
    def example(cls) -> tuple["ChordsSpec", list[Any]]:
        values = ["C Am7/E | F G7", "C@0 N@0.5 Bbmaj7@0.9", [(0.0, 0.6, "A:min"), (0.6, 1.2, "G:7/b3")]]
        return cls(output_dim=8, frame_rate=10, max_frames=12, bar_seconds=0.4, hidden=32), values

    def build(self) -> "ChordsConditioner":
        return ChordsConditioner(self)


class ChordsConditioner(SpanConditioner):
    """Embed root, bass and tones of the chord at each frame with two layers, the last initialized to zero.

    A value is a list of (start, end, name) in seconds, with an end of None for open; or chords with starts, "C@0 Am@2.5"; or
    a line of one chord per bar, "Am F C G", with `|` between bars of several chords and `%` for the previous chord, repeated
    until the clip ends. Frames without a chord are masked; `N` means that no chord sounds. Raises RequestError otherwise.
    """

    placeholder: Any = ()

    def __init__(self, spec: ChordsSpec) -> None:
        super().__init__(spec)
        self.table = nn.Embedding(len(spec.vocabulary), spec.hidden) if spec.vocabulary else None
        self.up = None if spec.vocabulary else nn.Linear(_FEATURES, spec.hidden)
        self.out = zero_linear(spec.hidden, spec.output_dim)

    @property
    def extra_inputs(self) -> tuple[str, ...]:  # type: ignore[override]
        return () if self.spec.tempo is None else (self.spec.tempo,)

    def value_from_item(self, item: Mapping[str, Any], name: str) -> Any:
        """Return chords with times, using the item's tempo; an empty list is None."""
        value = super().value_from_item(item, name)
        if not isinstance(value, str):
            return value
        tempo = item.get(self.spec.tempo) if self.spec.tempo else None
        return self._line(value, tempo, after=float(item.get("seconds_start") or 0))

    def parse_span(self, entry: Any) -> TimeSpan:
        """Return a chord (start, end, name); an end of None is open."""
        if isinstance(entry, list | tuple) and len(entry) == 3 and isinstance(entry[2], str):
            start, end = entry[0], np.inf if entry[1] is None else entry[1]
            if is_number(start) and (is_number(end) or end == np.inf) and 0 <= start <= end:
                return TimeSpan(float(start), float(end), entry[2])
        raise RequestError(f"a chord is (start, end, name) with 0 <= start <= end in seconds, got {entry!r}")

    def preprocess(self, values: Sequence[Any]) -> dict[str, Tensor]:
        """Return `x` [b, f, n], or with a `vocabulary` `row` [b, f], and `covered` [b, f], False without a chord."""
        shape, vocabulary = (len(values), self.spec.max_frames), self.spec.vocabulary
        x = np.zeros(shape, np.int64) if vocabulary else np.zeros((*shape, _FEATURES), np.float32)
        covered = np.zeros(shape, bool)
        for row, value in enumerate(values):
            for span in self._spans(self._line(value) if isinstance(value, str) else value):
                frames = self.span_frames(span)
                covered[row, frames] = True
                if vocabulary and span.value not in vocabulary:
                    raise RequestError(f"no chord called '{span.value}'.{did_you_mean(span.value, list(vocabulary))}")
                x[row, frames] = vocabulary.index(span.value) if vocabulary else _chord_features(span.value)
                if not vocabulary:
                    x[row, frames, 37:] = self.span_times(span, _MAX_SECONDS).T
        return {"row" if vocabulary else "x": torch.from_numpy(x), "covered": torch.from_numpy(covered)}

    def project(self, tensors: dict[str, Tensor]) -> MaskedSequence:
        if self.table is not None:
            hidden = self.table(tensors["row"])
        else:
            assert self.up is not None
            hidden = self.up(tensors["x"].to(self.up.weight.dtype))
        return MaskedSequence(self.out(nn.functional.gelu(hidden)), tensors["covered"])

    def _line(self, text: str, tempo: Any = None, *, after: float = 0.0) -> list[TimeSpan]:
        """Parse a text of chords, up to the end of the longest clip that begins at `after` seconds."""
        total = after + self.spec.max_frames / self.spec.frame_rate
        words = text.replace(",", " ").split()
        if any("@" in word for word in words):
            return _parse_starts(words, total)
        bars = [part.split() for part in text.replace(",", " ").split("|")] if "|" in text else [[word] for word in words]
        bars = [part for part in bars if part]
        if not bars:
            raise RequestError("no chord is given; write some, such as 'Am F C G', or leave them out")
        spans: list[TimeSpan] = []
        begin, tempo_line = 0.0, Timeline.parse(tempo)
        for part in cycle(bars):
            bar = self._bar(tempo if tempo_line is None else tempo_line.value_at(begin))
            for i, word in enumerate(part):
                if word == "%" and not spans:
                    raise RequestError("'%' repeats the chord before it, which is missing")
                name = spans[-1].value if word == "%" else word
                spans.append(TimeSpan(begin + i / len(part) * bar, begin + (i + 1) / len(part) * bar, name))
            begin += bar
            if begin >= total:
                break
        return spans

    def _bar(self, tempo: Any) -> float:
        """Return the length of a bar in seconds."""
        bar = self.spec.bar_seconds if tempo is None else 240 / _parse_tempo(tempo)
        if bar * self.spec.frame_rate < 1:
            raise RequestError(f"at {tempo!r} beats a minute a bar of chords is shorter than a frame; give a slower tempo")
        return bar

    def _spans(self, value: Any) -> list[TimeSpan]:
        if not isinstance(value, list | tuple):
            raise RequestError(f"chords are a text such as 'Am F C G' or a list of (start, end, name), got {value!r}")
        return sorted(map(self.parse_span, value))


def _chord_features(name: str) -> np.ndarray:
    """Return the features of a chord [n], with times of zero."""
    chord, vector = parse_chord(name), np.zeros(_FEATURES, np.float32)
    if chord.root is None or chord.bass is None:
        vector[36] = 1
    else:
        vector[[chord.root, 12 + chord.bass, *(24 + tone for tone in chord.pitch_classes)]] = 1
    return vector


def _parse_starts(words: list[str], total: float) -> list[TimeSpan]:
    starts = []
    for word in words:
        name, _, second = word.partition("@")
        if not re.fullmatch(r"\d+(\.\d+)?", second):
            raise RequestError(f"'{word}' has no start. Expected a start in seconds for every chord, such as C@0 Am@2.5")
        starts.append((float(second), name))
    if starts != sorted(starts, key=lambda pair: pair[0]):
        raise RequestError("the starts of the chords must rise")
    ends = [second for second, _ in starts[1:]] + [max(total, starts[-1][0])]
    return [TimeSpan(start, end, name) for (start, name), end in zip(starts, ends, strict=True)]


def _parse_tempo(tempo: Any) -> float:
    """Return the tempo in beats per minute of a number or of beat times."""
    tempo = tempo.tolist() if isinstance(tempo, Tensor | np.ndarray) else tempo
    if isinstance(tempo, list | tuple) and len(tempo) > 1:
        if all(map(is_number, tempo)) and tempo[-1] > tempo[0]:
            return 60 * (len(tempo) - 1) / (tempo[-1] - tempo[0])
    elif is_number(tempo) and tempo > 0:
        return float(tempo)
    raise RequestError(f"the tempo of the chords must be beats a minute or the times of beats, got {tempo!r}")
