"""Several sources of one clip, such as stems, as one vector per frame: each through a codec and its own layer."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from einops import rearrange
from pydantic import Field, field_validator
from torch import Tensor, nn

from cadenza.conditioners.base_encoders import CodecFramesConditioner, CodecFramesConditionerSpec, example_codec
from cadenza.core.errors import RequestError
from cadenza.core.spec import did_you_mean
from cadenza.core.types import MaskedSequence
from cadenza.dsp.audio import Audio


class SourceMixSpec(CodecFramesConditionerSpec):
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


class SourceMixConditioner(CodecFramesConditioner):
    """Sum the frozen codec's frames of all present sources, each projected by the linear layer of its source.

    A value is a mapping of sources to audio, or to frames [d, f]; raises RequestError for an unknown source.
    """

    placeholder: Mapping[str, Any] = {}

    def __init__(self, spec: SourceMixSpec) -> None:
        super().__init__(spec)
        self.heads = nn.ModuleList(nn.Linear(self.dim, spec.output_dim) for _ in spec.sources)

    def parse_values(self, values: Sequence[Any]) -> list[Mapping[str, Any] | None]:
        """Return the present sources of each value; a value without any is absent."""
        return [self._present_sources(value) or None for value in values]

    def preprocess(self, values: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return `wave` [b, n, k, c, s] or frames `x` [b, n, k, d]; also `lengths` [b, k] and `mask` [b, n].

        Lengths are in samples or frames, 0 for a missing source; the mask is True for frames of any source.
        """
        indices = [(row, k) for row, value in enumerate(values) for k, name in enumerate(self.spec.sources) if name in value]
        inputs = [values[row][self.spec.sources[k]] for row, k in indices]
        lengths = torch.zeros(len(values), len(self.spec.sources), dtype=torch.long)
        packed, packed_lengths = self.pack(inputs or [self.short_input()])
        x = packed.new_zeros(*lengths.shape, *packed.shape[1:])
        if indices:
            row, k = torch.tensor(indices).T
            x[row, k], lengths[row, k] = packed, packed_lengths
        mask = torch.arange(x.shape[2]) < self.num_frames(lengths).amax(1, keepdim=True)
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
            vectors, frames[row, k] = self.embed_audio(wave[row, k], lengths[row, k])
            x[row, k, : vectors.shape[1]] = vectors.to(x.dtype)
        return {"x": x.transpose(1, 2), "lengths": frames, "mask": tensors["mask"]}

    def project(self, tensors: dict[str, Tensor]) -> MaskedSequence:
        x = tensors["x"].to(self.dtype_ref.dtype)
        mask = torch.arange(x.shape[1], device=x.device)[:, None] < tensors["lengths"][:, None]
        projected = [head(x[:, :, k]) * mask[:, :, k, None] for k, head in enumerate(self.heads)]
        return MaskedSequence(torch.stack(projected).sum(0), tensors["mask"])

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
