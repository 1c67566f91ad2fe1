"""Which note of a melody sounds at each frame, as one vector a frame: from notes, a MIDI file or a sung line."""

from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from cadenza.conditioners.base import Conditioner, FramewiseConditionerSpec, PreparedInputs
from cadenza.core.errors import RequestError
from cadenza.core.types import MaskedSequence
from cadenza.dsp.audio import Audio, load_condition_audio
from cadenza.dsp.midi import read_midi_melody
from cadenza.dsp.pitch import estimate_pitch, segment_notes

_RATE = 16000  # at which singing is heard
_REACH = 1.0  # seconds over which the times since and until a note's ends are told apart
_REST = -1


class MelodyNote(NamedTuple):
    """A note from `start` to `end`, in seconds; 69 is the A of 440 Hz."""

    start: float
    end: float
    pitch: float


class MelodySpec(FramewiseConditionerSpec):
    """Notes from `low` to `high`, as MIDI pitches; those beyond are moved by octaves.

    `hide_octave` is how often training shows an item's notes without their octave, which a hummed melody never has.
    """

    type: Literal["melody"] = "melody"
    widget: ClassVar[str] = "melody"
    low: int = Field(default=36, ge=0)
    high: int = Field(default=96, le=127)
    octave_dropout: float = Field(default=0.3, ge=0, le=1)
    hidden: int = Field(default=128, ge=1)

    @model_validator(mode="after")
    def _whole_octave(self) -> Self:
        if self.high - self.low < 11:
            raise ValueError(f"low ({self.low}) to high ({self.high}) must hold at least the 12 notes of an octave")
        return self

    @classmethod
    def example(cls) -> tuple["MelodySpec", list[Any]]:
        values = [[(0.0, 0.5, 60), (0.5, 1.2, 64)], [(0.2, 1.1, 72)], np.eye(61, 12, -30, dtype=np.float32)]
        return cls(output_dim=8, frame_rate=10, max_frames=12, hidden=32), values

    def build(self) -> "MelodyConditioner":
        return MelodyConditioner(self)


class MelodyConditioner(Conditioner[Any]):
    """Pitch and pitch class at each frame, how long the note has sounded and will, then two layers, the last begun at zero.

    A value is a list of (start, end, MIDI pitch) in seconds, later notes over earlier ones; a MIDI file; audio of one
    voice, or a file of it, whose octave does not count; or how salient each pitch from `low` on is, [n f] at the frame
    rate, where a frame of zeros rests. From where a value ends, frames add nothing.
    """

    handles_timelines: ClassVar[bool] = True  # its values are lists of (start, end, ...) by themselves

    def __init__(self, spec: MelodySpec) -> None:
        super().__init__(spec)
        self.placeholder: Any = [MelodyNote(0.0, 0.0, spec.low)]
        self.count = spec.high - spec.low + 1
        self.up = nn.Linear(self.count + 12 + 3, spec.hidden)
        self.out = nn.Linear(spec.hidden, spec.output_dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def value_from_item(self, item: Mapping[str, Any], name: str) -> Any:
        """No notes are no melody."""
        value = super().value_from_item(item, name)
        return None if isinstance(value, list | tuple) and not value else value

    def crop_value(self, value: Any, start: float) -> Any:
        """Notes and salience from there on; a recording is of the clip itself."""
        if isinstance(value, Tensor | np.ndarray):
            return value[:, round(start * self.spec.frame_rate) :]
        if not isinstance(value, list | tuple):
            return value
        return [MelodyNote(max(0.0, a - start), b - start, pitch) for a, b, pitch in map(_note, value) if b > start] or None

    def preprocess(self, values: Sequence[Any]) -> dict[str, Tensor]:
        """`pitch` [b f] above `low` or -1 at rests, `since` and `left` [b f] of its note, `covered` [b f], `octave` [b]."""
        found = [self._frames(value) for value in values]
        names = ("pitch", "since", "left", "covered")
        made = {name: torch.from_numpy(np.stack([part[name] for part in found])) for name in names}
        return {**made, "octave": torch.tensor([part["octave"] for part in found])}

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
        if isinstance(value, Tensor | np.ndarray):
            line, octave = self._salient(np.asarray(value)), True
        elif isinstance(value, Audio) or (
            isinstance(value, str | Path) and Path(value).suffix.lower() not in {".mid", ".midi"}
        ):
            line, octave = self._sung(value), False
        else:
            given = read_midi_melody(value) if isinstance(value, str | Path) else value
            line, octave = _notes(given), True
        return {**self._laid(line), "octave": octave}

    def _laid(self, line: list[MelodyNote]) -> dict[str, np.ndarray]:
        frames, rate = self.spec.max_frames, self.spec.frame_rate
        middle = (np.arange(frames) + 0.5) / rate
        pitch = np.full(frames, _REST, np.int16)
        since, left = np.zeros((2, frames), np.float32)
        for note in line:
            first, last = (min(max(0, round(second * rate)), frames) for second in note[:2])
            pitch[first:last] = self._step(note.pitch)
            since[first:last] = np.clip((middle[first:last] - note.start) / _REACH, 0, 1)
            left[first:last] = np.clip((note.end - middle[first:last]) / _REACH, 0, 1)
        end = max(note.end for note in line)
        return {"pitch": pitch, "since": since, "left": left, "covered": middle < end}

    def _step(self, pitch: float) -> int:
        step = round(pitch) - self.spec.low
        if 0 <= step < self.count:
            return step
        return step % 12 if step < 0 else self.count - 12 + (step - self.count) % 12

    def _sung(self, value: Any) -> list[MelodyNote]:
        audio = load_condition_audio([value], _RATE)
        found = segment_notes(estimate_pitch(audio.wave[0, 0], _RATE, self.spec.frame_rate), self.spec.frame_rate)
        if not found:
            what = "the melody" if isinstance(value, Audio) else str(value)
            raise RequestError(
                f"{what}: no pitch is heard; give a recording of one voice, louder than its background, or notes"
            )
        rest = float(audio.seconds)
        return [*(MelodyNote(*note) for note in found), MelodyNote(rest, rest, found[-1][2])]

    def _salient(self, value: np.ndarray) -> list[MelodyNote]:
        if value.ndim != 2 or len(value) != self.count or not np.isfinite(value).all():
            raise RequestError(
                f"salience must be finite and [{self.count}, frames], from pitch {self.spec.low}, got {value.shape}"
            )
        steps = np.where(value.max(0) > 0, value.argmax(0) + self.spec.low, np.nan)
        end = value.shape[1] / self.spec.frame_rate
        found = segment_notes(torch.from_numpy(steps), self.spec.frame_rate, shortest=0)
        return [*(MelodyNote(*note) for note in found), MelodyNote(end, end, self.spec.low)]


def _notes(value: Any) -> list[MelodyNote]:
    if not isinstance(value, list | tuple) or not value:
        raise RequestError(f"a melody is a list of (start, end, MIDI pitch), a MIDI file or audio, got {value!r}")
    return sorted(_note(entry) for entry in value)


def _note(entry: Any) -> MelodyNote:
    if (
        isinstance(entry, list | tuple)
        and len(entry) == 3
        and all(isinstance(x, Real) and np.isfinite(float(x)) for x in entry)
    ):
        start, end, pitch = (float(x) for x in entry)
        if 0 <= start <= end and 0 <= pitch <= 127:
            return MelodyNote(start, end, pitch)
    raise RequestError(
        f"a note is (start, end, pitch) with 0 <= start <= end in seconds and a pitch from 0 to 127, got {entry!r}"
    )
