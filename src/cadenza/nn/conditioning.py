"""Conditions at the steps of a sequence: resampled, aligned with a pattern, and projected for the transformer."""

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
    """Resample the first `lengths` vectors of each item to `to` positions of `size`; then repeat the last one.

    The same as torch's `interpolate` for each item alone (`linear`: without aligned corners).
    """
    index = torch.arange(size, device=x.device)[None]
    lengths, to = lengths.clamp(min=1)[:, None], to.clamp(min=1)[:, None]
    if mode == "nearest":
        return _gather_vectors(x, torch.minimum(index * lengths // to, lengths - 1))
    position = ((index + 0.5) * (lengths / to) - 0.5).clamp(min=0)
    first = torch.minimum(position.long(), lengths - 1)
    share = (position - first).clamp(max=1)[..., None].to(x.dtype)
    return torch.lerp(_gather_vectors(x, first), _gather_vectors(x, torch.minimum(first + 1, lengths - 1)), share)


def _gather_vectors(x: Float[Tensor, "b n d"], index: Int[Tensor, "b m"]) -> Float[Tensor, "b m d"]:
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def frames_to_steps(x: Float[Tensor, "b f d"], frame: Int[Tensor, "b k s"]) -> Float[Tensor, "b s d"]:
    """Move the vector of frame t to the step whose output predicts codebook 0 of frame t; 0 at other steps."""
    predicted = F.pad(frame[:, 0, 1:], (0, 1), value=-1)  # [b, s]
    valid = (predicted >= 0) & (predicted < x.shape[1])
    return _gather_vectors(x, predicted.where(valid, 0)).masked_fill(~valid[..., None], 0)


def interpolate_to_steps(curve: InterpolatedCondition, frame: Int[Tensor, "b k s"]) -> Float[Tensor, "b s d"]:
    """Stretch a curve over the steps of each item, from the first to the last step that has a frame."""
    steps = frame.shape[2]
    used = ((frame >= 0).any(1) * torch.arange(1, steps + 1, device=frame.device)).amax(1)  # [b]
    return resample_sequence(curve.x, curve.lengths, used, size=steps, mode=curve.resize)


def latest_predicted_frame(frame: Int[Tensor, "b k s"], frames: int) -> Int[Tensor, "b s"]:
    """Return the last frame that each step's output predicts, clamped to [0, frames)."""
    return F.pad(frame[:, :, 1:], (0, 1), value=-1).amax(1).clamp(0, frames - 1)


def expand_token_bias(tokens: MaskedSequence, frame: Int[Tensor, "b k s"], prefix: int) -> MaskedSequence:
    """Convert a bias per frame to one per position; the `prefix` positions have the bias of the first step."""
    if tokens.bias is None:
        return tokens
    index = latest_predicted_frame(frame, tokens.bias.shape[2])
    index = torch.cat([index[:, :1].expand(-1, prefix), index], 1)[:, None]  # [b, 1, prefix + s]
    return MaskedSequence(tokens.x, tokens.mask, tokens.bias.gather(2, index.expand(-1, tokens.bias.shape[1], -1)))


def add_token_positions(tokens: MaskedSequence, scale: float, *, attend_padding: bool) -> MaskedSequence:
    """Add sinusoids to the tokens; padding is counted only if it is attended to."""
    if attend_padding:
        index = torch.arange(tokens.x.shape[1], device=tokens.x.device).expand(len(tokens.x), -1)
    else:
        index = tokens.mask.cumsum(1) - tokens.mask.long()
    table = sinusoidal_embedding(index, tokens.x.shape[-1]).to(tokens.x.dtype)  # [b, n, d]
    return MaskedSequence(tokens.x + scale * table, tokens.mask, tokens.bias)


@dataclass(frozen=True)
class ConditioningInputs:
    """Inputs of the transformer from conditions: n prefix positions, then s steps; m = n + s."""

    prefix: Float[Tensor, "b n d"] | None  # embeddings
    valid: Bool[Tensor, "b m"] | None  # False at padding of the prefix; None: no padding
    rotation: RotaryTable | None  # [b, 1, m, head_dim]
    additive: Float[Tensor, "b s d"] | None  # added to the embeddings of the steps
    concat: Float[Tensor, "b s e"] | None  # concatenated to them
    cross_kv: list[CrossKV] | None  # per block
    adaln: list[Float[Tensor, "b 1 g"]] | None  # per block

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
        """Place fused conditions at the steps of `frame` (`Pattern.frame_at_step`).

        `inputs` project the slots prepend and add to the model's width, `cross_positions` scales the sinusoids added to
        the slot cross. Positions count an item's own prefix without padding, or all of it with `attend_padding`.
        """
        batch, steps = frame.shape[0], frame.shape[2]
        positions = torch.arange(steps, device=frame.device)[None]
        prefix = valid = None
        if fused.prepend is not None and fused.prepend.x.shape[1]:
            prefix = inputs["prepend"](fused.prepend.x)
            if attend_padding:
                positions = torch.arange(prefix.shape[1] + steps, device=frame.device)[None]
            else:
                mask = fused.prepend.mask
                prefix = prefix.masked_fill(~mask[..., None], 0)
                positions = torch.cat([mask.cumsum(1) - mask.long(), mask.sum(1, keepdim=True) + positions], 1)
                valid = F.pad(mask, (0, steps), value=True)
        additive = None if fused.add is None else frames_to_steps(inputs["add"](fused.add), frame)
        for curve in fused.interpolated or ():
            curve_steps = inputs["add"](interpolate_to_steps(curve, frame))
            additive = curve_steps if additive is None else additive + curve_steps
        rotation, n = None, 0 if prefix is None else prefix.shape[1]
        if rotary:
            rotation = rotary_table(positions, transformer.head_dim)
        else:
            table = sinusoidal_embedding(positions, transformer.heads * transformer.head_dim).to(transformer.norm.weight.dtype)
            prefix = None if prefix is None else prefix + table[:, :n]
            additive = table[:, n:].expand(batch, -1, -1) + (0 if additive is None else additive)
        cross_kv = None
        if fused.cross is not None and fused.cross.x.shape[1]:
            tokens = expand_token_bias(fused.cross, frame, n)
            if cross_positions:
                tokens = add_token_positions(tokens, cross_positions, attend_padding=attend_padding)
            cross_kv = transformer.project_cross_kv(tokens, attend_padding=attend_padding)
        concat = None if fused.concat is None else frames_to_steps(fused.concat, frame)
        adaln = None if fused.global_vector is None else transformer.adaln_params(fused.global_vector)
        return cls(prefix, valid, rotation, additive, concat, cross_kv, adaln)

    @property
    def prefix_length(self) -> int:
        """Number of prefix positions."""
        return 0 if self.prefix is None else self.prefix.shape[1]

    def slice(self, span: PositionRange) -> dict[str, Any]:
        """Return the transformer's arguments for some positions of prefix and steps."""
        rotation = None if self.rotation is None else self.rotation.slice(span)
        source = self.cross_kv
        if source is not None:
            reach = source[0].reach.slice(span)
            reach = reach.as_bias(source[0].keys.dtype) if span.on_device else reach
            source = source if reach is source[0].reach else [CrossKV(k, v, reach) for k, v, _ in source]
        return {"rotation": rotation, "source": source, "styles": self.adaln, "span": span}
