"""Products of a few rows with int8 weights on a GPU by Triton; each weight is read once, as int8."""

from typing import Any

import torch
from jaxtyping import Float, Int8
from torch import Tensor
from torch.nn import functional as F

triton: Any
tl: Any
try:  # included in torch's builds for GPUs
    import triton  # pyright: ignore[reportMissingImports]
    import triton.language as tl  # pyright: ignore[reportMissingImports]
except ImportError:
    triton = tl = None
constexpr: Any = None if tl is None else tl.constexpr

TILE = 64  # outputs of a tile
PAIRS = 256  # of inputs, times rows, that a program processes at a time; limited by its registers


def int8_matmul(
    x: Float[Tensor, "b i"], packed: Int8[Tensor, "t p 64 2"], scale: Float[Tensor, " n"], *, outputs: int
) -> Float[Tensor, "b o"]:
    """Multiply the rows of `x` with the first `outputs` rows of a tiled weight, summed in float32."""
    (tiles, pairs), rows = packed.shape[:2], len(x)
    padded = 1 << (rows - 1).bit_length()  # Triton's blocks are powers of two
    if padded != rows or 2 * pairs != x.shape[1]:
        x = F.pad(x, (0, 2 * pairs - x.shape[1], 0, padded - rows))
    y = torch.empty(padded, outputs, dtype=x.dtype, device=x.device)
    with torch.cuda.device_of(x):  # Triton launches on the current device
        _kernel[(tiles,)](x.contiguous(), packed, scale, y, pairs, outputs, padded, PAIRS // padded, num_warps=8)
    return y[:rows]


def run_small_product() -> None:
    """Run a small product on the GPU; raise the error of compiling or running it."""
    x, packed = torch.ones(1, 2, device="cuda"), torch.ones(1, 1, TILE, 2, dtype=torch.int8, device="cuda")
    int8_matmul(x, packed, torch.ones(TILE, device="cuda"), outputs=TILE).sum().item()


def _multiply(x, packed, scale, y, pairs, outputs, rows: constexpr, block: constexpr):  # pyright: ignore[reportInvalidTypeForm]
    """Compute one tile of outputs of `rows` rows, `block` pairs of inputs at a time; tensors are addresses."""
    row, pair, column = tl.arange(0, rows), tl.arange(0, block), tl.arange(0, 128)
    total = tl.zeros((rows, block, 64), tl.float32)
    weights = packed + tl.program_id(0).to(tl.int64) * pairs * 128
    for first in range(0, pairs, block):
        index = first + pair
        inside = index < pairs
        both = tl.load(weights + index[:, None] * 128 + column[None, :], mask=inside[:, None], other=0)
        even, odd = tl.split(tl.reshape(both, (block, 64, 2)))
        address = x + row[:, None] * pairs * 2 + index[None, :] * 2
        left = tl.load(address, mask=inside[None, :], other=0).to(tl.float32)
        right = tl.load(address + 1, mask=inside[None, :], other=0).to(tl.float32)
        total += left[:, :, None] * even[None, :, :].to(tl.float32) + right[:, :, None] * odd[None, :, :].to(tl.float32)
    output = tl.program_id(0) * 64 + tl.arange(0, 64)
    result = tl.sum(total, 1) * tl.load(scale + output)[None, :]
    address = y + row[:, None] * outputs + output[None, :]
    tl.store(address, result.to(y.dtype.element_ty), mask=(output < outputs)[None, :])


_kernel: Any = None if triton is None else triton.jit(_multiply)
