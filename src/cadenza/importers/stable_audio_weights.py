"""Weights of stable-audio-tools' pretransform and conditioners under our names; missing and unknown ones are errors."""

import re
from collections.abc import Mapping

from torch import Tensor

from cadenza.conditioners.base import ConditionerSet
from cadenza.core.checkpoint import check_finite, strip_prefix
from cadenza.core.errors import CheckpointError
from cadenza.importers.base import KeyMap, merge_tied_embedding, modern_weight_norm_name
from cadenza.importers.stable_audio import ConditioningConfig

_OUT = {f"out.{end}": f"proj_out.{end}" for end in ("weight", "bias")}
_NAMES = {  # type -> our name -> theirs
    "int": {"table.weight": "int_embedder.weight"},
    "number": {
        "cycles": "embedder.embedding.0.weights",
        **{f"out.{end}": f"embedder.embedding.1.{end}" for end in ("weight", "bias")},
    },
    "category": {"table.weight": "embedder.weight"},
    "lut": {"table.weight": "token_embedder.weight", "places.weight": "abs_pos_emb.emb.weight", **_OUT},
    "phoneme": {"table.weight": "phoneme_embedder.weight", **_OUT},
    "t5": {"encoder.embed_tokens.weight": "model.shared.weight", **_OUT},
    "waveform": _OUT,
    "clap": _OUT,
    "source_mix": {},
}


def convert_pretransform_weights(
    state: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, source: str
) -> dict[str, Tensor]:
    """Return the weights of a pretransform under our names, in float32; raise CheckpointError unless they match `expected`."""
    state = {modern_weight_norm_name(name): x for name, x in state.items()}
    return KeyMap({name: (_pretransform_name(name),) for name in expected}).import_weights(state, expected, source=source)


def convert_conditioner_weights(
    conditioning: ConditioningConfig,
    parts: ConditionerSet,
    state: Mapping[str, Tensor],
    *,
    source: str,
    codec: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """Return the state dict of `parts` from weights of stable-audio-tools, whose names begin with ids.

    `codec` are the weights of the model's pretransform, for conditioners without one of their own. Raise CheckpointError
    unless all names and shapes match.
    """
    expected, ours = parts.state_dict(), dict[str, Tensor]()
    if unknown := sorted({name.partition(".")[0] for name in state} - set(conditioning.conditioners)):
        raise CheckpointError(f"{source}: holds weights of a conditioner '{unknown[0]}', which its config does not have")
    for name, spec in conditioning.conditioners.items():
        kind = spec.type  # type: ignore[attr-defined]
        converted = _convert_one(
            kind, strip_prefix(state, f"{name}."), strip_prefix(expected, f"{name}."), source=f"{source}: {name}", codec=codec
        )
        ours |= {f"{name}.{key}": x for key, x in converted.items()}
    check_finite(ours, source=source)
    return ours


def _convert_one(
    kind: str, state: dict[str, Tensor], expected: dict[str, Tensor], *, source: str, codec: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Return the weights of one conditioner under our names."""
    if kind == "encoded":  # stable-audio-tools builds the conditioner without using it
        return {}
    ours = {}
    pretransform = strip_prefix(state, "pretransform.") or codec
    state = {name: x for name, x in state.items() if not name.startswith("pretransform.")}
    if inner := strip_prefix(expected, "codec."):
        if not pretransform:
            raise CheckpointError(
                f"{source}: the weights of its pretransform are missing; save the model with save_pretransform: true, or "
                "load the file that pretransform_ckpt_path names"
            )
        converted = convert_pretransform_weights(pretransform, inner, source=source)
        ours = {f"codec.{name}": x for name, x in converted.items()}
    if kind == "source_mix":
        state = {name.replace("source_heads.", "heads."): x for name, x in state.items() if not name.startswith("proj_out.")}
        state = {name: x[..., 0] if name.endswith("weight") else x for name, x in state.items()}
        if "null_source" in state:
            state["null"] = state.pop("null_source").T
    elif kind == "t5":
        state = merge_tied_embedding(state, "model.")
    own = {name: x for name, x in expected.items() if not name.startswith("codec.")}
    prefix = "model." if kind == "t5" else ""
    names = KeyMap({name: (_NAMES[kind].get(name, f"{prefix}{name}"),) for name in own})
    return ours | names.import_weights(state, own, source=source)


def _pretransform_name(name: str) -> str:
    """Return the foreign name: `encoder.1.0.3.bias` is `model.encoder.layers.1.layers.0.layers.3.bias`."""
    side, rest = name.split(".", 1)
    rest = re.sub(r"(\d+)\.", r"layers.\1.", rest)
    rest = re.sub(r"^(layers\.\d+\.layers\.1\.)layers\.", r"\1", rest) if side == "decoder" else rest  # repeating upsampler
    return f"model.{side}.{rest}"
