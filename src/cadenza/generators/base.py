"""Generator: writes frames in a codec's frame format from conditions."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor, nn

from cadenza.core.errors import RequestError
from cadenza.core.spec import RegisteredSpec, Spec
from cadenza.core.types import Codes, FrameFormat, FusedConditions, GuidanceBranch, KnownFrames, Latents, Slot
from cadenza.nn.weight_quantization import Kind, quantize_linears


class GeneratorSpec(RegisteredSpec):
    """Fields and checks that every generator's spec has."""

    family: ClassVar[str] = "cadenza.generators"
    slots: ClassVar[frozenset[Slot]] = frozenset()  # slots that conditions can be fused into
    alignments: ClassVar[frozenset[str]] = frozenset({"frames"})  # of the slot `add`: to frames, to steps, or both
    sampling: ClassVar[type[Spec]] = Spec  # class of the sampling options
    max_frames: int = Field(gt=0)  # frames of one window

    @property
    def fixed_length(self) -> bool:
        """Whether a window must have exactly `max_frames` frames; otherwise that is the maximum."""
        return False

    @property
    def attends_padding(self) -> bool:
        """Whether conditions are attended to together with the padding of a batch."""
        return False

    def validate_inputs(self, frame_format: FrameFormat, widths: Mapping[Slot, int]) -> None:
        """Raise ValueError, naming the field, if the frame format or the width of a slot is unsuitable."""
        raise NotImplementedError(f"{type(self).__name__} must define validate_inputs")

    def activation_bytes(self, frame_format: FrameFormat, load: "BatchShape") -> dict[str, int]:
        """Return the bytes that generation needs in addition to the weights, by purpose."""
        return {}

    @classmethod
    def example(cls) -> tuple["GeneratorSpec", FrameFormat, dict[Slot, int]]:
        """Return a tiny spec, a frame format and widths of slots, without downloads."""
        raise NotImplementedError(f"{cls.__name__} must define example")

    def build(self, frame_format: FrameFormat, widths: Mapping[Slot, int]) -> "Generator":
        """Return the generator with random weights."""
        raise NotImplementedError(f"{type(self).__name__} must define build")


@dataclass(frozen=True)
class BatchShape:
    """Size of a batch in memory; `rows` are clips times guidance branches."""

    rows: int
    frames: int  # of the longest clip or window
    positions: Mapping[Slot, int]  # tokens, or frames, of each slot in use
    widths: Mapping[Slot, int]
    dtype: torch.dtype
    quantized: bool = False
    device: str = "cpu"


@dataclass(frozen=True)
class GenerationInputs:
    """Frames and seed of each item, sampling options, known frames and guidance settings."""

    frames: Int[Tensor, " b"]
    seeds: Sequence[int]
    sampling: Any  # of the class `GeneratorSpec.sampling`
    known_frames: KnownFrames | None = None
    start_frame: int = 0  # absolute number of the first frame; selects its random numbers
    two_step_cfg: bool = False  # evaluate the branches one after the other instead of as one padded batch
    guidance_schedule: Float[Tensor, "b f"] | None = None  # share of guidance in each frame; None: 1 everywhere
    rescale: float = 0.0  # `samplers.guidance.rescale_std`


class Generator(nn.Module, ABC):
    """A network that continues frames under conditions, and generates them as a stream."""

    spec: Any
    frame_format: FrameFormat
    int8_only: ClassVar[tuple[str, ...]] = ()  # name endings of linear layers that need at least 8 bits

    def quantize(self, kind: Kind) -> None:
        """Quantise the linear layers in place; raise RequestError if int4 does not suit a layer."""
        quantize_linears(self, kind, int8_only=self.int8_only)

    @abstractmethod
    def losses(self, target: Codes | Latents, fused: FusedConditions, rng: torch.Generator) -> dict[str, Tensor]:
        """Return scalar loss terms by name; `loss` is minimised, the others are logged."""

    @abstractmethod
    def stream(self, branches: Sequence[GuidanceBranch], inputs: GenerationInputs) -> Iterator[Codes | Latents]:
        """Yield finished frames in chunks; the lengths of a chunk count the valid frames of each item.

        Blocks of steps run without host synchronisation; the iterator may be closed between two chunks.
        """

    def generate(self, branches: Sequence[GuidanceBranch], inputs: GenerationInputs) -> Codes | Latents:
        """Return all chunks of `stream`, concatenated."""
        chunks = list(self.stream(branches, inputs))
        return type(chunks[0]).cat(chunks)  # type: ignore[arg-type]


def validate_known_prefix(
    known: KnownFrames, frames: Int[Tensor, " b"], frame_format: FrameFormat
) -> tuple[Int[Tensor, "b k f"], Int[Tensor, " b"]]:
    """Return the known codes on the CPU, and how many of the `frames` of each item are known.

    Raises RequestError if the codes have the wrong shape or range, or are not the first frames of an item.
    """
    ids, mask = known.frames.data.cpu(), known.mask.cpu()
    expected = [len(frames), frame_format.channels, mask.shape[1]]
    if ids.is_floating_point() or list(ids.shape) != expected:
        raise RequestError(f"known codes have the shape {list(ids.shape)}, but their mask and this model need {expected}")
    if (mask[:, 1:] & ~mask[:, :-1]).any():
        raise RequestError("this model continues from the start: the known frames of an item must be its first ones")
    prefix = mask.sum(1)
    if (prefix > frames).any():
        raise RequestError(f"{prefix.tolist()} frames are known, but only {frames.tolist()} are requested")
    if (((ids < 0) | (ids >= frame_format.cardinality)) & mask[:, None]).any():
        raise RequestError(f"known codes must lie between 0 and {frame_format.cardinality - 1}")
    return ids, prefix
