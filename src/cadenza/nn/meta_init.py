"""Unfilled: the meta device, for networks that get their numbers later, without what torch would compute there.

On that device some functions bring in torch's compiler, which takes seconds and 70 MB, for numbers that nobody gets.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_SIMPLE = (torch.div, Tensor.div, Tensor.__truediv__, torch.add, Tensor.add, Tensor.__add__)


class _Idle(TorchFunctionMode):
    """Gives tensors of the shape that random numbers, norms, sums and quotients would have."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        x = args[0] if args else kwargs.get("tensor")
        if isinstance(x, Tensor) and x.is_meta:
            if func is Tensor.normal_ or getattr(func, "__module__", None) == nn.init.__name__:
                return x
            if func is torch.norm_except_dim:
                return _norm(*args, **kwargs)
            like = all(getattr(each, "shape", x.shape) == x.shape for each in args)  # numbers are
            if func in _SIMPLE and x.is_floating_point() and like and not kwargs:
                return x.new_empty(x.shape)
        if func is torch.randn and torch.device(kwargs.get("device") or "meta").type == "meta":
            func, kwargs = torch.empty, {name: value for name, value in kwargs.items() if name != "generator"}
        return func(*args, **kwargs)


@contextmanager
def init_empty_weights() -> Iterator[None]:
    """Everything that is made within lies on the meta device."""
    with torch.device("meta"), _Idle():
        yield


def _norm(v: Tensor, pow: int = 2, dim: int = 0) -> Tensor:
    """What torch.norm_except_dim gives has the size of `v` in one dimension and 1 in the others; of -1 it is a number."""
    return v.new_empty([] if dim == -1 else [size if i == dim % v.ndim else 1 for i, size in enumerate(v.shape)])
