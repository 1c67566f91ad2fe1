"""A melody as one vector per frame, from notes, a MIDI file or a recording of one voice."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from cadenza.conditioners.base import FramewiseConditionerSpec, PreparedInputs, SpanConditioner, is_number, zero_linear
from cadenza.core.errors import RequestError
from cadenza.core.timeline import TimeSpan
from cadenza.core.types import MaskedSequence
from cadenza.dsp.audio import Audio, load_condition_audio
from cadenza.dsp.midi import read_midi_melody
from cadenza.dsp.pitch import estimate_pitch, segment_notes

_RATE = 16000  # Hz, for pitch estimation
_MAX_SECONDS = 1.0  # longer times since the start and until the end of a note are clipped
_REST = -1


class MelodySpec(FramewiseConditionerSpec):
    """MIDI pitches from `low` to `high`; others are transposed by octaves.

    `octave_dropout` is the probability that a training step hides the octave of an item, as recordings do.
    """

    type: Literal["melody"] = "melody"
    widget: ClassVar[str] = "melody"
    low: int = Field(default=36, ge=0)
    high: int = Field(default=96, le=127)
    octave_dropout: float = Field(default=0.3, ge=0, le=1)
    hidden: int = Field(default=128, ge=1)

    @model_validator(mode="after")
    def _check_range(self) -> Self:
        if self.high - self.low < 11:
            raise ValueError(f"low ({self.low}) to high ({self.high}) must hold at least the 12 notes of an octave")
        return self

    @classmethod
    def example(cls) -> tuple["MelodySpec", list[Any]]:
        values = [[(0.0, 0.5, 60), (0.5, 1.2, 64)], [(0.2, 1.1, 72)], np.eye(61, 12, -30, dtype=np.float32)]
        return cls(output_dim=8, frame_rate=10, max_frames=12, hidden=32), values

    def build(self) -> "MelodyConditioner":
        return MelodyConditioner(self)


class MelodyConditioner(SpanConditioner):
    """Embed pitch, pitch class and the note's elapsed and remaining time with two layers, the last initialized to zero.

    A value is a list of (start, end, MIDI pitch) in seconds, where later notes replace earlier ones; a MIDI file; audio of
    one voice or its path, without octave; or the salience [n, f] of each pitch from `low` at the frame rate, with zeros for
    rests. Frames after the end of a value are masked. Raises RequestError for other values.
    """

    def __init__(self, spec: MelodySpec) -> None:
        super().__init__(spec)
        self.placeholder: Any = [TimeSpan(0.0, 0.0, spec.low)]
        self.count = spec.high - spec.low + 1
        self.up = nn.Linear(self.count + 12 + 3, spec.hidden)
        self.out = zero_linear(spec.hidden, spec.output_dim)

    def crop_value(self, value: Any, start: float) -> Any:
        """Return notes or salience relative to `start`; a recording is that of the clip and unchanged."""
        if isinstance(value, Tensor | np.ndarray):
            return value[:, round(start * self.spec.frame_rate) :]
        return super().crop_value(value, start)

    def parse_span(self, entry: Any) -> TimeSpan:
        """Return a note (start, end, MIDI pitch)."""
        if isinstance(entry, list | tuple) and len(entry) == 3 and all(map(is_number, entry)):
            start, end, pitch = map(float, entry)
            if 0 <= start <= end and 0 <= pitch <= 127:
                return TimeSpan(start, end, pitch)
        expected = "(start, end, pitch) with 0 <= start <= end in seconds and a pitch from 0 to 127"
        raise RequestError(f"a note is {expected}, got {entry!r}")

    def preprocess(self, values: Sequence[Any]) -> dict[str, Tensor]:
        """Return `pitch` [b, f] above `low` (-1: rest), `since`, `left` and `covered` [b, f], and `octave` [b]."""
        rows = [self._frames(value) for value in values]
        return {name: torch.from_numpy(np.stack([row[name] for row in rows])) for name in rows[0]}

    def augment(self, prepared: PreparedInputs, rng: torch.Generator) -> PreparedInputs:
        octave = prepared.tensors["octave"]
        shown = torch.rand(len(octave), generator=rng) >= self.spec.octave_dropout
        return PreparedInputs({**prepared.tensors, "octave": octave & shown.to(octave.device)}, prepared.present)

    def project(self, tensors: dict[str, Tensor]) -> MaskedSequence:
        pitch = tensors["pitch"].long()[..., None]
        dtype = self.up.weight.dtype
        each = torch.arange(self.count, device=pitch.device)
        absolute = (pitch == each) & tensors["octave"][:, None, None]
        sounds = pitch >= 0
        classes = ((pitch + self.spec.low) % 12 == torch.arange(12, device=pitch.device)) & sounds
        times = torch.stack([tensors["since"], tensors["left"]], -1).to(dtype)
        x = torch.cat([absolute.to(dtype), classes.to(dtype), sounds.to(dtype), times], -1)
        return MaskedSequence(self.out(nn.functional.gelu(self.up(x))), tensors["covered"])

    def _frames(self, value: Any) -> dict[str, Any]:
        is_midi = isinstance(value, str | Path) and Path(value).suffix.lower() in {".mid", ".midi"}
        if isinstance(value, Tensor | np.ndarray):
            line, octave = self._notes_from_salience(np.asarray(value)), True
        elif isinstance(value, Audio | str | Path) and not is_midi:
            line, octave = self._transcribe(value), False
        else:
            notes = read_midi_melody(value) if isinstance(value, str | Path) else value
            if not isinstance(notes, list | tuple) or not notes:
                raise RequestError(f"a melody is a list of (start, end, MIDI pitch), a MIDI file or audio, got {notes!r}")
            line, octave = sorted(map(self.parse_span, notes)), True
        return {**self._note_features(line), "octave": octave}

    def _note_features(self, line: list[TimeSpan]) -> dict[str, np.ndarray]:
        pitch = np.full(self.spec.max_frames, _REST, np.int16)
        times = np.zeros((2, self.spec.max_frames), np.float32)
        for note in line:
            frames = self.span_frames(note)
            pitch[frames], times[:, frames] = self._step(note.value), self.span_times(note, _MAX_SECONDS)
        covered = self.spec.frame_centers < max(note.end for note in line)
        return {"pitch": pitch, "since": times[0], "left": times[1], "covered": covered}

    def _step(self, pitch: float) -> int:
        step = round(pitch) - self.spec.low
        if 0 <= step < self.count:
            return step
        return step % 12 if step < 0 else self.count - 12 + (step - self.count) % 12

    def _transcribe(self, value: Any) -> list[TimeSpan]:
        audio = load_condition_audio([value], _RATE)
        notes = segment_notes(estimate_pitch(audio.wave[0, 0], _RATE, self.spec.frame_rate), self.spec.frame_rate)
        if not notes:
            name = "the melody" if isinstance(value, Audio) else str(value)
            raise RequestError(f"{name}: no pitch found. Use a recording of one voice, louder than its background, or notes")
        rest = float(audio.seconds)
        return [*(TimeSpan(*note) for note in notes), TimeSpan(rest, rest, notes[-1][2])]

    def _notes_from_salience(self, value: np.ndarray) -> list[TimeSpan]:
        if value.ndim != 2 or len(value) != self.count or not np.isfinite(value).all():
            expected = f"finite and [{self.count}, frames], from pitch {self.spec.low}"
            raise RequestError(f"salience must be {expected}, got {value.shape}")
        steps = np.where(value.max(0) > 0, value.argmax(0) + self.spec.low, np.nan)
        end = value.shape[1] / self.spec.frame_rate
        notes = segment_notes(torch.from_numpy(steps), self.spec.frame_rate, shortest=0)
        return [*(TimeSpan(*note) for note in notes), TimeSpan(end, end, self.spec.low)]
