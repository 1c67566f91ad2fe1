"""Generator: conditions to frames of a codec's frame format."""

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
    """What every generator's spec says."""

    family: ClassVar[str] = "cadenza.generators"
    slots: ClassVar[frozenset[Slot]] = frozenset()  # what it can be told
    alignments: ClassVar[frozenset[str]] = frozenset({"frames"})  # what `add` can be aligned to: frames, and steps that differ
    sampling: ClassVar[type[Spec]] = Spec  # how it may be asked to sample
    max_frames: int = Field(gt=0)  # frames that it makes in one piece

    @property
    def fixed_length(self) -> bool:
        """Whether its pieces must have exactly `context` frames; else any number up to that."""
        return False

    def validate_inputs(self, frame_format: FrameFormat, widths: Mapping[Slot, int]) -> None:
        """Raises ValueError, naming the field, where the codec's frame format or a slot's width does not suit."""
        raise NotImplementedError(f"{type(self).__name__} must say what fits")

    def activation_bytes(self, frame_format: FrameFormat, load: "BatchShape") -> dict[str, int]:
        """Bytes that generating takes beside weights, by what they are for."""
        return {}

    @classmethod
    def example(cls) -> tuple["GeneratorSpec", FrameFormat, dict[Slot, int]]:
        """A tiny spec, a grid and the slots' widths, without downloads."""
        raise NotImplementedError(f"{cls.__name__} must give an example")

    def build(self, frame_format: FrameFormat, widths: Mapping[Slot, int]) -> "Generator":
        raise NotImplementedError(f"{type(self).__name__} must build its generator")


@dataclass(frozen=True)
class BatchShape:
    """What generating is to hold at once: rows are clips times the branches of guidance."""

    rows: int
    frames: int  # of the longest clip, or of a window of it
    positions: Mapping[Slot, int]  # tokens of each slot in use; frames where these are
    widths: Mapping[Slot, int]
    dtype: torch.dtype
    quantized: bool = False
    device: str = "cpu"


@dataclass(frozen=True)
class GenerationInputs:
    """What to generate: frames per item, a seed per item, how to sample, frames that are known.

    Random numbers are those of the frames from `first` on. `two_step` evaluates the branches one after the other,
    each as wide as its own conditions are, instead of as one padded batch. `strength` is the share of guidance that
    holds in each frame, all of it where not given; `rescale` brings the spread of what is guided back to that of what
    is not (`samplers.guidance.Mix`).
    """

    frames: Int[Tensor, " b"]
    seeds: Sequence[int]
    sampling: Any  # the generator spec's `sampling` class
    known_frames: KnownFrames | None = None
    start_frame: int = 0
    two_step_cfg: bool = False
    guidance_schedule: Float[Tensor, "b f"] | None = None
    rescale: float = 0.0


class Generator(nn.Module, ABC):
    """Learns to continue frames under conditions, and writes them as a stream."""

    spec: Any
    frame_format: FrameFormat
    int8_only: ClassVar[tuple[str, ...]] = ()  # endings of the names of linear layers that never have fewer than 8 bits

    def quantize(self, kind: Kind) -> None:
        """Makes the weights of linear layers 8 or 4 bits wide, in place; RequestError where 4 do not suit a layer."""
        quantize_linears(self, kind, gently=self.int8_only)

    @abstractmethod
    def losses(self, target: Codes | Latents, fused: FusedConditions, rng: torch.Generator) -> dict[str, Tensor]:
        """Scalar loss terms by name; `loss` is the one to minimise, the others are for the log."""

    @abstractmethod
    def stream(self, branches: Sequence[GuidanceBranch], plan: GenerationInputs) -> Iterator[Codes | Latents]:
        """Finished frames, chunk by chunk; the lengths of a chunk say how many are true for each item.

        The loop inside runs in blocks without host synchronisation; between blocks the iterator may be closed.
        """

    def generate(self, branches: Sequence[GuidanceBranch], plan: GenerationInputs) -> Codes | Latents:
        """The stream consumed."""
        chunks = list(self.stream(branches, plan))
        return type(chunks[0]).cat(chunks)  # type: ignore[arg-type]


def validate_known_prefix(plan: GenerationInputs, frame_format: FrameFormat) -> tuple[Int[Tensor, "b k f"], Int[Tensor, " b"]]:
    """The known codes on the host, and how many frames of each item they are; RequestError if these are not its first."""
    wanted = plan.frames.cpu()
    if plan.known_frames is None:
        return torch.zeros(len(wanted), frame_format.channels, 0, dtype=torch.long), torch.zeros_like(wanted)
    ids, mask = plan.known_frames.frames.data.cpu(), plan.known_frames.mask.cpu()
    if ids.is_floating_point() or ids.shape != (len(wanted), frame_format.channels, mask.shape[1]):
        want = f"[{len(wanted)}, {frame_format.channels}, {mask.shape[1]}]"
        raise RequestError(f"known codes have the shape {list(ids.shape)}, their mask and this model need {want}")
    if (mask[:, 1:] & ~mask[:, :-1]).any():
        raise RequestError("this model continues from the start: the known frames of an item must be its first ones")
    prefix = mask.sum(1)
    if (prefix > wanted).any():
        raise RequestError(f"{prefix.tolist()} frames are known, but only {wanted.tolist()} are asked for")
    if (((ids < 0) | (ids >= frame_format.cardinality)) & mask[:, None]).any():
        raise RequestError(f"known codes must lie between 0 and {frame_format.cardinality - 1}")
    return ids, prefix
