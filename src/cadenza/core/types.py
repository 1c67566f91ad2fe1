"""Data passed between parts. `Audio` is in `cadenza.dsp.audio`, as it can be saved.

Letters in shapes: b batch, c channels, t samples, f frames, k codebooks, d width, n tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal, Self

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class FrameFormat:
    """Format of a codec's frames; generators depend on nothing else of a codec."""

    kind: Literal["codes", "latents"]
    frame_rate: float  # frames a second
    channels: int  # codebooks of codes, channels of latents
    cardinality: int = 0  # entries of a codebook; 0 for latents


@dataclass(frozen=True)
class Codes:
    """Discrete frames of a batch of clips.

    `lengths`: true frames of each clip, by default all. `samples`: audio samples of each clip, None for lengths * hop length.
    `scale`: loudness factor per clip or chunk, for codecs that have one. `ended`: True where a clip ends with the whole
    piece rather than with a crop, None if unknown.
    """

    ids: Int[Tensor, "b k f"]
    lengths: Int[Tensor, " b"] = None  # type: ignore[assignment]  # filled in below
    samples: Int[Tensor, " b"] | None = None
    scale: Float[Tensor, "b ..."] | None = None
    ended: Bool[Tensor, " b"] | None = None

    def __post_init__(self) -> None:
        _fill_lengths(self, self.ids)

    def __len__(self) -> int:
        return len(self.ids)

    def __iter__(self) -> Iterator["Codes"]:
        """Yield each clip as a batch of one without its padding."""
        for i, length in enumerate(self.lengths.tolist()):
            scale = None if self.scale is None else self.scale[i : i + 1]
            samples = None if self.samples is None else self.samples[i : i + 1]
            ended = None if self.ended is None else self.ended[i : i + 1]
            yield Codes(self.ids[i : i + 1, :, :length], self.lengths[i : i + 1], samples, scale, ended)

    @property
    def data(self) -> Int[Tensor, "b k f"]:
        """Tensor of the frames: `ids` of Codes, `z` of Latents."""
        return self.ids

    def with_data(self, data: Int[Tensor, "b k f"], lengths: Int[Tensor, " b"] | None = None) -> "Codes":
        """Return frames of this class with other data."""
        return Codes(data, lengths)  # type: ignore[arg-type]  # filled in

    def to(self, device: torch.device | str) -> Self:
        moved = {name: value.to(device) for name, value in vars(self).items() if value is not None}
        return replace(self, **moved)

    @classmethod
    def cat(cls, chunks: Sequence["Codes"]) -> "Codes":
        """Concatenate successive chunks of the same clips along frames; only a clip's last chunk may be padded."""
        ids = torch.cat([chunk.ids for chunk in chunks], -1)
        return cls(ids, sum((chunk.lengths for chunk in chunks), torch.zeros_like(chunks[0].lengths)), scale=chunks[0].scale)


@dataclass(frozen=True)
class Latents:
    """Continuous frames of a batch of clips; `lengths` and `samples` as for `Codes`."""

    z: Float[Tensor, "b d f"]
    lengths: Int[Tensor, " b"] = None  # type: ignore[assignment]  # filled in below
    samples: Int[Tensor, " b"] | None = None

    def __post_init__(self) -> None:
        _fill_lengths(self, self.z)

    def __len__(self) -> int:
        return len(self.z)

    def __iter__(self) -> Iterator["Latents"]:
        """Yield each clip as a batch of one without its padding."""
        for i, length in enumerate(self.lengths.tolist()):
            samples = None if self.samples is None else self.samples[i : i + 1]
            yield Latents(self.z[i : i + 1, :, :length], self.lengths[i : i + 1], samples)

    @property
    def data(self) -> Float[Tensor, "b d f"]:
        """Tensor of the frames: `ids` of Codes, `z` of Latents."""
        return self.z

    def with_data(self, data: Float[Tensor, "b d f"], lengths: Int[Tensor, " b"] | None = None) -> "Latents":
        """Return frames of this class with other data."""
        return Latents(data, lengths)  # type: ignore[arg-type]  # filled in

    def to(self, device: torch.device | str) -> Self:
        moved = {name: value.to(device) for name, value in vars(self).items() if value is not None}
        return replace(self, **moved)

    @classmethod
    def cat(cls, chunks: Sequence["Latents"]) -> "Latents":
        """Concatenate successive chunks of the same clips along frames; only a clip's last chunk may be padded."""
        z = torch.cat([chunk.z for chunk in chunks], -1)
        return cls(z, sum((chunk.lengths for chunk in chunks), torch.zeros_like(chunks[0].lengths)))


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


def _fill_lengths(owner: Codes | Latents, x: Tensor) -> None:
    if owner.lengths is None:
        full = torch.full((x.shape[0],), x.shape[-1], dtype=torch.long, device=x.device)
        object.__setattr__(owner, "lengths", full)
