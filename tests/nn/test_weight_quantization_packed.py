"""Packed products are those of the module, which is left as it was."""

import pytest
import torch
from torch import nn

from cadenza.nn.transformer import Transformer
from cadenza.nn.weight_quantization import PackedLinear, pack_linears


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 7])
def test_the_twin_gives_the_same(bias: bool, rows: int) -> None:
    module = Transformer(32, 2, heads=2, hidden=80, source=None, bias=bias)
    twin = pack_linears(module, rows)
    kinds = {type(part) for part in twin.modules()}
    assert PackedLinear in kinds and nn.Linear not in kinds
    assert nn.Linear in {type(part) for part in module.modules()}
    for shape in ((rows, 1, 32), (3, 5, 32)):
        x = torch.randn(shape)
        with torch.inference_mode():
            torch.testing.assert_close(twin(x), module(x), atol=1e-5, rtol=1e-5)


def test_what_is_too_large_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cadenza.nn.weight_quantization.MAX_PACKED_WEIGHTS", 100)
    module = nn.Sequential(nn.Linear(30, 40), nn.GELU(), nn.Linear(40, 20, bias=False))
    assert pack_linears(module, 1) is module
    twin = pack_linears(module, 3)
    assert isinstance(twin[0], PackedLinear) and twin[0].packed.data_ptr() == module[0].weight.data_ptr()  # type: ignore[union-attr]
    x = torch.randn(3, 30)
    with torch.inference_mode():
        torch.testing.assert_close(twin(x), module(x), atol=1e-5, rtol=1e-5)


def test_where_it_is_no_help_the_module_is_its_own_twin() -> None:
    for module in (nn.Sequential(nn.Linear(2, 2)).bfloat16(), nn.Sequential(nn.Linear(2, 2)).to("meta")):
        assert pack_linears(module, 1) is module
