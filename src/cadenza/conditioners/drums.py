"""Drum onsets as one vector per frame, from onset times, the percussion of a MIDI file or a drum stem."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from cadenza.codecs.base import CodecSpec
from cadenza.conditioners.base import FramewiseConditionerSpec, is_number, zero_linear
from cadenza.conditioners.base_encoders import CodecConditioner
from cadenza.core.errors import RequestError, SpecError
from cadenza.core.spec import did_you_mean
from cadenza.core.types import MaskedSequence
from cadenza.dsp.audio import Audio, load_condition_audio, silence
from cadenza.dsp.midi import read_midi_drums
from cadenza.dsp.pitch import detect_onsets

_BANDS = {"kick": (20.0, 150.0), "snare": (150.0, 2500.0), "hat": (5000.0, 8000.0)}  # Hz
_MIDI = {  # General MIDI drums of each kind
    "kick": {35, 36, 41, 43},
    "snare": {37, 38, 39, 40, 45, 47, 48, 50},
    "hat": {42, 44, 46, 49, 51, 52, 53, 55, 57, 59},
}
_RATE = 16000  # Hz, for onset detection
_FADE = 0.06  # time constant in seconds


class DrumsSpec(FramewiseConditionerSpec):
    """Onset times, or with `codec` a drum stem quantized by the codec's first codebook and blurred in time.

    Its frames are averaged in groups of `blur`, as in JASCO (arXiv:2406.10970); the frozen codec loads its weights from
    `model`, a saved system.
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


class DrumsConditioner(CodecConditioner):
    """Embed the time since and until the nearest onset of each drum with two layers, the last initialized to zero.

    A value is onset times in seconds by drum (kick, snare, hat); one list for all drums; a MIDI file; or audio of drums or
    its path. Toms count as snare, cymbals as hat. Raises RequestError for other values.
    """

    def __init__(self, spec: DrumsSpec) -> None:
        super().__init__(spec, spec.codec)
        if self.codec is not None and self.codec.frame_format.kind != "codes":
            raise SpecError("drums.codec: the codec returns latents. Expected a codec with codes")
        self.placeholder: Any = {} if self.codec is None else silence(self.codec.spec.sample_rate)
        self.up = nn.Linear(2 * len(_BANDS) if self.codec is None else self.codec.embedding_dim, spec.hidden)
        self.out = zero_linear(spec.hidden, spec.output_dim)

    def crop_value(self, value: Any, start: float) -> Any:
        """Return onsets relative to `start`; recordings and MIDI files are those of the clip and unchanged."""
        if isinstance(value, Mapping):
            return {kind: self.crop_value(times, start) for kind, times in value.items()}
        return [x - start for x in _seconds(value) if x >= start] if isinstance(value, list | tuple) else value

    def preprocess(self, values: Sequence[Any]) -> dict[str, Tensor]:
        """Return onset features `x` [b, f, n]; for the codec `wave` [b, c, t], `lengths` [b] in samples and `mask` [b, f]."""
        if self.codec is None:
            return {"x": torch.from_numpy(np.stack([self._onset_features(value) for value in values]))}
        codec = self.codec.spec
        audio = load_condition_audio(values, codec.sample_rate, channels=codec.channels)
        samples = round(self.spec.max_frames / self.spec.frame_rate * codec.sample_rate)
        wave = F.pad(audio.wave, (0, samples - audio.wave.shape[-1]))  # negative: cut
        mask = torch.ones(len(values), self.spec.max_frames, dtype=torch.bool)
        return {"wave": wave, "lengths": audio.lengths.clamp(max=samples), "mask": mask}

    def encode_frozen(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.codec is None:
            return tensors
        x, lengths = self.embed_audio(tensors["wave"], tensors["lengths"], num_codebooks=1)
        mask = torch.arange(x.shape[1], device=x.device) < lengths[:, None]
        x = _blur((x * mask[..., None]).transpose(1, 2), self.spec.blur)
        return {"x": F.interpolate(x, size=tensors["mask"].shape[1], mode="nearest").transpose(1, 2)}

    def project(self, tensors: dict[str, Tensor]) -> MaskedSequence:
        x = tensors["x"].to(self.up.weight.dtype)
        return MaskedSequence(self.out(nn.functional.gelu(self.up(x))), torch.ones_like(x[..., 0], dtype=torch.bool))

    def _onset_features(self, value: Any) -> np.ndarray:
        """Return the decayed time since (first half) and until (second half) the nearest onset of each drum [f, n]."""
        x = np.zeros((self.spec.max_frames, 2 * len(_BANDS)), np.float32)
        for row, times in enumerate(self._times(value)):
            if times:
                offset = self.spec.frame_centers[:, None] - np.asarray(times)
                x[:, row] = np.exp(-np.where(offset >= 0, offset, np.inf).min(1) / _FADE)
                x[:, len(_BANDS) + row] = np.exp(-np.where(offset <= 0, -offset, np.inf).min(1) / _FADE)
        return x

    def _times(self, value: Any) -> list[list[float]]:
        if isinstance(value, str | Path) and Path(value).suffix.lower() in {".mid", ".midi"}:
            notes = read_midi_drums(value)
            return [[second for second, drum in notes if drum in _MIDI[kind]] for kind in _BANDS]
        if isinstance(value, Audio | str | Path):
            return detect_onsets(load_condition_audio([value], _RATE).wave[0, 0], _RATE, list(_BANDS.values()))
        if isinstance(value, Mapping):
            if unknown := sorted(set(value) - set(_BANDS)):
                raise RequestError(f"no drum called '{unknown[0]}'.{did_you_mean(str(unknown[0]), list(_BANDS))}")
            return [_seconds(value.get(kind, [])) for kind in _BANDS]
        return [_seconds(value)] * len(_BANDS)


def _seconds(value: Any) -> list[float]:
    numbers = value.tolist() if isinstance(value, Tensor | np.ndarray) else value
    if not isinstance(numbers, list | tuple) or not all(is_number(x) and x >= 0 for x in numbers):
        expected = "the seconds at which kick, snare and hat are struck, by name or as one list, a MIDI file or audio"
        raise RequestError(f"drums are {expected}, got {value!r}")
    return [float(x) for x in numbers]


def _blur(x: Tensor, group: int) -> Tensor:
    """Replace each group of frames by its mean [b, d, f]; the last group is padded by reflection."""
    frames = x.shape[-1]
    padding = -frames % group
    mirrored = F.pad(x, (0, padding), "reflect" if frames > padding else "replicate")
    return mirrored.unflatten(-1, (-1, group)).mean(-1).repeat_interleave(group, -1)[..., :frames]
