"""Several sounds of one clip, such as its stems, as one vector a frame: each through a codec and a head of its own."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from cadenza.codecs.base import CodecSpec
from cadenza.conditioners.base import Conditioner, ConditionerSpec
from cadenza.core.errors import RequestError
from cadenza.core.spec import near
from cadenza.core.types import Gives, Latents, Tokens
from cadenza.dsp.audio import Audio
from cadenza.dsp.hearing import heard


class SourceMixSpec(ConditionerSpec):
    """A value is a mapping of some of the `sources` to sounds; `codec`, `model` and `given` are as in `waveform`."""

    type: Literal["source_mix"] = "source_mix"
    widget: ClassVar[str] = "stems"
    sources: tuple[str, ...] = Field(min_length=1)
    codec: CodecSpec
    model: str | None = None
    given: Literal["audio", "frames"] = "audio"

    @field_validator("sources")
    @classmethod
    def _once(cls, sources: tuple[str, ...]) -> tuple[str, ...]:
        if twice := sorted({name for name in sources if sources.count(name) > 1}):
            raise ValueError(f"'{twice[0]}' is named twice")
        return sources

    @model_validator(mode="after")
    def _evenly(self) -> Self:
        if self.codec.chunked:
            raise ValueError("codec: its frames are those of overlapping chunks, not one after another; take another codec")
        return self

    @property
    def gives(self) -> Gives:
        return "frames"

    @property
    def sample_rate(self) -> int:
        return self.codec.sample_rate

    @property
    def hop(self) -> int:
        """Samples per frame, at the sample rate of the codec."""
        return self.codec.hop

    @classmethod
    def example(cls) -> tuple["SourceMixSpec", list[Any]]:
        codec = CodecSpec.parse(
            {"type": "encodec", "sample_rate": 800, "strides": (4, 2), "codebooks": 2, "bins": 16, "filters": 2, "dimension": 4}
        )
        rng = torch.Generator().manual_seed(0)
        one, two, three = (Audio(torch.randn(1, 1, samples, generator=rng), 800) for samples in (41, 16, 64))
        return cls(width=8, sources=("drums", "bass"), codec=codec), [{"drums": one, "bass": two}, {"bass": three}]

    def build(self) -> "SourceMix":
        return SourceMix(self)


class SourceMix(Conditioner[Mapping[str, Any]]):
    """The sum over the sources that are there of the frozen codec's frames, each through the linear layer of its source."""

    blank: Mapping[str, Any] = {}

    def __init__(self, spec: SourceMixSpec) -> None:
        super().__init__(spec)
        self.codec = spec.codec.build().requires_grad_(False) if spec.given == "audio" else None
        with torch.device("meta"):
            self.dim = spec.codec.build().vector_width
        self.heads = nn.ModuleList(nn.Linear(self.dim, spec.width) for _ in spec.sources)
        self.like = nn.Buffer(torch.empty(0), persistent=False)  # of nothing, of the dtype of this module

    def fit(self, values: Iterable[Any]) -> None:
        if self.codec is None:
            return
        if self.spec.model is None:
            warnings.warn("the codec of a `source_mix` begins as noise and stays so; set its `model`", stacklevel=2)
        else:
            self.codec.load_from(self.spec.model)

    def keep(self, folder: Path, place: str) -> ConditionerSpec:
        return self.spec.model_copy(update={"model": None})  # its weights are saved with the others

    def prepare(self, values: Sequence[Any]) -> Any:
        """A value without any source says as little as none, so it counts as absent."""
        return super().prepare([self._there(value) or None for value in values])

    def read(self, values: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """`wave` [b k c t] of each source and its true `lengths` [b k], 0 of those that are not there, or `x` [b k n d] so."""
        places = [(row, k) for row, value in enumerate(values) for k, name in enumerate(self.spec.sources) if name in value]
        given = [values[row][self.spec.sources[k]] for row, k in places]
        lengths = torch.zeros(len(values), len(self.spec.sources), dtype=torch.long)
        if self.codec is None:
            rows = [self._frames(value).T for value in given]
            x = torch.zeros(*lengths.shape, max([1, *map(len, rows)]), self.dim)
            for (row, k), line in zip(places, rows, strict=True):
                x[row, k, : len(line)], lengths[row, k] = line, len(line)
            return {"x": x, "lengths": lengths}
        spec = self.spec.codec
        if not places:
            return {"wave": torch.zeros(*lengths.shape, spec.channels, spec.hop), "lengths": lengths}
        audio = heard(given, spec.sample_rate, channels=spec.channels)
        wave = torch.zeros(*lengths.shape, *audio.wave.shape[1:])
        row, k = torch.tensor(places).T
        wave[row, k], lengths[row, k] = audio.wave, audio.lengths
        return {"wave": wave, "lengths": lengths}

    def encode(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """`x` [b k n d], the frames of each source, and their `lengths` [b k]."""
        if self.codec is None:
            return tensors
        wave, lengths = tensors["wave"], tensors["lengths"]
        x = wave.new_zeros(*lengths.shape, self.spec.codec.frames_of(wave.shape[-1]), self.dim)
        frames = torch.zeros_like(lengths)
        row, k = lengths.nonzero(as_tuple=True)
        if len(row):
            with torch.autocast(wave.device.type, enabled=False):
                coded = self.codec.encode(Audio(wave[row, k], self.spec.codec.sample_rate, lengths[row, k]))
                vectors = self.codec.vectors(coded).transpose(1, 2)
            x[row, k, : vectors.shape[1]], frames[row, k] = vectors.to(x.dtype), coded.lengths
        return {"x": x, "lengths": frames}

    def embed(self, tensors: dict[str, Tensor]) -> Tokens:
        x = tensors["x"].to(self.like.dtype)
        there = torch.arange(x.shape[2], device=x.device) < tensors["lengths"][..., None]
        each = [head(x[:, k]) * there[:, k, :, None] for k, head in enumerate(self.heads)]
        return Tokens(torch.stack(each).sum(0), there.any(1))

    def _there(self, value: Any) -> dict[str, Any]:
        """The sources of a value that are there."""
        if value is None:
            return {}
        known = self.spec.sources
        if not isinstance(value, Mapping):
            raise RequestError(f"a mapping of sources to sounds is needed, such as {{'{known[0]}': ...}}, got {value!r}")
        for name in value:
            if name not in known:
                raise RequestError(f"no source called {name!r}.{near(str(name), list(known))}")
        return {name: sound for name, sound in value.items() if sound is not None}

    def _frames(self, value: Any) -> Tensor:
        """[d f] of a source that was encoded beforehand."""
        z = value.z[0, :, : int(value.lengths)] if isinstance(value, Latents) and len(value) == 1 else value
        if not isinstance(z, Tensor) or z.ndim != 2 or z.shape[0] != self.dim or not z.shape[1] or not bool(z.isfinite().all()):
            what = f"a tensor {list(z.shape)}" if isinstance(z, Tensor) else type(z).__name__
            raise RequestError(
                f"finite frames of a codec are needed, Latents of one clip or a tensor [{self.dim}, f], got {what}"
            )
        return z.float().cpu()
