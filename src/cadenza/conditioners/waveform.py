"""A sound as one vector a frame of any codec: its latents, or what its codes stand for."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from cadenza.codecs.base import CodecSpec
from cadenza.conditioners.base import CodecConditioner, CodecConditionerSpec
from cadenza.core.errors import RequestError
from cadenza.core.types import Latents, MaskedSequence
from cadenza.dsp.audio import Audio, load_condition_audio, silence


class WaveformSpec(CodecConditionerSpec):
    """With `given: frames` a value is what the codec would give, [d f].

    With `frames` each sound is cut to so many frames, or followed by nothing until it has them, as a clip of that length
    needs it in `add` and `concat`.
    """

    type: Literal["waveform"] = "waveform"
    widget: ClassVar[str] = "audio"
    max_frames: int | None = Field(default=None, ge=1)  # of the longest clip in training
    project: Literal["always", "auto"] = "always"  # auto: not where the codec has that width already

    @classmethod
    def example(cls) -> tuple["WaveformSpec", list[Any]]:
        codec = CodecSpec.parse(
            {"type": "encodec", "sample_rate": 800, "strides": (4, 2), "codebooks": 2, "bins": 16, "filters": 2, "dimension": 4}
        )
        rng = torch.Generator().manual_seed(0)
        sounds = [Audio(torch.randn(1, 1, samples, generator=rng), 800) for samples in (41, 16, 64)]
        return cls(output_dim=8, codec=codec), sounds

    def build(self) -> "WaveformConditioner":
        return WaveformConditioner(self)


class WaveformConditioner(CodecConditioner[Any]):
    """The frozen codec's frames, each through a linear layer."""

    padding_masks: ClassVar[dict[str, str]] = dict.fromkeys(("wave", "x", "mask"), "mask")  # for a cache of features

    def __init__(self, spec: WaveformSpec) -> None:
        super().__init__(spec)
        self.codec = spec.codec.build().requires_grad_(False) if spec.input_kind == "audio" else None
        self.dim = _width(spec.codec)
        self.out = (
            nn.Identity() if spec.project == "auto" and self.dim == spec.output_dim else nn.Linear(self.dim, spec.output_dim)
        )
        self.dtype_ref = nn.Buffer(torch.empty(0), persistent=False)  # of nothing, of the dtype of this module

    @property
    def placeholder(self) -> Any:  # type: ignore[override]
        return torch.zeros(self.dim, 1) if self.codec is None else silence(self.spec.sample_rate, samples=self.spec.hop)

    def preprocess(self, values: Sequence[Any]) -> dict[str, Tensor]:
        """The `wave` of each frame [b n c s], and samples in all, `lengths` [b]; or the frames `x` [b n d].

        The `mask` says which frames are true.
        """
        most = self.spec.max_frames
        if self.codec is None:
            x, mask = _side_by_side([_frames(value, self.dim) for value in values])
            return {"x": x if most is None else _exactly(x, most), "mask": mask if most is None else _exactly(mask, most)}
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
        return {"x": torch.where(mask[..., None], _exactly(x, mask.shape[1]), 0), "mask": mask}

    def project(self, tensors: dict[str, Tensor]) -> MaskedSequence:
        mask = tensors["mask"]
        return MaskedSequence(self.out(tensors["x"].to(self.dtype_ref.dtype)) * mask[..., None], mask)


def _width(codec: CodecSpec) -> int:
    """Numbers per frame of a codec."""
    with torch.device("meta"):
        return codec.build().embedding_dim


def _frames(value: Any, dim: int) -> Float[Tensor, "d f"]:
    """A value that was encoded beforehand."""
    z = value.z[0, :, : int(value.lengths)] if isinstance(value, Latents) and len(value) == 1 else value
    if not isinstance(z, Tensor) or z.ndim != 2 or z.shape[0] != dim or not z.shape[1] or not bool(z.isfinite().all()):
        what = f"a tensor {list(z.shape)}" if isinstance(z, Tensor) else type(z).__name__
        raise RequestError(f"finite frames of a codec are needed, Latents of one clip or a tensor [{dim}, f], got {what}")
    return z.float().cpu()


def _side_by_side(rows: list[Tensor]) -> tuple[Float[Tensor, "b n d"], Bool[Tensor, "b n"]]:
    lengths = torch.tensor([row.shape[1] for row in rows])
    mask = torch.arange(int(lengths.max())) < lengths[:, None]
    return nn.utils.rnn.pad_sequence([row.T for row in rows], batch_first=True), mask


def _exactly(x: Tensor, frames: int) -> Tensor:
    """The first `frames` along the second axis, with zeros where there are fewer."""
    short = max(frames - x.shape[1], 0)
    return F.pad(x, (*(0, 0) * (x.ndim - 2), 0, short))[:, :frames]
