"""What conditions make of a sequence before any of its codes is known."""

from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from cadenza.nn.attention import Source
from cadenza.nn.positions import Rotation
from cadenza.nn.span import Span


@dataclass(frozen=True)
class Setting:
    """A prefix, what is added to the steps or stands beside them, and what every block attends to or is styled by."""

    prefix: Float[Tensor, "b n d"] | None  # ready to be read
    valid: Bool[Tensor, "b m"] | None  # of prefix and steps, False at padding of the prefix; None: everywhere valid
    rotation: Rotation | None  # of prefix and steps
    added: Float[Tensor, "b s d"] | None  # to the steps
    beside: Float[Tensor, "b s e"] | None  # the steps
    source: list[Source] | None
    styles: list[Float[Tensor, "b 1 g"]] | None

    @property
    def length(self) -> int:
        """Positions of the prefix."""
        return 0 if self.prefix is None else self.prefix.shape[1]

    def at(self, span: Span) -> dict[str, Any]:
        """What the transformer is told at some positions of prefix and steps."""
        rotation = None if self.rotation is None else self.rotation.part(span)
        source = self.source
        if source is not None:
            reach = source[0].reach.part(span)
            reach = reach.biased(source[0].keys.dtype) if span.held else reach
            source = source if reach is source[0].reach else [Source(k, v, reach) for k, v, _ in source]
        return {"rotation": rotation, "source": source, "styles": self.styles, "span": span}
