"""One quantised matrix on this processor."""

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numba import njit
from torch import Tensor

from cadenza.nn.kernels import decode_step
from cadenza.nn.kernels.elementwise import FAST, exp


class PackedWeight(NamedTuple):
    """A quantised matrix in tiles (`nn.quantized`)."""

    packed: Tensor
    scale: Tensor
    offset: Tensor | None
    bias: Tensor | None
    inputs: int
    outputs: int
    groups: int

    def descriptor(self) -> list[int]:
        """The numbers by which the kernel knows a matrix; they hold as long as its tensors do."""
        assert all(x is None or (x.is_contiguous() and x.device.type == "cpu") for x in self[:4])
        return [0 if x is None else x.data_ptr() for x in self[:4]] + [self.inputs, self.outputs, self.groups, 0]


def scratch(matrix: PackedWeight, rows: int) -> tuple[decode_step.QuantizedRows, np.ndarray]:
    """Room for rows that a matrix reads, and to compute with."""
    inputs = decode_step.QuantizedRows(
        np.empty((rows, matrix.inputs + matrix.inputs % 2), np.int16),
        np.empty(rows, np.float32),
        np.empty((rows, max(1, matrix.groups)), np.int32),
    )
    return inputs, np.empty(256, np.float32)


def linear(matrix: PackedWeight, x: Float[Tensor, "n i"]) -> Float[Tensor, "n o"]:
    """The rows of `x` through the matrix; each by itself, so that its numbers do not depend on the others."""
    out = torch.empty(len(x), matrix.outputs)
    numbers = np.array(matrix.descriptor(), np.int64)
    decode_step.linear_forward(numbers, x.detach().contiguous().numpy(), *scratch(matrix, len(x)), out.numpy())
    return out


def self_test() -> None:
    """Compiles and runs a product; raises what numba raises where that cannot be."""
    linear(PackedWeight(torch.zeros(1, 2, 64, 2, dtype=torch.int8), torch.zeros(64), None, None, 4, 4, 0), torch.ones(1, 4))


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def _recur(linear: Any, gates: Any, h: Any, c: Any, inputs: Any, part: Any, y: Any, out: Any) -> None:
    """`gates` [f, b, 4 d]: input, forget, new, output, as the inputs say; `h` and `c` are left as they end."""
    one, width = np.float32(1), h.shape[1]
    for t in range(gates.shape[0]):
        decode_step.quantize_rows(h, linear, inputs)
        decode_step.matmul_tiles(linear, inputs, (0, 1), part, y, decode_step.PLAIN)
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
