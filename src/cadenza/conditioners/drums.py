"""What is struck at each frame, as one vector a frame: from onsets, the percussion of a MIDI file or a drum stem."""

from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from cadenza.codecs.base import CodecSpec
from cadenza.conditioners.base import CodecConditioner, FramewiseConditionerSpec
from cadenza.core.errors import RequestError, SpecError
from cadenza.core.spec import did_you_mean
from cadenza.core.types import MaskedSequence
from cadenza.dsp.audio import Audio, load_condition_audio, silence
from cadenza.dsp.midi import read_midi_drums
from cadenza.dsp.pitch import detect_onsets

_BANDS = {"kick": (20.0, 150.0), "snare": (150.0, 2500.0), "hat": (5000.0, 8000.0)}  # Hz in which each is heard
_MIDI = {  # General MIDI drums of each kind
    "kick": {35, 36, 41, 43},
    "snare": {37, 38, 39, 40, 45, 47, 48, 50},
    "hat": {42, 44, 46, 49, 51, 52, 53, 55, 57, 59},
}
_RATE = 16000  # at which a stem is heard for its onsets
_FADE = 0.06  # seconds in which a strike and its coming fall to a third


class DrumsSpec(FramewiseConditionerSpec):
    """With `codec`, a value is a drum stem as that frozen codec's first codebook has it, made vague in time.

    Its frames are averaged in groups of `blur`, as in JASCO (arXiv:2406.10970); the codec takes its weights from
    `model`, a saved system that has it. Else a value is what is struck when.
    """

    type: Literal["drums"] = "drums"
    widget: ClassVar[str] = "drums"
    codec: CodecSpec | None = None
    model: str | None = None
    blur: int = Field(default=3, ge=1)
    hidden: int = Field(default=64, ge=1)

    @classmethod
    def example(cls) -> tuple["DrumsSpec", list[Any]]:
        values = [{"kick": [0.0, 1.1], "hat": [0.3, 0.9]}, {"snare": [0.5, 1.15]}, [0.0, 0.25, 1.1]]
        return cls(output_dim=8, frame_rate=10, max_frames=12, hidden=32), values

    def build(self) -> "DrumsConditioner":
        return DrumsConditioner(self)


class DrumsConditioner(CodecConditioner[Any]):
    """How lately each kind was struck and how soon it will be, then two layers, the last begun at zero.

    A value is the seconds at which each of kick, snare and hat is struck, by name; a list of seconds for all of them;
    a MIDI file, whose percussion counts; or audio of drums, or a file of it. Toms are snares, cymbals are hats.
    """

    padding_masks: ClassVar[dict[str, str]] = {}  # for a cache of features

    def __init__(self, spec: DrumsSpec) -> None:
        super().__init__(spec)
        self.codec = None if spec.codec is None else spec.codec.build().requires_grad_(False)
        if self.codec is not None and self.codec.frame_format.kind != "codes":
            raise SpecError("drums.codec: it gives latents; the drums of JASCO are heard through a codec of codes")
        self.placeholder: Any = {} if self.codec is None else silence(self.codec.spec.sample_rate)
        self.up = nn.Linear(2 * len(_BANDS) if self.codec is None else self.codec.embedding_dim, spec.hidden)
        self.out = nn.Linear(spec.hidden, spec.output_dim)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def crop_value(self, value: Any, start: float) -> Any:
        """Strikes from there on; a recording and a MIDI file are of the clip itself."""
        if isinstance(value, Mapping):
            return {kind: self.crop_value(times, start) for kind, times in value.items()}
        return [x - start for x in _seconds(value) if x >= start] if isinstance(value, list | tuple) else value

    def preprocess(self, values: Sequence[Any]) -> dict[str, Tensor]:
        """`x` [b f n] of strikes, or for the codec `wave` [b c t] with its `lengths` [b], and the `mask` [b f] of frames."""
        if self.codec is None:
            return {"x": torch.from_numpy(np.stack([self._struck(value) for value in values]))}
        codec = self.codec.spec
        audio = load_condition_audio(values, codec.sample_rate, channels=codec.channels)
        samples = round(self.spec.max_frames / self.spec.frame_rate * codec.sample_rate)
        wave = F.pad(audio.wave, (0, max(0, samples - audio.wave.shape[-1])))[..., :samples]
        mask = torch.ones(len(values), self.spec.max_frames, dtype=torch.bool)
        return {"wave": wave, "lengths": audio.lengths.clamp(max=samples), "mask": mask}

    def encode_frozen(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.codec is None:
            return tensors
        wave = tensors["wave"]
        with torch.autocast(wave.device.type, enabled=False):
            frames = self.codec.encode(Audio(wave, self.codec.spec.sample_rate, tensors["lengths"]), num_codebooks=1)
            x = self.codec.embed(frames)
        there = torch.arange(x.shape[-1], device=x.device) < frames.lengths[:, None]
        x = _blurred(x * there[:, None], self.spec.blur)
        return {"x": F.interpolate(x, size=tensors["mask"].shape[1], mode="nearest").transpose(1, 2)}

    def project(self, tensors: dict[str, Tensor]) -> MaskedSequence:
        x = tensors["x"].to(self.up.weight.dtype)
        return MaskedSequence(self.out(nn.functional.gelu(self.up(x))), torch.ones_like(x[..., 0], dtype=torch.bool))

    def _struck(self, value: Any) -> np.ndarray:
        """[f n]: each kind's past strikes, then its coming ones."""
        middle = (np.arange(self.spec.max_frames) + 0.5) / self.spec.frame_rate
        found = np.zeros((self.spec.max_frames, 2 * len(_BANDS)), np.float32)
        for row, times in enumerate(self._times(value)):
            if times:
                away = middle[:, None] - np.asarray(times)
                found[:, row] = np.exp(-np.where(away >= 0, away, np.inf).min(1) / _FADE)
                found[:, len(_BANDS) + row] = np.exp(-np.where(away <= 0, -away, np.inf).min(1) / _FADE)
        return found

    def _times(self, value: Any) -> list[list[float]]:
        if isinstance(value, str | Path) and Path(value).suffix.lower() in {".mid", ".midi"}:
            played = read_midi_drums(value)
            return [[second for second, drum in played if drum in _MIDI[kind]] for kind in _BANDS]
        if isinstance(value, Audio | str | Path):
            return detect_onsets(load_condition_audio([value], _RATE).wave[0, 0], _RATE, list(_BANDS.values()))
        if isinstance(value, Mapping):
            if unknown := sorted(set(value) - set(_BANDS)):
                raise RequestError(f"no drum called '{unknown[0]}'.{did_you_mean(str(unknown[0]), list(_BANDS))}")
            return [_seconds(value.get(kind, [])) for kind in _BANDS]
        return [_seconds(value)] * len(_BANDS)


def _seconds(value: Any) -> list[float]:
    numbers = value.tolist() if isinstance(value, Tensor | np.ndarray) else value
    if not isinstance(numbers, list | tuple) or not all(isinstance(x, Real) and 0 <= float(x) < np.inf for x in numbers):
        raise RequestError(
            "drums are the seconds at which kick, snare and hat are struck, by name or as one list, a MIDI file or audio, "
            f"got {value!r}"
        )
    return [float(x) for x in numbers]


def _blurred(x: Tensor, group: int) -> Tensor:
    """[b d f]: each group of frames as its mean, the last group filled up by its mirror."""
    frames = x.shape[-1]
    spare = -frames % group
    mirrored = F.pad(x, (0, spare), "reflect" if frames > spare else "replicate")
    return mirrored.unflatten(-1, (-1, group)).mean(-1).repeat_interleave(group, -1)[..., :frames]
