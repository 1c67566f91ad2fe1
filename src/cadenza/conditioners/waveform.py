"""Audio as one vector per frame of a codec: its latents, or the embeddings of its codes."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from einops import rearrange
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from cadenza.conditioners.base import ProjectionConditioner
from cadenza.conditioners.base_encoders import CodecFramesConditioner, CodecFramesConditionerSpec, example_codec
from cadenza.dsp.audio import Audio


class WaveformSpec(CodecFramesConditionerSpec):
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


class WaveformConditioner(CodecFramesConditioner, ProjectionConditioner[Any]):
    """Project frames of the frozen codec with a linear layer.

    A value is Audio of one clip or a path, or frames as Latents of one clip or a tensor [d, f]; else RequestError is raised.
    """

    def __init__(self, spec: WaveformSpec) -> None:
        super().__init__(spec)
        self.add_projection(self.dim)

    @property
    def placeholder(self) -> Any:  # type: ignore[override]
        return self.short_input()

    def preprocess(self, values: Sequence[Any]) -> dict[str, Tensor]:
        """Return `wave` by frames [b, n, c, s] and `lengths` [b] in samples, or frames `x` [b, n, d]; and `mask` [b, n]."""
        x, lengths = self.pack(values, self.spec.max_frames)
        mask = torch.arange(x.shape[1]) < self.num_frames(lengths)[:, None]
        return {"x": x, "mask": mask} if self.codec is None else {"wave": x, "lengths": lengths, "mask": mask}

    def encode_frozen(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.codec is None:
            return tensors
        mask = tensors["mask"]
        x, _ = self.embed_audio(rearrange(tensors["wave"], "b n c s -> b c (n s)"), tensors["lengths"])
        x = F.pad(x, (0, 0, 0, mask.shape[1] - x.shape[1]))  # negative: cut
        return {"x": torch.where(mask[..., None], x, 0), "mask": mask}
