"""Networks whose weights are loaded and quantised chunk by chunk."""

import pytest
import torch
from torch import nn

from cadenza.core import checkpoint
from cadenza.core.checkpoint import LazyTensor
from cadenza.core.errors import CheckpointError
from cadenza.nn.frozen import load_weights_streaming
from cadenza.nn.meta_init import init_empty_weights
from cadenza.nn.t5 import T5Config, T5Encoder
from cadenza.nn.weight_quantization import QuantizedLinear

SIZES = T5Config(vocabulary=2000, width=36, hidden=150, depth=2, heads=3, head=10)


def stored() -> tuple[T5Encoder, dict[str, LazyTensor], list[int]]:
    """A network, its stored weights, and a list of the bytes of each chunk that is read."""
    torch.manual_seed(0)
    network, read = T5Encoder(SIZES).requires_grad_(False), []

    def record(x: torch.Tensor) -> LazyTensor:
        def rows(a: int, b: int) -> torch.Tensor:
            read.append(x[a:b].nbytes)
            return x[a:b].clone()

        return LazyTensor(tuple(x.shape), x.dtype, rows)

    return network, {name: record(x) for name, x in network.state_dict().items()}, read


def test_loading_never_holds_all_weights_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "CHUNK_BYTES", 1000)
    network, records, read = stored()
    with init_empty_weights():
        made = T5Encoder(SIZES).to(torch.bfloat16)
    load_weights_streaming(made, records, source="it")
    for name, x in network.state_dict().items():
        assert torch.equal(made.state_dict()[name], x.bfloat16()), name
    assert max(read) <= 36 * 150 * 4, "no more than 64 rows at a time"
    assert all(isinstance(x, nn.Parameter) for x in (made.embed_tokens.weight, made.final_layer_norm.weight))


def test_streamed_int8_layers_equal_quantised_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "CHUNK_BYTES", 1000)
    network, records, _ = stored()
    with init_empty_weights():
        made = T5Encoder(SIZES)
    load_weights_streaming(made, records, source="it", bfloat16=("embed_tokens.weight",))
    layers = {name: part for name, part in network.named_modules() if isinstance(part, nn.Linear)}
    assert len(layers) == 12
    for name, part in layers.items():
        other = made.get_submodule(name)
        whole = QuantizedLinear.from_linear(part, "int8")
        assert isinstance(other, QuantizedLinear) and torch.equal(other.packed, whole.packed)
        assert torch.equal(other.scale, whole.scale)
    assert torch.equal(made.embed_tokens.weight, network.embed_tokens.weight.bfloat16())
    bias = "block.0.layer.0.SelfAttention.relative_attention_bias.weight"
    assert torch.equal(made.state_dict()[bias], network.state_dict()[bias])
    ids, mask = torch.randint(0, 90, (2, 20)), torch.ones(2, 20, dtype=torch.bool)
    exact, near = network(ids, mask), made(ids, mask)
    assert 1e-5 < (near - exact).norm() / exact.norm() < 0.03


@pytest.mark.parametrize("narrow", [None, ("embed_tokens.weight",)])
def test_unexpected_weights_are_named(narrow: tuple[str, ...] | None) -> None:
    def filled(change: dict[str, LazyTensor | None]) -> None:
        _, records, _ = stored()
        with init_empty_weights():
            made = T5Encoder(SIZES)
        kept = {name: record for name, record in {**records, **change}.items() if record is not None}
        load_weights_streaming(made, kept, source="it", bfloat16=narrow)

    wide = torch.ones(150, 36)
    wide[140, 3] = torch.nan
    name = "block.1.layer.1.DenseReluDense.wi.weight"
    with pytest.raises(CheckpointError, match=rf"it: 1 weight is not finite \(NaN or infinite\): {name}"):
        filled({name: LazyTensor.from_tensor(wide)})
    with pytest.raises(CheckpointError, match=rf"1 missing: {name}"):
        filled({name: None})
    with pytest.raises(CheckpointError, match=rf"1 misshapen: {name} is \[36, 150\] instead of \[150, 36\]"):
        filled({name: LazyTensor.from_tensor(wide.T)})
    with pytest.raises(CheckpointError, match=r"1 unknown: more"):
        filled({"more": LazyTensor.from_tensor(wide)})
