"""Build modules on the meta device without running weight initialisation.

Some functions import torch's compiler on that device, which takes seconds and 70 MB; they are replaced here.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_ELEMENTWISE = (torch.div, Tensor.div, Tensor.__truediv__, torch.add, Tensor.add, Tensor.__add__)


class _ShapesOnly(TorchFunctionMode):
    """Returns empty tensors of the right shape instead of random numbers, norms, sums and quotients."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        x = args[0] if args else kwargs.get("tensor")
        if isinstance(x, Tensor) and x.is_meta:
            if func is Tensor.normal_ or getattr(func, "__module__", None) == nn.init.__name__:
                return x
            if func is torch.norm_except_dim:
                return _empty_norm(*args, **kwargs)
            same_shape = all(getattr(arg, "shape", x.shape) == x.shape for arg in args)  # numbers have no shape
            if func in _ELEMENTWISE and x.is_floating_point() and same_shape and not kwargs:
                return x.new_empty(x.shape)
        if func is torch.randn and torch.device(kwargs.get("device") or "meta").type == "meta":
            func, kwargs = torch.empty, {name: value for name, value in kwargs.items() if name != "generator"}
        return func(*args, **kwargs)


@contextmanager
def init_empty_weights() -> Iterator[None]:
    """Create all tensors and modules in this context on the meta device."""
    with torch.device("meta"), _ShapesOnly():
        yield


def _empty_norm(v: Tensor, pow: int = 2, dim: int = 0) -> Tensor:
    """Return the shape of torch.norm_except_dim: the size of `v` in `dim` and 1 elsewhere; a scalar for -1."""
    return v.new_empty([] if dim == -1 else [size if i == dim % v.ndim else 1 for i, size in enumerate(v.shape)])
