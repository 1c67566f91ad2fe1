"""Weights of stable-audio-tools' conditioners under our names; missing and unknown weights are errors."""

from collections.abc import Mapping

from torch import Tensor

from cadenza.conditioners.base import ConditionerSet
from cadenza.core.checkpoint import check_finite, check_state_dict, strip_prefix, to_float32_copy
from cadenza.core.errors import CheckpointError
from cadenza.importers.stable_audio import ConditioningConfig, convert_pretransform_weights

_OUT = {f"proj_out.{end}": f"out.{end}" for end in ("weight", "bias")}
_NAMES = {  # type -> their name -> ours
    "int": {"int_embedder.weight": "table.weight"},
    "number": {
        "embedder.embedding.0.weights": "cycles",
        **{f"embedder.embedding.1.{end}": f"out.{end}" for end in ("weight", "bias")},
    },
    "category": {"embedder.weight": "table.weight"},
    "lut": {"token_embedder.weight": "table.weight", "abs_pos_emb.emb.weight": "places.weight", **_OUT},
    "phoneme": {"phoneme_embedder.weight": "table.weight", **_OUT},
    "t5": {"model.shared.weight": "encoder.embed_tokens.weight", **_OUT},
    "waveform": _OUT,
    "clap": _OUT,
    "encoded": {},
    "source_mix": {},
}


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
    inner = strip_prefix(expected, "codec.")
    codec_weights = {}
    own = {name: state.pop(f"pretransform.{name}") for name in strip_prefix(state, "pretransform.")}
    if inner:
        pretransform = own or dict(codec)
        if not pretransform:
            raise CheckpointError(
                f"{source}: the weights of its pretransform are missing; save the model with save_pretransform: true, or "
                "load the file that pretransform_ckpt_path names"
            )
        codec_weights = {
            f"codec.{name}": x for name, x in convert_pretransform_weights(pretransform, inner, source=source).items()
        }
    if kind == "source_mix":
        for name in ("proj_out.weight", "proj_out.bias"):  # unused
            state.pop(name, None)
        state = {
            name.replace("source_heads.", "heads."): x[..., 0] if name.endswith("weight") else x for name, x in state.items()
        }
        if "null_source" in state:
            state["null"] = state.pop("null_source").T
    names = dict(_NAMES[kind])
    if kind == "t5":
        state.pop("model.encoder.embed_tokens.weight", None) if "model.shared.weight" in state else None
        names |= {name: name.removeprefix("model.") for name in state if name.startswith("model.encoder.")}
    state = {names.get(name, name): x for name, x in state.items()}
    check_state_dict(state, {name: x.shape for name, x in expected.items() if not name.startswith("codec.")}, source=source)
    return codec_weights | to_float32_copy(state)
