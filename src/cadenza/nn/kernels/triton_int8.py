"""Products of a few rows with int8 weights on a GPU, which reads each weight once and as it lies; they need Triton."""

from typing import Any

import torch
from jaxtyping import Float, Int8
from torch import Tensor
from torch.nn import functional as F

triton: Any
tl: Any
try:  # torch's builds for GPUs bring it
    import triton  # pyright: ignore[reportMissingImports]
    import triton.language as tl  # pyright: ignore[reportMissingImports]
except ImportError:
    triton = tl = None
constexpr: Any = None if tl is None else tl.constexpr

TILE = 64  # outputs side by side
PAIRS = 256  # of inputs that a program holds at a time, over its rows; as many as its registers hold


def int8_matmul(
    x: Float[Tensor, "b i"],
    packed: Int8[Tensor, "t p 64 2"],
    scale: Float[Tensor, " n"],
    *,
    outputs: int,
) -> Float[Tensor, "b o"]:
    """The rows of `x` times the first `outputs` rows of a weight in tiles, summed in float32."""
    (tiles, pairs), rows = packed.shape[:2], len(x)
    held = 1 << (rows - 1).bit_length()  # Triton's blocks are powers of two
    if held != rows or 2 * pairs != x.shape[1]:
        x = F.pad(x, (0, 2 * pairs - x.shape[1], 0, held - rows))
    y = torch.empty(held, outputs, dtype=x.dtype, device=x.device)
    with torch.cuda.device_of(x):  # Triton runs where the process stands
        _kernel[(tiles,)](x.contiguous(), packed, scale, y, pairs, outputs, held, PAIRS // held, num_warps=8)
    return y[:rows]


def self_test() -> None:
    """A small product on the GPU; raises what compiling or running it does."""
    x, packed = torch.ones(1, 2, device="cuda"), torch.ones(1, 1, TILE, 2, dtype=torch.int8, device="cuda")
    int8_matmul(x, packed, torch.ones(TILE, device="cuda"), outputs=TILE).sum().item()


def _multiply(x, packed, scale, y, pairs, outputs, held: constexpr, block: constexpr):  # pyright: ignore[reportInvalidTypeForm]
    """One tile of outputs of `held` rows, `block` pairs of inputs at a time; tensors are addresses."""
    row, pair, column = tl.arange(0, held), tl.arange(0, block), tl.arange(0, 128)
    total = tl.zeros((held, block, 64), tl.float32)
    weights = packed + tl.program_id(0).to(tl.int64) * pairs * 128
    for first in range(0, pairs, block):
        at = first + pair
        inside = at < pairs
        both = tl.load(weights + at[:, None] * 128 + column[None, :], mask=inside[:, None], other=0)
        even, odd = tl.split(tl.reshape(both, (block, 64, 2)))
        place = x + row[:, None] * pairs * 2 + at[None, :] * 2
        left = tl.load(place, mask=inside[None, :], other=0).to(tl.float32)
        right = tl.load(place + 1, mask=inside[None, :], other=0).to(tl.float32)
        total += left[:, :, None] * even[None, :, :].to(tl.float32) + right[:, :, None] * odd[None, :, :].to(tl.float32)
    output = tl.program_id(0) * 64 + tl.arange(0, 64)
    result = tl.sum(total, 1) * tl.load(scale + output)[None, :]
    place = y + row[:, None] * outputs + output[None, :]
    tl.store(place, result.to(y.dtype.element_ty), mask=(output < outputs)[None, :])


_kernel: Any = None if triton is None else triton.jit(_multiply)
