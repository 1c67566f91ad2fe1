"""Sequences of vectors fitted to another length, each item of a batch by its own lengths."""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from cadenza.core.types import FusedConditions, InterpolatedCondition, MaskedSequence
from cadenza.nn.attention import CrossKV
from cadenza.nn.kv_cache import PositionRange
from cadenza.nn.rope import RotaryTable, rotary_table, sinusoidal_embedding
from cadenza.nn.transformer import Transformer


def resample_sequence(
    x: Float[Tensor, "b n d"],
    lengths: Int[Tensor, " b"],
    to: Int[Tensor, " b"],
    *,
    size: int,
    mode: Literal["linear", "nearest"],
) -> Float[Tensor, "b m d"]:
    """The first `lengths` vectors of each item over its first `to` of `size` places; the last one after them.

    As torch's `interpolate` would do for each item by itself (`linear` without aligned corners).
    """
    place = torch.arange(size, device=x.device)[None]
    lengths, to = lengths.clamp(min=1)[:, None], to.clamp(min=1)[:, None]
    if mode == "nearest":
        return _taken(x, torch.minimum(place * lengths // to, lengths - 1))
    where = ((place + 0.5) * (lengths / to) - 0.5).clamp(min=0)
    first = torch.minimum(where.long(), lengths - 1)
    share = (where - first).clamp(max=1)[..., None].to(x.dtype)
    return torch.lerp(_taken(x, first), _taken(x, torch.minimum(first + 1, lengths - 1)), share)


def _taken(x: Float[Tensor, "b n d"], index: Int[Tensor, "b m"]) -> Float[Tensor, "b m d"]:
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def frames_to_steps(x: Float[Tensor, "b f d"], frame: Int[Tensor, "b k s"]) -> Float[Tensor, "b s d"]:
    """Frame t's vector at the step whose output predicts codebook 0 of frame t, nothing at the others."""
    coming = F.pad(frame[:, 0, 1:], (0, 1), value=-1)
    there = (coming >= 0) & (coming < x.shape[1])
    index = coming.where(there, 0)[..., None].expand(-1, -1, x.shape[-1])
    return x.gather(1, index).masked_fill(~there[..., None], 0)


def interpolate_to_steps(curve: InterpolatedCondition, frame: Int[Tensor, "b k s"]) -> Float[Tensor, "b s d"]:
    """A curve stretched over all steps of each item, from the first up to the last that holds a frame."""
    steps = frame.shape[2]
    used = ((frame >= 0).any(1) * torch.arange(1, steps + 1, device=frame.device)).amax(1)
    return resample_sequence(curve.x, curve.lengths, used, size=steps, mode=curve.resize)


def latest_predicted_frame(frame: Int[Tensor, "b k s"], frames: int) -> Int[Tensor, "b s"]:
    """The latest of the frames that a step's output predicts, within `frames`; the first where it predicts none."""
    return F.pad(frame[:, :, 1:], (0, 1), value=-1).amax(1).clamp(0, frames - 1)


def expand_token_bias(tokens: MaskedSequence, frame: Int[Tensor, "b k s"], prefix: int) -> MaskedSequence:
    """Tokens whose bias is that of each position, after a prefix that hears what the first step does."""
    if tokens.bias is None:
        return tokens
    moment = latest_predicted_frame(frame, tokens.bias.shape[2])
    moment = torch.cat([moment[:, :1].expand(-1, prefix), moment], 1)
    index = moment[:, None].expand(-1, tokens.bias.shape[1], -1)
    return MaskedSequence(tokens.x, tokens.mask, tokens.bias.gather(2, index))


def add_token_positions(tokens: MaskedSequence, scale: float, *, attend_padding: bool) -> MaskedSequence:
    """Tokens with sinusoids of their places added; padding has a place only where it is attended to."""
    if attend_padding:
        places = torch.arange(tokens.x.shape[1], device=tokens.x.device).expand(len(tokens.x), -1)
    else:
        places = tokens.mask.cumsum(1) - tokens.mask.long()
    return MaskedSequence(
        tokens.x + scale * sinusoidal_embedding(places, tokens.x.shape[-1]).to(tokens.x.dtype), tokens.mask, tokens.bias
    )


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
