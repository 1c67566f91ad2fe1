"""What flows between parts; `Audio` lives in `cadenza.dsp.audio` because it can be saved.

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
    """What a codec's output looks like: all that a generator may know of a codec."""

    kind: Literal["codes", "latents"]
    frame_rate: float  # frames per second
    channels: int  # codebooks, or latent channels
    cardinality: int = 0  # entries of a codebook; codes only


@dataclass(frozen=True)
class Codes:
    """Discrete frames of a batch of clips.

    `lengths` are true frames (all of them when not given), `samples` the audio samples per clip that they
    stand for (frames times hop when not given), `scale` a loudness factor per clip or chunk where the codec has one.
    `ended` is True where the last true frame is the last of the piece, not of a crop; not known when not given.
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
        """Each clip as a batch of one, without its padding."""
        for i, length in enumerate(self.lengths.tolist()):
            scale = None if self.scale is None else self.scale[i : i + 1]
            samples = None if self.samples is None else self.samples[i : i + 1]
            ended = None if self.ended is None else self.ended[i : i + 1]
            yield Codes(self.ids[i : i + 1, :, :length], self.lengths[i : i + 1], samples, scale, ended)

    @property
    def data(self) -> Int[Tensor, "b k f"]:
        """What every kind of frames has: `ids` here, `z` in Latents."""
        return self.ids

    def with_data(self, content: Int[Tensor, "b k f"], lengths: Int[Tensor, " b"] | None = None) -> "Codes":
        """Other frames of this kind."""
        return Codes(content, lengths)  # type: ignore[arg-type]  # filled in

    def to(self, device: torch.device | str) -> Self:
        moved = {name: value.to(device) for name, value in vars(self).items() if value is not None}
        return replace(self, **moved)

    @classmethod
    def cat(cls, chunks: Sequence["Codes"]) -> "Codes":
        """Successive chunks of the same clips as one; only the chunk in which a clip ends may be shorter."""
        ids = torch.cat([chunk.ids for chunk in chunks], -1)
        return cls(ids, sum((chunk.lengths for chunk in chunks), torch.zeros_like(chunks[0].lengths)), scale=chunks[0].scale)


@dataclass(frozen=True)
class Latents:
    """Continuous frames of a batch of clips; `lengths` and `samples` as in `Codes`."""

    z: Float[Tensor, "b d f"]
    lengths: Int[Tensor, " b"] = None  # type: ignore[assignment]  # filled in below
    samples: Int[Tensor, " b"] | None = None

    def __post_init__(self) -> None:
        _fill_lengths(self, self.z)

    def __len__(self) -> int:
        return len(self.z)

    def __iter__(self) -> Iterator["Latents"]:
        """Each clip as a batch of one, without its padding."""
        for i, length in enumerate(self.lengths.tolist()):
            samples = None if self.samples is None else self.samples[i : i + 1]
            yield Latents(self.z[i : i + 1, :, :length], self.lengths[i : i + 1], samples)

    @property
    def data(self) -> Float[Tensor, "b d f"]:
        """What every kind of frames has: `z` here, `ids` in Codes."""
        return self.z

    def with_data(self, content: Float[Tensor, "b d f"], lengths: Int[Tensor, " b"] | None = None) -> "Latents":
        """Other frames of this kind."""
        return Latents(content, lengths)  # type: ignore[arg-type]  # filled in

    def to(self, device: torch.device | str) -> Self:
        moved = {name: value.to(device) for name, value in vars(self).items() if value is not None}
        return replace(self, **moved)

    @classmethod
    def cat(cls, chunks: Sequence["Latents"]) -> "Latents":
        """Successive chunks of the same clips as one; only the chunk in which a clip ends may be shorter."""
        z = torch.cat([chunk.z for chunk in chunks], -1)
        return cls(z, sum((chunk.lengths for chunk in chunks), torch.zeros_like(chunks[0].lengths)))


@dataclass(frozen=True)
class KnownFrames:
    """Frames already decided (True in `mask`): continuation, inpainting and windows are one thing."""

    frames: Codes | Latents
    mask: Bool[Tensor, "b f"]


Slot = Literal["cross", "prepend", "add", "concat", "global"]
ConditionKind = Literal["vector", "tokens", "frames"]  # one vector a clip, a set of tokens, or one vector a frame


@dataclass(frozen=True)
class Condition:
    """One conditioner's answer for a batch.

    `mask` is True where `x` is real. `present` is False for items that carry no value. `null` is what stands
    in for a value that is absent or dropped: learned positions, or None for no valid position at all. Where values
    change with time, the n positions are those of s values one after another and `spans` says when each holds: its
    start and end in seconds from the start of the clip, and the seconds of the cross-fade at either.
    """

    embeddings: Float[Tensor, "b n d"]
    mask: Bool[Tensor, "b n"]
    present: Bool[Tensor, " b"]
    null_embedding: Float[Tensor, "m d"] | None = None
    spans: Float[Tensor, "b s 4"] | None = None


@dataclass(frozen=True)
class MaskedSequence:
    """Vectors with the mask of those that are real; a row without any contributes exactly nothing.

    `bias` is added to the logits of attention at each frame: the logarithm of a token's weight there, -inf for none.
    """

    x: Float[Tensor, "b n d"]
    mask: Bool[Tensor, "b n"]
    bias: Float[Tensor, "b n f"] | None = None


@dataclass(frozen=True)
class InterpolatedCondition:
    """Vectors that a generator spreads over the steps of its own sequence; `lengths` of them are real."""

    x: Float[Tensor, "b n d"]
    lengths: Int[Tensor, " b"]
    resize: Literal["linear", "nearest"]


@dataclass(frozen=True)
class FusedConditions:
    """All that a generator ever sees of conditioning."""

    cross: MaskedSequence | None = None  # attended to by every block
    prepend: MaskedSequence | None = None  # put before the sequence
    add: Float[Tensor, "b f d"] | None = None  # added to every frame
    concat: Float[Tensor, "b f e"] | None = None  # beside every frame
    global_vector: Float[Tensor, "b g"] | None = None  # slot `global`: modulates every block
    interpolated: tuple[InterpolatedCondition, ...] | None = None  # slot `add` where it is aligned to steps


@dataclass(frozen=True)
class GuidanceBranch:
    """One term of guidance; the weights of a request's branches sum to 1, and so do those where guidance does not hold."""

    weight: float
    fused: FusedConditions
    unguided_weight: float = 0.0  # its weight where guidance does not hold


def _fill_lengths(owner: Codes | Latents, x: Tensor) -> None:
    if owner.lengths is None:
        full = torch.full((x.shape[0],), x.shape[-1], dtype=torch.long, device=x.device)
        object.__setattr__(owner, "lengths", full)
