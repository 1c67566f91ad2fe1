"""Weights as they lie in a safetensors file, read one by one when they are asked for.

Read, and not mapped into memory: what is mapped counts as memory of the program besides what is made of it.
"""

import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cadenza.core.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PIECE = 2**20  # bytes of a tensor that is read piece by piece, about
_HEADER = 100 * 2**20  # bytes of a header at most, as safetensors has it
_DTYPES = {
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool"},
    **{"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8"},
    **{"U64": "uint64", "U32": "uint32", "U16": "uint16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"},
}


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that has not been read; `rows(a, b)` reads what lies at a to b of its first dimension."""

    shape: tuple[int, ...]
    dtype: "torch.dtype"
    read_rows: Callable[[int, int], "Tensor"]

    @classmethod
    def from_tensor(cls, x: "Tensor") -> "LazyTensor":
        """A tensor that is there already."""
        return cls(tuple(x.shape), x.dtype, lambda a, b: x[a:b] if x.ndim else x)

    def load(self) -> "Tensor":
        """The whole tensor."""
        return self.read_rows(0, self.shape[0] if self.shape else 1)

    def iter_row_chunks(self, multiple: int = 1) -> Iterator[tuple[int, "Tensor"]]:
        """Its rows from the first to the last, some at a time, and where they begin; their number is a `multiple`'s."""
        count = self.shape[0] if self.shape else 1
        row = max(1, math.prod(self.shape[1:]) * self.dtype.itemsize)
        step = max(1, PIECE // row // multiple) * multiple
        for a in range(0, count, step):
            yield a, self.read_rows(a, min(a + step, count))


def open_safetensors(path: Path) -> dict[str, LazyTensor]:
    """The tensors of a safetensors file by their names; CheckpointError unless the file is whole."""
    import torch

    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > _HEADER:
                raise ValueError(f"a header of {size} bytes")
            header = json.loads(file.read(size))
            file.seek(0, 2)
            room = file.tell() - size - 8
        header.pop("__metadata__", None)
        found, end = {}, 0
        for name, told in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            (start, stop), shape = told["data_offsets"], tuple(map(index, told["shape"]))
            dtype = getattr(torch, _DTYPES[told["dtype"]])
            if start != end or stop - start != math.prod(shape) * dtype.itemsize or min(shape, default=0) < 0:
                raise ValueError(f"'{name}' does not lie where it should")
            found[name] = LazyTensor(shape, dtype, partial(_rows, path, 8 + size + start, shape, dtype))
            end = stop
        if end != room:
            raise ValueError(f"{room} bytes of weights instead of {end}")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}); copy it again") from None
    return found


def _rows(path: Path, start: int, shape: tuple[int, ...], dtype: Any, a: int, b: int) -> "Tensor":
    import torch

    each = math.prod(shape[1:]) * dtype.itemsize
    x = torch.empty((b - a, *shape[1:]) if shape else (), dtype=dtype, device="cpu")
    if not x.numel():
        return x
    left = x.view(-1).view(torch.uint8).numpy().data
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(start + a * each)
            while left:
                count = file.readinto(left)
                if not count:
                    raise OSError("it has become shorter")
                left = left[count:]
    except OSError as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}); copy it again") from None
    return x
