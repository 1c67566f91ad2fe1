"""Layouts: which of our weights is made of which foreign ones, read in both directions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cadenza.core.errors import CheckpointError
from cadenza.system.spec import SystemSpec
from cadenza.system.system import System


@dataclass(frozen=True)
class KeyMap:
    """Our names, each with the foreign weights that it is, one below the other in equal shares."""

    names: Mapping[str, tuple[str, ...]]

    def shapes(self, ours: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """The foreign names and shapes for weights of ours, which may be on the meta device."""
        found = {}
        for name, theirs in self.names.items():
            rows, *rest = ours[name].shape
            assert rows % len(theirs) == 0, f"{name} has {rows} rows, which are not {len(theirs)} equal shares"
            found |= {one: (rows // len(theirs), *rest) for one in theirs}
        return found

    def import_weights(self, theirs: Mapping[str, Tensor], wanted: Mapping[str, Tensor], *, source: str) -> dict[str, Tensor]:
        """Our weights in float32, in memory of their own.

        CheckpointError unless the foreign ones are exactly those that `wanted` is made of.
        """
        compare(theirs, self.shapes(wanted), source=source)
        return {name: torch.cat([theirs[one] for one in parts]).float() for name, parts in self.names.items()}

    def export_weights(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The foreign weights for ours."""
        split = {}
        for name, parts in self.names.items():
            split |= dict(zip(parts, ours[name].chunk(len(parts)), strict=True))
        return split


def compare(state: Mapping[str, Tensor], wanted: Mapping[str, Sequence[int]], *, source: str) -> None:
    """Raises CheckpointError unless every wanted weight is there in its shape, and no other."""
    missing, unknown = sorted(wanted.keys() - state.keys()), sorted(state.keys() - wanted.keys())
    shapes = [
        f"{name} is {list(state[name].shape)} instead of {list(wanted[name])}"
        for name in sorted(wanted.keys() & state.keys())
        if tuple(state[name].shape) != tuple(wanted[name])
    ]
    if missing or unknown or shapes:
        found = (("missing", missing), ("unknown", unknown), ("misshapen", shapes))
        said = "; ".join(f"{len(names)} {what}: {', '.join(names[:4])}" for what, names in found if names)
        raise CheckpointError(
            f"{source}: the weights are not those that its config describes: {said}; take both from one model"
        )


def musicgen_key_map(depth: int, rows: int, *, cross: bool, bias: bool = False) -> KeyMap:
    """A MusicGen language model as transformers names it, from `model.decoder.` and `lm_heads.` on."""
    ends = ("weight", "bias") if bias else ("weight",)
    stem = "model.decoder."
    names: dict[str, tuple[str, ...]] = {
        "embedding.weight": tuple(f"{stem}embed_tokens.{k}.weight" for k in range(rows)),
        "head.weight": tuple(f"lm_heads.{k}.weight" for k in range(rows)),
    }
    for i in range(depth):
        ours, theirs = f"transformer.blocks.{i}.", f"{stem}layers.{i}."
        for end in ends:
            names[f"{ours}attention.qkv.{end}"] = tuple(f"{theirs}self_attn.{x}_proj.{end}" for x in "qkv")
            names[f"{ours}attention.out.{end}"] = (f"{theirs}self_attn.out_proj.{end}",)
            names[f"{ours}up.{end}"] = (f"{theirs}fc1.{end}",)
            names[f"{ours}down.{end}"] = (f"{theirs}fc2.{end}",)
            if cross:
                names[f"{ours}cross.q.{end}"] = (f"{theirs}encoder_attn.q_proj.{end}",)
                names[f"{ours}cross.kv.{end}"] = tuple(f"{theirs}encoder_attn.{x}_proj.{end}" for x in "kv")
                names[f"{ours}cross.out.{end}"] = (f"{theirs}encoder_attn.out_proj.{end}",)
        norms = {"norm1": "self_attn_layer_norm", "norm2": "final_layer_norm"}
        norms |= {"norm_cross": "encoder_attn_layer_norm"} if cross else {}
        names |= {f"{ours}{a}.{end}": (f"{theirs}{b}.{end}",) for a, b in norms.items() for end in ("weight", "bias")}
    names |= {f"transformer.norm.{end}": (f"{stem}layer_norm.{end}",) for end in ("weight", "bias")}
    return KeyMap(names)


def expected_state_dict(spec: SystemSpec) -> dict[str, Tensor]:
    """The names and shapes of the weights that a system has, on the meta device."""
    with torch.device("meta"):
        return System(spec).state_dict()
