"""An LSTM whose recurrent matrix is quantised, over all frames in one call (Hochreiter and Schmidhuber 1997)."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from numba import njit
from torch import Tensor

from cadenza.nn.native import kernel
from cadenza.nn.native.linear import PackedWeight, scratch
from cadenza.nn.native.rows import FAST, exp


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def _recur(linear: Any, gates: Any, h: Any, c: Any, inputs: Any, part: Any, y: Any, out: Any) -> None:
    """`gates` [f, b, 4 d]: input, forget, new, output, as the inputs say; `h` and `c` are left as they end."""
    one, width = np.float32(1), h.shape[1]
    for t in range(gates.shape[0]):
        kernel.quantize_rows(h, linear, inputs)
        kernel.matmul_tiles(linear, inputs, (0, 1), part, y, kernel.PLAIN)
        for b in range(h.shape[0]):
            now, again = gates[t, b], y[b]
            for j in range(width):
                enter = one / (one + exp(-(now[j] + again[j])))
                forget = one / (one + exp(-(now[width + j] + again[width + j])))
                new = one - (one + one) / (one + exp((one + one) * (now[2 * width + j] + again[2 * width + j])))
                leave = one / (one + exp(-(now[3 * width + j] + again[3 * width + j])))
                c[b, j] = forget * c[b, j] + enter * new
                h[b, j] = leave * (one - (one + one) / (one + exp((one + one) * c[b, j])))
                out[t, b, j] = h[b, j]


def lstm_layer(
    matrix: PackedWeight, gates: Float[Tensor, "f b g"], state: tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]]
) -> tuple[Float[Tensor, "f b d"], tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]]]:
    """What an LSTM gives at each frame, and its state after the last; `gates` are what the inputs say to the gates."""
    h, c = (x.float().contiguous().clone() for x in state)
    rows, out = len(h), torch.empty(*gates.shape[:2], matrix.inputs)
    inputs, part = scratch(matrix, rows)
    y, numbers = np.empty((rows, matrix.outputs), np.float32), np.array(matrix.descriptor(), np.int64)
    _recur(numbers, gates.float().contiguous().numpy(), h.numpy(), c.numpy(), inputs, part, y, out.numpy())
    return out, (h, c)
