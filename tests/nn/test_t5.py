"""The encoder of T5 against that of transformers; tests/conditioners checks the conditioner."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForTextEncoding

from cadenza.core.errors import CheckpointError
from cadenza.nn.t5 import T5Config, T5Encoder

SMALL = {"d_model": 24, "d_kv": 6, "d_ff": 40, "num_heads": 4, "num_layers": 3, "vocab_size": 50}
KINDS: dict[str, dict[str, Any]] = {
    "t5": {},
    "v1.1": {"feed_forward_proj": "gated-gelu"},
    "ul2": {"feed_forward_proj": "gated-silu"},
    "gelu": {"feed_forward_proj": "gelu", "relative_attention_num_buckets": 12, "relative_attention_max_distance": 40},
    "mt5": {"kind": "mt5"},
    "umt5": {"kind": "umt5", "layer_norm_epsilon": 1e-4},
}


def pair(kind: str = "t5", **fields: Any) -> tuple[Any, T5Encoder]:
    """Return their encoder and ours with the same random weights."""
    config = AutoConfig.for_model(kind, **SMALL, **fields)
    torch.manual_seed(1)
    theirs = AutoModelForTextEncoding.from_config(config).encoder.eval()
    with torch.no_grad():
        for name, x in theirs.named_parameters():
            x.normal_(std=1.0 if "bias" in name else 1.4 / x.shape[-1] ** 0.5)
    ours = T5Encoder(T5Config.from_dict({"model_type": kind, **SMALL, **fields})).eval()
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


@pytest.mark.parametrize("fields", KINDS.values(), ids=KINDS)
@torch.no_grad()
def test_hidden_states_equal_transformers(fields: dict[str, Any]) -> None:
    """Check texts of 1 to 300 tokens, which cover all relative positions, with gaps in the mask."""
    theirs, ours = pair(**fields)
    ids = torch.randint(0, 50, (4, 300), generator=torch.Generator().manual_seed(2))
    mask = torch.arange(300) < torch.tensor([300, 170, 9, 1])[:, None]
    mask[1, 20:30] = False
    expected = theirs(input_ids=ids, attention_mask=mask.long()).last_hidden_state
    made = ours(ids, mask)
    for x, y, seen in zip(made, expected, mask, strict=True):
        assert (x[seen] - y[seen]).norm() < 1e-5 * y[seen].norm()


@torch.no_grad()
def test_first_token_is_visible_if_all_are_masked() -> None:
    _, ours = pair()
    ids = torch.tensor([[3, 4, 5], [3, 9, 9]])
    first = torch.tensor([[True, False, False]])
    made = ours(ids, torch.zeros(2, 3, dtype=torch.bool))
    assert made.isfinite().all()
    torch.testing.assert_close(made[:1], ours(ids[:1], first))
    torch.testing.assert_close(made[0, 0], made[1, 0])


@pytest.mark.parametrize("kind", ["t5", "mt5", "umt5"])
def test_defaults_equal_transformers(kind: str) -> None:
    ours, theirs = T5Config.from_dict({"model_type": kind}), AutoConfig.for_model(kind)
    assert (ours.vocabulary, ours.width, ours.hidden) == (theirs.vocab_size, theirs.d_model, theirs.d_ff)
    assert (ours.depth, ours.heads, ours.head) == (theirs.num_layers, theirs.num_heads, theirs.d_kv)
    assert (ours.activation, ours.gated) == (theirs.dense_act_fn, theirs.is_gated_act)
    assert (ours.buckets, ours.max_distance) == (theirs.relative_attention_num_buckets, theirs.relative_attention_max_distance)
    assert ours.eps == theirs.layer_norm_epsilon


def test_unknown_feed_forward_is_named() -> None:
    with pytest.raises(
        CheckpointError, match="feed_forward_proj: 'gated-tanh' is not supported. Expected one of relu, silu, gelu"
    ):
        T5Config.from_dict({"model_type": "t5", "feed_forward_proj": "gated-tanh"})
