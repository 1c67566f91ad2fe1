"""Data passed between parts. `Audio` is in `cadenza.dsp.audio`, as it can be saved.

Letters in shapes: b batch, c channels, t samples, f frames, k codebooks, d width, n tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, TypeVar

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor


@dataclass(frozen=True)
class FrameFormat:
    """Format of a codec's frames; generators depend on nothing else of a codec."""

    kind: Literal["codes", "latents"]
    frame_rate: float  # frames a second
    channels: int  # codebooks of codes, channels of latents
    cardinality: int = 0  # entries of a codebook; 0 for latents


FramesT = TypeVar("FramesT", bound="_Frames")


class _Frames:
    """Methods of `Codes` and `Latents`; `_data_field` names the tensor of their frames."""

    _data_field: ClassVar[str]
    lengths: Tensor

    def __post_init__(self) -> None:
        if self.lengths is None:
            full = torch.full((len(self),), self.data.shape[-1], dtype=torch.long, device=self.data.device)
            object.__setattr__(self, "lengths", full)

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self: FramesT) -> Iterator[FramesT]:
        """Yield each clip as a batch of one without its padding."""
        for i, length in enumerate(self.lengths.tolist()):
            clip = {name: x[i : i + 1] for name, x in vars(self).items() if x is not None}
            clip[self._data_field] = clip[self._data_field][..., :length]
            yield type(self)(**clip)

    @property
    def data(self) -> Shaped[Tensor, "b k f"]:
        """Tensor of the frames: `ids` of Codes, `z` of Latents."""
        return getattr(self, self._data_field)

    def with_data(self: FramesT, data: Shaped[Tensor, "b k f"], lengths: Int[Tensor, " b"] | None = None) -> FramesT:
        """Return frames of this class with other data."""
        return type(self)(data, lengths)  # type: ignore[call-arg]

    def to(self: FramesT, device: torch.device | str) -> FramesT:
        moved = {name: x.to(device) for name, x in vars(self).items() if x is not None}
        return replace(self, **moved)  # type: ignore[type-var]

    @classmethod
    def cat(cls, chunks: Sequence[FramesT]) -> FramesT:
        """Concatenate successive chunks of the same clips along frames; only a clip's last chunk may be padded.

        The scale of codes is that of the first chunk.
        """
        lengths = sum((chunk.lengths for chunk in chunks), torch.zeros_like(chunks[0].lengths))
        frames = chunks[0].with_data(torch.cat([chunk.data for chunk in chunks], -1), lengths)
        return replace(frames, scale=chunks[0].scale) if isinstance(frames, Codes) else frames  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Codes(_Frames):
    """Discrete frames of a batch of clips.

    `lengths`: true frames of each clip, by default all. `samples`: audio samples of each clip, None for lengths * hop length.
    `scale`: loudness factor per clip or chunk, for codecs that have one. `ended`: True where a clip ends with the whole
    piece rather than with a crop, None if unknown.
    """

    _data_field: ClassVar[str] = "ids"
    ids: Int[Tensor, "b k f"]
    lengths: Int[Tensor, " b"] = None  # type: ignore[assignment]  # set by __post_init__
    samples: Int[Tensor, " b"] | None = None
    scale: Float[Tensor, "b ..."] | None = None
    ended: Bool[Tensor, " b"] | None = None


@dataclass(frozen=True)
class Latents(_Frames):
    """Continuous frames of a batch of clips; `lengths` and `samples` as for `Codes`."""

    _data_field: ClassVar[str] = "z"
    z: Float[Tensor, "b d f"]
    lengths: Int[Tensor, " b"] = None  # type: ignore[assignment]  # set by __post_init__
    samples: Int[Tensor, " b"] | None = None


@dataclass(frozen=True)
class KnownFrames:
    """Frames that are given, where `mask` is True: continuation, inpainting and windows."""

    frames: Codes | Latents
    mask: Bool[Tensor, "b f"]


Slot = Literal["cross", "prepend", "add", "concat", "global"]
ConditionKind = Literal["vector", "tokens", "frames"]  # one vector a clip, a set of tokens, or one vector a frame


@dataclass(frozen=True)
class Condition:
    """Output of one conditioner for a batch of items.

    `mask` is True at real embeddings, `present` False for items without a value. `null_embedding` replaces an absent or
    dropped value; None means no valid position. For values that change over time, the n positions are those of s values
    one after another, and `spans` holds (start, end, fade in, fade out) of each in seconds from the start of the clip.
    """

    embeddings: Float[Tensor, "b n d"]
    mask: Bool[Tensor, "b n"]
    present: Bool[Tensor, " b"]
    null_embedding: Float[Tensor, "m d"] | None = None
    spans: Float[Tensor, "b s 4"] | None = None


@dataclass(frozen=True)
class MaskedSequence:
    """Vectors and a mask of the real ones; a row without any contributes exactly zero.

    `bias` is added to the attention logits at each frame: the logarithm of the token's weight, -inf for weight 0.
    """

    x: Float[Tensor, "b n d"]
    mask: Bool[Tensor, "b n"]
    bias: Float[Tensor, "b n f"] | None = None


@dataclass(frozen=True)
class InterpolatedCondition:
    """Vectors that a generator interpolates over its own steps; `lengths` of them are real."""

    x: Float[Tensor, "b n d"]
    lengths: Int[Tensor, " b"]
    resize: Literal["linear", "nearest"]


@dataclass(frozen=True)
class FusedConditions:
    """Conditioning inputs of a generator, one field for each slot."""

    cross: MaskedSequence | None = None  # attended to by every block
    prepend: MaskedSequence | None = None  # prepended to the sequence
    add: Float[Tensor, "b f d"] | None = None  # added to every frame
    concat: Float[Tensor, "b f e"] | None = None  # concatenated to every frame
    global_vector: Float[Tensor, "b g"] | None = None  # slot `global`: modulates every block
    interpolated: tuple[InterpolatedCondition, ...] | None = None  # slot `add` with `align: steps`


@dataclass(frozen=True)
class GuidanceBranch:
    """One term of guidance; weights of a request's branches sum to 1, as do their unguided weights."""

    weight: float
    fused: FusedConditions
    unguided_weight: float = 0.0  # weight at frames outside the guidance interval
