"""Several sources of one clip, such as stems, as one vector per frame: each through a codec and its own layer."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from einops import rearrange
from pydantic import Field, field_validator
from torch import Tensor, nn
from torch.nn import functional as F

from cadenza.codecs.base import CodecSpec
from cadenza.conditioners.base import CodecConditioner, CodecConditionerSpec, codec_frames, codec_width, example_codec
from cadenza.core.errors import RequestError
from cadenza.core.spec import did_you_mean
from cadenza.core.types import MaskedSequence
from cadenza.dsp.audio import Audio, load_condition_audio


class SourceMixSpec(CodecConditionerSpec):
    """Names of the `sources`; `codec`, `model` and `input_kind` are as in `waveform`."""

    type: Literal["source_mix"] = "source_mix"
    widget: ClassVar[str] = "stems"
    sources: tuple[str, ...] = Field(min_length=1)

    @field_validator("sources")
    @classmethod
    def _check_unique(cls, sources: tuple[str, ...]) -> tuple[str, ...]:
        if twice := sorted({name for name in sources if sources.count(name) > 1}):
            raise ValueError(f"'{twice[0]}' is named twice")
        return sources

    @classmethod
    def example(cls) -> tuple["SourceMixSpec", list[Any]]:
        codec = example_codec()
        rng = torch.Generator().manual_seed(0)
        one, two, three = (Audio(torch.randn(1, 1, samples, generator=rng), 800) for samples in (41, 16, 64))
        return cls(output_dim=8, sources=("drums", "bass"), codec=codec), [{"drums": one, "bass": two}, {"bass": three}]

    def build(self) -> "SourceMixConditioner":
        return SourceMixConditioner(self)


class SourceMixConditioner(CodecConditioner[Mapping[str, Any]]):
    """Sum the frozen codec's frames of all present sources, each projected by the linear layer of its source.

    A value is a mapping of sources to audio, or to frames [d, f]; raises RequestError for an unknown source.
    """

    placeholder: Mapping[str, Any] = {}
    padding_masks: ClassVar[dict[str, str]] = dict.fromkeys(("wave", "x", "mask"), "mask")  # for the feature cache

    def __init__(self, spec: SourceMixSpec) -> None:
        super().__init__(spec)
        self.codec = spec.codec.build().requires_grad_(False) if spec.input_kind == "audio" else None
        self.dim = codec_width(spec.codec)
        self.heads = nn.ModuleList(nn.Linear(self.dim, spec.output_dim) for _ in spec.sources)
        self.dtype_ref = nn.Buffer(torch.empty(0), persistent=False)  # empty; has this module's dtype

    def prepare(self, values: Sequence[Any]) -> Any:
        """Return CPU tensors; a value without any source is absent."""
        return super().prepare([self._present_sources(value) or None for value in values])

    def preprocess(self, values: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return `wave` [b, n, k, c, s] or frames `x` [b, n, k, d]; also `lengths` [b, k] and `mask` [b, n].

        Lengths are in samples or frames, 0 for a missing source; the mask is True for frames of any source.
        """
        indices = [(row, k) for row, value in enumerate(values) for k, name in enumerate(self.spec.sources) if name in value]
        inputs = [values[row][self.spec.sources[k]] for row, k in indices]
        lengths = torch.zeros(len(values), len(self.spec.sources), dtype=torch.long)
        packed, packed_lengths = self._pack_frames(inputs) if self.codec is None else self._pack_waves(inputs)
        row, k = torch.tensor(indices, dtype=torch.long).reshape(-1, 2).T
        x = packed.new_zeros(*lengths.shape, *packed.shape[1:])
        x[row, k], lengths[row, k] = packed, packed_lengths
        counts = lengths if self.codec is None else _num_frames(self.spec.codec, lengths)
        mask = torch.arange(x.shape[2]) < counts.amax(1, keepdim=True)
        return {"x" if self.codec is None else "wave": x.transpose(1, 2), "lengths": lengths, "mask": mask}

    def encode_frozen(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return frames `x` [b, n, k, d], their number `lengths` [b, k] and `mask` [b, n]."""
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
        mask = torch.arange(x.shape[1], device=x.device)[:, None] < tensors["lengths"][:, None]
        projected = [head(x[:, :, k]) * mask[:, :, k, None] for k, head in enumerate(self.heads)]
        return MaskedSequence(torch.stack(projected).sum(0), tensors["mask"])

    def _pack_waves(self, values: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Return audio by frames [m, n, c, s] and lengths in samples [m]."""
        codec, hop = self.spec.codec, self.spec.hop
        if not values:
            return (torch.zeros(0, 1, codec.channels, hop), torch.zeros(0, dtype=torch.long))
        audio = load_condition_audio(values, codec.sample_rate, channels=codec.channels)
        n = codec.num_frames(audio.wave.shape[-1])
        wave = F.pad(audio.wave, (0, n * hop - audio.wave.shape[-1]))
        return (rearrange(wave, "m c (n s) -> m n c s", n=n), audio.lengths)

    def _pack_frames(self, values: Sequence[Any]) -> tuple[Tensor, Tensor]:
        """Return frames [m, n, d] and their lengths [m]."""
        rows = [codec_frames(value, self.dim) for value in values] or [torch.zeros(1, self.dim)]
        lengths = torch.tensor([len(row) for row in rows])
        return (nn.utils.rnn.pad_sequence(rows, batch_first=True)[: len(values)], lengths[: len(values)])

    def _present_sources(self, value: Any) -> dict[str, Any]:
        """Return the sources of a value that are not None; raises RequestError for an unknown source."""
        if value is None:
            return {}
        sources = self.spec.sources
        if not isinstance(value, Mapping):
            raise RequestError(f"a mapping of sources to sounds is needed, such as {{'{sources[0]}': ...}}, got {value!r}")
        for name in value:
            if name not in sources:
                raise RequestError(f"no source called {name!r}.{did_you_mean(str(name), list(sources))}")
        return {name: sound for name, sound in value.items() if sound is not None}


def _num_frames(codec: CodecSpec, samples: Tensor) -> Tensor:
    """Return the number of frames for lengths in samples [b, k]."""
    return torch.tensor([[codec.num_frames(each) if each else 0 for each in row] for row in samples.tolist()])
