"""Several sounds of one clip, such as its stems, as one vector a frame: each through a codec and a head of its own."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from einops import rearrange
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from cadenza.codecs.base import CodecSpec
from cadenza.conditioners.base import CodecConditioner, CodecConditionerSpec
from cadenza.core.errors import RequestError
from cadenza.core.spec import did_you_mean
from cadenza.core.types import Latents, MaskedSequence
from cadenza.dsp.audio import Audio, load_condition_audio


class SourceMixSpec(CodecConditionerSpec):
    """A value is a mapping of some of the `sources` to sounds; `codec`, `model` and `given` are as in `waveform`."""

    type: Literal["source_mix"] = "source_mix"
    widget: ClassVar[str] = "stems"
    sources: tuple[str, ...] = Field(min_length=1)

    @field_validator("sources")
    @classmethod
    def _once(cls, sources: tuple[str, ...]) -> tuple[str, ...]:
        if twice := sorted({name for name in sources if sources.count(name) > 1}):
            raise ValueError(f"'{twice[0]}' is named twice")
        return sources

    @classmethod
    def example(cls) -> tuple["SourceMixSpec", list[Any]]:
        codec = CodecSpec.parse(
            {"type": "encodec", "sample_rate": 800, "strides": (4, 2), "codebooks": 2, "bins": 16, "filters": 2, "dimension": 4}
        )
        rng = torch.Generator().manual_seed(0)
        one, two, three = (Audio(torch.randn(1, 1, samples, generator=rng), 800) for samples in (41, 16, 64))
        return cls(output_dim=8, sources=("drums", "bass"), codec=codec), [{"drums": one, "bass": two}, {"bass": three}]

    def build(self) -> "SourceMixConditioner":
        return SourceMixConditioner(self)


class SourceMixConditioner(CodecConditioner[Mapping[str, Any]]):
    """The sum over the sources that are there of the frozen codec's frames, each through the linear layer of its source."""

    placeholder: Mapping[str, Any] = {}
    padding_masks: ClassVar[dict[str, str]] = dict.fromkeys(("wave", "x", "mask"), "mask")  # for a cache of features

    def __init__(self, spec: SourceMixSpec) -> None:
        super().__init__(spec)
        self.codec = spec.codec.build().requires_grad_(False) if spec.input_kind == "audio" else None
        with torch.device("meta"):
            self.dim = spec.codec.build().embedding_dim
        self.heads = nn.ModuleList(nn.Linear(self.dim, spec.output_dim) for _ in spec.sources)
        self.dtype_ref = nn.Buffer(torch.empty(0), persistent=False)  # of nothing, of the dtype of this module

    def prepare(self, values: Sequence[Any]) -> Any:
        """A value without any source says as little as none, so it counts as absent."""
        return super().prepare([self._there(value) or None for value in values])

    def preprocess(self, values: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """The `wave` of each frame of each source [b n k c s] and its samples in all, `lengths` [b k], 0 where it is not there.

        Frames that are given are `x` [b n k d], and counted; the `mask` says which are true of any source.
        """
        places = [(row, k) for row, value in enumerate(values) for k, name in enumerate(self.spec.sources) if name in value]
        given = [values[row][self.spec.sources[k]] for row, k in places]
        lengths = torch.zeros(len(values), len(self.spec.sources), dtype=torch.long)
        made = self._frames(given) if self.codec is None else self._waves(given)
        row, k = torch.tensor(places, dtype=torch.long).reshape(-1, 2).T
        x = made.x.new_zeros(*lengths.shape, *made.x.shape[1:])
        x[row, k], lengths[row, k] = made.x, made.lengths
        counts = lengths if self.codec is None else _counted(self.spec.codec, lengths)
        mask = torch.arange(x.shape[2]) < counts.amax(1, keepdim=True)
        return {"x" if self.codec is None else "wave": x.transpose(1, 2), "lengths": lengths, "mask": mask}

    def encode_frozen(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """`x` [b n k d], the frames of each source, how many are true of each, `lengths` [b k], and of any, `mask` [b n]."""
        if self.codec is None:
            return tensors
        wave, lengths = rearrange(tensors["wave"], "b n k c s -> b k c (n s)"), tensors["lengths"]
        x = wave.new_zeros(*lengths.shape, tensors["mask"].shape[1], self.dim)
        frames = torch.zeros_like(lengths)
        row, k = lengths.nonzero(as_tuple=True)
        if len(row):
            with torch.autocast(wave.device.type, enabled=False):
                coded = self.codec.encode(Audio(wave[row, k], self.spec.codec.sample_rate, lengths[row, k]))
                vectors = self.codec.embed(coded).transpose(1, 2)
            x[row, k, : vectors.shape[1]], frames[row, k] = vectors.to(x.dtype), coded.lengths
        return {"x": x.transpose(1, 2), "lengths": frames, "mask": tensors["mask"]}

    def project(self, tensors: dict[str, Tensor]) -> MaskedSequence:
        x = tensors["x"].to(self.dtype_ref.dtype)
        there = torch.arange(x.shape[1], device=x.device)[:, None] < tensors["lengths"][:, None]
        each = [head(x[:, :, k]) * there[:, :, k, None] for k, head in enumerate(self.heads)]
        return MaskedSequence(torch.stack(each).sum(0), tensors["mask"])

    def _waves(self, given: Sequence[Any]) -> "_Made":
        """Sounds by frames, [m n c s]."""
        codec, hop = self.spec.codec, self.spec.hop
        if not given:
            return _Made(torch.zeros(0, 1, codec.channels, hop), torch.zeros(0, dtype=torch.long))
        audio = load_condition_audio(given, codec.sample_rate, channels=codec.channels)
        n = codec.num_frames(audio.wave.shape[-1])
        wave = F.pad(audio.wave, (0, n * hop - audio.wave.shape[-1]))
        return _Made(rearrange(wave, "m c (n s) -> m n c s", n=n), audio.lengths)

    def _frames(self, given: Sequence[Any]) -> "_Made":
        """Frames that were made beforehand, [m n d]."""
        rows = [self._one(value).T for value in given] or [torch.zeros(1, self.dim)]
        lengths = torch.tensor([len(row) for row in rows])
        return _Made(nn.utils.rnn.pad_sequence(rows, batch_first=True)[: len(given)], lengths[: len(given)])

    def _there(self, value: Any) -> dict[str, Any]:
        """The sources of a value that are there."""
        if value is None:
            return {}
        known = self.spec.sources
        if not isinstance(value, Mapping):
            raise RequestError(f"a mapping of sources to sounds is needed, such as {{'{known[0]}': ...}}, got {value!r}")
        for name in value:
            if name not in known:
                raise RequestError(f"no source called {name!r}.{did_you_mean(str(name), list(known))}")
        return {name: sound for name, sound in value.items() if sound is not None}

    def _one(self, value: Any) -> Tensor:
        """[d f] of a source that was encoded beforehand."""
        z = value.z[0, :, : int(value.lengths)] if isinstance(value, Latents) and len(value) == 1 else value
        if not isinstance(z, Tensor) or z.ndim != 2 or z.shape[0] != self.dim or not z.shape[1] or not bool(z.isfinite().all()):
            what = f"a tensor {list(z.shape)}" if isinstance(z, Tensor) else type(z).__name__
            raise RequestError(
                f"finite frames of a codec are needed, Latents of one clip or a tensor [{self.dim}, f], got {what}"
            )
        return z.float().cpu()


class _Made(NamedTuple):
    """What is there of all sources of all items, one after another."""

    x: Tensor
    lengths: Tensor


def _counted(codec: CodecSpec, samples: Tensor) -> Tensor:
    """Frames of so many samples."""
    return torch.tensor([[codec.num_frames(each) if each else 0 for each in row] for row in samples.tolist()])
