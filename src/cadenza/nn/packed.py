"""Matrices laid out once for products with a few rows, which is what a decoder does on a CPU all the time."""

import copy
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)
LIMIT = 2**29  # weights; the packed ones lie beside the module's own


class PackedLinear(nn.Module):
    """The product of nn.Linear, without gradient, by oneDNN, from a weight in its own layout or as it is."""

    def __init__(self, linear: nn.Linear, rows: int, *, beside: bool = True) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight, rows) if beside else weight
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


def pack_linears(module: M, rows: int) -> M:
    """A twin of the module for products with `rows` rows; the module itself where that is no help.

    It takes two thirds of the time for one row, and a quarter for three, which then cost little more than one. A model
    too large to lie in memory twice keeps its own layout, which is half as slow for several rows and no help for one.
    """
    weights = list(module.parameters())
    plain = all(w.device.type == "cpu" and w.dtype == torch.float32 for w in weights) and not torch.is_autocast_enabled("cpu")
    beside = sum(w.numel() for w in weights) <= LIMIT
    if not plain or not torch.backends.mkldnn.is_available() or (rows == 1 and not beside):
        return module
    return _twin(module, rows, beside=beside)


def packed_bytes(module: nn.Module, rows: int, *, device: str = "cpu") -> int:
    """Bytes of the packed matrices that `packed` lays beside a module's own on a device."""
    weights = list(module.parameters())
    plain = device == "cpu" and all(w.dtype == torch.float32 for w in weights) and torch.backends.mkldnn.is_available()
    if not plain or sum(w.numel() for w in weights) > LIMIT:
        return 0
    return sum(part.weight.nbytes for part in module.modules() if isinstance(part, nn.Linear))


def _twin(module: M, rows: int, *, beside: bool) -> M:
    if isinstance(module, nn.Linear):
        return PackedLinear(module, rows, beside=beside)  # type: ignore[return-value]
    twin = copy.copy(module)
    twin._modules = {name: None if part is None else _twin(part, rows, beside=beside) for name, part in module._modules.items()}
    return twin
