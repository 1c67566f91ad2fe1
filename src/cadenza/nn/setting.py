"""What conditions make of a sequence before any of its codes is known."""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from cadenza.core.types import FusedConditions
from cadenza.nn.attention import CrossKV
from cadenza.nn.positions import RotaryTable, rotary_table, sinusoidal_embedding
from cadenza.nn.span import PositionRange
from cadenza.nn.steps import add_token_positions, expand_token_bias, frames_to_steps, interpolate_to_steps
from cadenza.nn.transformer import Transformer


@dataclass(frozen=True)
class ConditioningInputs:
    """A prefix, what is added to the steps or stands beside them, and what every block attends to or is styled by."""

    prefix: Float[Tensor, "b n d"] | None  # ready to be read
    valid: Bool[Tensor, "b m"] | None  # of prefix and steps, False at padding of the prefix; None: everywhere valid
    rotation: RotaryTable | None  # of prefix and steps
    additive: Float[Tensor, "b s d"] | None  # to the steps
    concat: Float[Tensor, "b s e"] | None  # the steps
    cross_kv: list[CrossKV] | None
    adaln: list[Float[Tensor, "b 1 g"]] | None

    @classmethod
    def from_fused(
        cls,
        fused: FusedConditions,
        frame: Int[Tensor, "b k s"],
        *,
        transformer: Transformer,
        inputs: nn.ModuleDict,
        rotary: bool,
        attend_padding: bool,
        cross_positions: float,
    ) -> "ConditioningInputs":
        """The conditions placed: positions count an item's own prefix only, unless padding is attended to.

        `inputs` make what is prepended or added as wide as the model; `cross_positions` is the weight of the sinusoids
        added to what is attended to. Positions are rotations, or sinusoids that are added.
        """
        batch, steps = frame.shape[0], frame.shape[2]
        positions = torch.arange(steps, device=frame.device)[None]
        prefix = valid = None
        if fused.prepend is not None and fused.prepend.x.shape[1]:
            prefix = inputs["prepend"](fused.prepend.x)
            if attend_padding:
                positions = torch.arange(prefix.shape[1] + steps, device=frame.device)[None]
            else:
                real = fused.prepend.mask
                prefix = prefix.masked_fill(~real[..., None], 0)
                positions = torch.cat([real.cumsum(1) - real.long(), real.sum(1, keepdim=True) + positions], 1)
                valid = F.pad(real, (0, steps), value=True)
        added = None if fused.add is None else frames_to_steps(inputs["add"](fused.add), frame)
        for curve in fused.interpolated or ():
            over = inputs["add"](interpolate_to_steps(curve, frame))
            added = over if added is None else added + over
        rotation, n = None, 0 if prefix is None else prefix.shape[1]
        if rotary:
            rotation = rotary_table(positions, transformer.head_dim)
        else:
            table = sinusoidal_embedding(positions, transformer.heads * transformer.head_dim).to(transformer.norm.weight.dtype)
            prefix = None if prefix is None else prefix + table[:, :n]
            added = table[:, n:].expand(batch, -1, -1) + (0 if added is None else added)
        source = None
        if fused.cross is not None and fused.cross.x.shape[1]:
            tokens = expand_token_bias(fused.cross, frame, n)
            if cross_positions:
                tokens = add_token_positions(tokens, cross_positions, attend_padding=attend_padding)
            source = transformer.project_cross_kv(tokens, attend_padding=attend_padding)
        beside = None if fused.concat is None else frames_to_steps(fused.concat, frame)
        styles = None if fused.global_vector is None else transformer.adaln_params(fused.global_vector)
        return cls(prefix, valid, rotation, added, beside, source, styles)

    @property
    def prefix_length(self) -> int:
        """Positions of the prefix."""
        return 0 if self.prefix is None else self.prefix.shape[1]

    def slice(self, span: PositionRange) -> dict[str, Any]:
        """What the transformer is told at some positions of prefix and steps."""
        rotation = None if self.rotation is None else self.rotation.slice(span)
        source = self.cross_kv
        if source is not None:
            reach = source[0].reach.slice(span)
            reach = reach.as_bias(source[0].keys.dtype) if span.on_device else reach
            source = source if reach is source[0].reach else [CrossKV(k, v, reach) for k, v, _ in source]
        return {"rotation": rotation, "source": source, "styles": self.adaln, "span": span}
