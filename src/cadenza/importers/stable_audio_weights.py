"""Weights of stable-audio-tools' conditioners by our names; none may be missing, and none left over."""

from collections.abc import Mapping

from torch import Tensor

from cadenza.conditioners.base import ConditionerSet
from cadenza.core.checkpoint import check_finite, check_state_dict, strip_prefix, to_float32_copy
from cadenza.core.errors import CheckpointError
from cadenza.importers.stable_audio import ConditioningConfig, convert_pretransform_weights

_OUT = {f"proj_out.{end}": f"out.{end}" for end in ("weight", "bias")}
_NAMES = {  # ours -> theirs -> ours
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
    """The state dict of `parts`, built of `conditioning`, from theirs, whose names begin with the ids.

    `codec` are the weights of the model's pretransform, for those conditioners that have none of their own.
    """
    wanted, ours = parts.state_dict(), dict[str, Tensor]()
    if unknown := sorted({name.partition(".")[0] for name in state} - set(conditioning.conditioners)):
        raise CheckpointError(f"{source}: holds weights of a conditioner '{unknown[0]}', which its config does not have")
    for name, spec in conditioning.conditioners.items():
        kind = spec.type  # type: ignore[attr-defined]
        found = _one(
            kind, strip_prefix(state, f"{name}."), strip_prefix(wanted, f"{name}."), source=f"{source}: {name}", codec=codec
        )
        ours |= {f"{name}.{key}": x for key, x in found.items()}
    check_finite(ours, source=source)
    return ours


def _one(
    kind: str, state: dict[str, Tensor], wanted: dict[str, Tensor], *, source: str, codec: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The weights of one conditioner."""
    if kind == "encoded":  # theirs is built and passed by
        return {}
    inner = strip_prefix(wanted, "codec.")
    found = {}
    own = {name: state.pop(f"pretransform.{name}") for name in strip_prefix(state, "pretransform.")}
    if inner:
        held = own or dict(codec)
        if not held:
            raise CheckpointError(
                f"{source}: its pretransform is not among the weights; save the model with save_pretransform: true, or "
                "load the file that pretransform_ckpt_path names"
            )
        found = {f"codec.{name}": x for name, x in convert_pretransform_weights(held, inner, source=source).items()}
    if kind == "source_mix":
        for name in ("proj_out.weight", "proj_out.bias"):  # which nothing passes
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
    check_state_dict(state, {name: x.shape for name, x in wanted.items() if not name.startswith("codec.")}, source=source)
    return found | to_float32_copy(state)
