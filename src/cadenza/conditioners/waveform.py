"""Audio as one vector per frame of a codec: its latents, or the embeddings of its codes."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from cadenza.conditioners.base import (
    CodecConditioner,
    CodecConditionerSpec,
    codec_frames,
    codec_width,
    example_codec,
    output_projection,
)
from cadenza.core.types import MaskedSequence
from cadenza.dsp.audio import Audio, load_condition_audio, silence


class WaveformSpec(CodecConditionerSpec):
    """Audio, or with `input_kind: frames` frames of the codec [d, f].

    With `max_frames` each value is cut or padded to that many frames, as the slots `add` and `concat` need.
    """

    type: Literal["waveform"] = "waveform"
    widget: ClassVar[str] = "audio"
    max_frames: int | None = Field(default=None, ge=1)  # of the longest training clip
    project: Literal["always", "auto"] = "always"  # auto: only if the codec's width differs

    @classmethod
    def example(cls) -> tuple["WaveformSpec", list[Any]]:
        codec = example_codec()
        rng = torch.Generator().manual_seed(0)
        sounds = [Audio(torch.randn(1, 1, samples, generator=rng), 800) for samples in (41, 16, 64)]
        return cls(output_dim=8, codec=codec), sounds

    def build(self) -> "WaveformConditioner":
        return WaveformConditioner(self)


class WaveformConditioner(CodecConditioner[Any]):
    """Project frames of the frozen codec with a linear layer.

    A value is Audio of one clip or a path, or frames as Latents of one clip or a tensor [d, f]; else RequestError is raised.
    """

    padding_masks: ClassVar[dict[str, str]] = dict.fromkeys(("wave", "x", "mask"), "mask")  # for the feature cache

    def __init__(self, spec: WaveformSpec) -> None:
        super().__init__(spec)
        self.codec = spec.codec.build().requires_grad_(False) if spec.input_kind == "audio" else None
        self.dim = codec_width(spec.codec)
        self.out = output_projection(spec, self.dim)
        self.dtype_ref = nn.Buffer(torch.empty(0), persistent=False)  # empty; has this module's dtype

    @property
    def placeholder(self) -> Any:  # type: ignore[override]
        return torch.zeros(self.dim, 1) if self.codec is None else silence(self.spec.sample_rate, samples=self.spec.hop)

    def preprocess(self, values: Sequence[Any]) -> dict[str, Tensor]:
        """Return `wave` by frames [b, n, c, s] and `lengths` [b] in samples, or frames `x` [b, n, d]; and `mask` [b, n]."""
        most = self.spec.max_frames
        if self.codec is None:
            rows = [codec_frames(value, self.dim) for value in values]
            x = nn.utils.rnn.pad_sequence(rows, batch_first=True)
            mask = torch.arange(x.shape[1]) < torch.tensor([len(row) for row in rows])[:, None]
            return {"x": x if most is None else _cut_or_pad(x, most), "mask": mask if most is None else _cut_or_pad(mask, most)}
        codec, hop = self.spec.codec, self.spec.hop
        audio = load_condition_audio(values, codec.sample_rate, channels=codec.channels)
        n = codec.num_frames(audio.wave.shape[-1]) if most is None else most
        lengths = audio.lengths.clamp(max=n * hop)
        wave = F.pad(audio.wave, (0, max(n * hop - audio.wave.shape[-1], 0)))[..., : n * hop]
        mask = torch.arange(n) < torch.tensor([codec.num_frames(length) for length in lengths.tolist()])[:, None]
        return {"wave": rearrange(wave, "b c (n s) -> b n c s", n=n), "lengths": lengths, "mask": mask}

    def encode_frozen(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.codec is None:
            return tensors
        mask, wave = tensors["mask"], rearrange(tensors["wave"], "b n c s -> b c (n s)")
        with torch.autocast(wave.device.type, enabled=False):
            frames = self.codec.encode(Audio(wave, self.spec.codec.sample_rate, tensors["lengths"]))
            x = self.codec.embed(frames).transpose(1, 2)
        return {"x": torch.where(mask[..., None], _cut_or_pad(x, mask.shape[1]), 0), "mask": mask}

    def project(self, tensors: dict[str, Tensor]) -> MaskedSequence:
        mask = tensors["mask"]
        return MaskedSequence(self.out(tensors["x"].to(self.dtype_ref.dtype)) * mask[..., None], mask)


def _cut_or_pad(x: Tensor, frames: int) -> Tensor:
    """Cut or zero-pad the second axis to `frames`."""
    missing = max(frames - x.shape[1], 0)
    return F.pad(x, (*(0, 0) * (x.ndim - 2), 0, missing))[:, :frames]
