"""The transformer against PyTorch's layers; causality of its gradient; decoding step by step."""

import pytest
import torch
from torch import Tensor, nn

from cadenza.core.types import MaskedSequence
from cadenza.nn.attention import CrossAttention, SelfAttention, attention, decode_step_mask, prefix_causal_mask
from cadenza.nn.kv_cache import PositionRange
from cadenza.nn.rope import rotary_table
from cadenza.nn.transformer import Transformer, dropout

DIM, HEADS = 16, 4


def randomised(module: nn.Module) -> nn.Module:
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng) * 0.3)
    return module


def model(**more: object) -> Transformer:
    stack = Transformer(DIM, 3, heads=HEADS, hidden=40, source=6, **more)
    randomised(stack)
    return stack


def tokens(batch: int, lengths: list[int], width: int = 6) -> MaskedSequence:
    x = torch.randn(batch, max(lengths), width)
    return MaskedSequence(x, torch.arange(max(lengths)) < torch.tensor(lengths)[:, None])


def test_self_attention_equals_torch() -> None:
    ours = SelfAttention(DIM, HEADS, bias=True)
    theirs = nn.MultiheadAttention(DIM, HEADS, batch_first=True)
    randomised(theirs)
    names = {"in_proj_": "qkv.", "out_proj.": "out."}
    ours.load_state_dict(
        {
            new + key.removeprefix(old): w
            for old, new in names.items()
            for key, w in theirs.state_dict().items()
            if key.startswith(old)
        }
    )
    x = torch.randn(2, 7, DIM)
    mask = nn.Transformer.generate_square_subsequent_mask(7)
    want, _ = theirs(x, x, x, attn_mask=mask)
    torch.testing.assert_close(ours(x), want, atol=1e-5, rtol=1e-5)


def test_cross_attention_equals_torch_and_rows_without_tokens_are_zero() -> None:
    ours = CrossAttention(DIM, HEADS, source=DIM, bias=True)
    theirs = nn.MultiheadAttention(DIM, HEADS, batch_first=True)
    randomised(theirs)
    weight, bias = theirs.in_proj_weight, theirs.in_proj_bias
    ours.load_state_dict(
        {"q.weight": weight[:DIM], "q.bias": bias[:DIM], "kv.weight": weight[DIM:], "kv.bias": bias[DIM:]}
        | {f"out.{name}": w for name, w in theirs.out_proj.state_dict().items()}
    )
    x, source = torch.randn(3, 7, DIM), tokens(3, [5, 2, 0], DIM)
    source.x[~source.mask] = torch.nan  # padding can hold anything
    got = ours(x, ours.project_kv(source))
    assert torch.equal(got[2], torch.zeros(7, DIM))
    for row in (0, 1):
        memory = source.x[row : row + 1, : [5, 2][row]]
        want, _ = theirs(x[row : row + 1], memory, memory)
        torch.testing.assert_close(got[row : row + 1], want, atol=1e-5, rtol=1e-5)


def test_attend_padding_includes_padding() -> None:
    layer = CrossAttention(DIM, HEADS, source=6)
    randomised(layer)
    source = tokens(1, [3])
    wide = MaskedSequence(torch.cat([source.x, torch.zeros(1, 2, 6)], 1), torch.tensor([[True] * 3 + [False] * 2]))
    x = torch.randn(1, 2, DIM)
    same = layer(x, layer.project_kv(wide))
    torch.testing.assert_close(same, layer(x, layer.project_kv(source)))
    assert (layer(x, layer.project_kv(wide, attend_padding=True)) - same).abs().max() > 1e-3


def test_block_without_source_equals_torch_layer() -> None:
    ours = Transformer(DIM, 2, heads=HEADS, hidden=40, source=None, bias=True)
    layer = nn.TransformerEncoderLayer(DIM, HEADS, 40, activation="gelu", norm_first=True, batch_first=True, dropout=0)
    theirs = nn.TransformerEncoder(layer, 2, nn.LayerNorm(DIM), enable_nested_tensor=False).eval()
    randomised(theirs)
    names = {"self_attn.in_proj_": "attention.qkv.", "self_attn.out_proj": "attention.out", "linear1": "up", "linear2": "down"}
    state = {}
    for key, value in theirs.state_dict().items():
        for old, new in names.items():
            key = key.replace(old, new)  # noqa: PLW2901
        state[key.replace("layers", "blocks")] = value
    ours.load_state_dict(state)
    x = torch.randn(2, 7, DIM)
    want = theirs(x, mask=nn.Transformer.generate_square_subsequent_mask(7), is_causal=True)
    torch.testing.assert_close(ours(x), want, atol=1e-4, rtol=1e-4)


def test_no_gradient_flows_from_later_positions() -> None:
    stack, x = model(), torch.randn(1, 8, DIM, requires_grad=True)
    source = stack.project_cross_kv(tokens(1, [3]))
    stack(x, rotation=rotary_table(torch.arange(8)[None], DIM // HEADS), source=source)[:, 4].sum().backward()
    assert x.grad is not None
    reached = x.grad.abs().sum((0, 2)) > 0
    assert reached.tolist() == [True] * 5 + [False] * 3


@pytest.mark.parametrize("first", [1, 5, 12])
@pytest.mark.parametrize("prefix", [False, True])
def test_steps_equal_one_forward_pass(first: int, prefix: bool) -> None:
    stack, n = model(), 12
    x = torch.randn(3, n, DIM)
    valid = torch.ones(3, n, dtype=torch.bool)
    if prefix:
        valid[0, 1] = valid[1, :4] = False
    rotation = rotary_table(valid.cumsum(1) - 1, DIM // HEADS)
    source = stack.project_cross_kv(tokens(3, [4, 1, 0]))
    want = stack(x, rotation=rotation, mask=prefix_causal_mask(valid), source=source)
    if not prefix:
        torch.testing.assert_close(stack(x, rotation=rotation, source=source), want, atol=1e-5, rtol=1e-5)
    cache = stack.allocate_kv_cache(3, n)
    mask = prefix_causal_mask(valid[:, :first]) if prefix else None
    got = [
        stack(
            x[:, :first],
            rotation=rotation.slice(PositionRange(0, first)),
            mask=mask,
            source=source,
            cache=cache,
            span=PositionRange(0, first),
        )
    ]
    for at in range(first, n):
        mask = valid[:, None, None, : at + 1] if prefix else None
        here = PositionRange(at, at + 1)
        got.append(stack(here.gather(x, 1), rotation=rotation.slice(here), mask=mask, source=source, cache=cache, span=here))
    torch.testing.assert_close(torch.cat(got, 1)[valid], want[valid], atol=1e-5, rtol=1e-4)
    with pytest.raises(AssertionError, match="does not fit"):
        stack(x[:, :1], cache=cache, span=PositionRange(n, n + 1))


def test_padding_of_the_prefix_changes_nothing() -> None:
    stack = model()
    x = torch.randn(1, 6, DIM)
    wide = torch.cat([x[:, :2], torch.randn(1, 3, DIM), x[:, 2:]], 1)
    valid = torch.tensor([[True] * 2 + [False] * 3 + [True] * 4])
    got = stack(wide, rotation=rotary_table(valid.cumsum(1) - 1, DIM // HEADS), mask=prefix_causal_mask(valid))
    want = stack(x, rotation=rotary_table(torch.arange(6)[None], DIM // HEADS))
    torch.testing.assert_close(got[valid], want[0], atol=1e-5, rtol=1e-4)


def test_dropout_draws_from_its_generator() -> None:
    x = torch.ones(200, 200)
    a, b = (dropout(x, 0.25, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(a, b) and set(a.unique().tolist()) == {0.0, torch.tensor(1 / 0.75).item()}
    assert abs((a == 0).float().mean() - 0.25) < 0.01
    assert torch.equal(dropout(x, 0.25, None), x)


def test_initialisation_keeps_the_residual_stream_small() -> None:
    torch.manual_seed(0)
    stack = Transformer(64, 8, heads=4, hidden=256)
    x: Tensor = torch.randn(2, 20, 64)
    seen: list[float] = []
    for block in stack.blocks:
        x = block(x)
        seen.append(x.std().item())
    assert all(0.9 < std < 1.3 for std in seen)


def test_half_precision_attention_with_gradients_equals_float32() -> None:
    rng = torch.Generator().manual_seed(3)
    q, k, v = (torch.randn(2, 3, 5, 8, generator=rng).requires_grad_() for _ in range(3))
    mask = torch.tensor([True, True, False, True, True]).expand(2, 1, 5, 5)
    for keep, causal in ((None, True), (mask, False), (None, False)):
        wanted = attention(q, k, v, keep, causal=causal)
        found = attention(q.bfloat16(), k.bfloat16(), v.bfloat16(), keep, causal=causal)
        assert found.dtype == torch.bfloat16
        torch.testing.assert_close(found.float(), wanted, atol=0.03, rtol=0.03)
        gradients = [torch.autograd.grad(y.float().square().sum(), (q, k, v)) for y in (wanted, found)]
        for one, other in zip(*gradients, strict=True):
            torch.testing.assert_close(one, other, atol=0.15, rtol=0.1)


def test_mask_of_a_device_position_equals_a_host_position() -> None:
    """Check the bias: aligned rows, 0 up to the position itself, -inf at padding of the prefix."""
    valid = torch.tensor([[True] * 9, [False, False] + [True] * 7])
    for at, end in ((0, 5), (4, 20), (8, 9)):
        for keep in (None, valid):
            bias = decode_step_mask(keep, PositionRange(torch.tensor([at]), end), torch.bfloat16)
            told = decode_step_mask(keep, PositionRange(at, at + 1), torch.bfloat16)
            assert bias is not None and bias.dtype == torch.bfloat16 and bias.shape[-1] == end and bias.stride(-2) % 16 == 0
            seen = torch.ones(1, 1, 1, at + 1, dtype=torch.bool) if told is None else told
            assert torch.equal(bias == 0, torch.nn.functional.pad(seen, (0, end - at - 1)))
            assert bool((bias[bias != 0] == -torch.inf).all())
