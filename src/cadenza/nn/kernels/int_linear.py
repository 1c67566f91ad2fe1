"""Products with one int8 or int4 matrix on a CPU, and the recurrence of an int8 LSTM."""

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from numba import njit
from torch import Tensor

from cadenza.nn.kernels import decode_step
from cadenza.nn.kernels.elementwise import FAST, exp


class PackedWeight(NamedTuple):
    """The tensors of a `nn.weight_quantization.QuantizedLinear`."""

    packed: Tensor
    scale: Tensor
    offset: Tensor | None
    bias: Tensor | None
    inputs: int
    outputs: int
    groups: int

    def descriptor(self) -> list[int]:
        """Return addresses and sizes for the kernel, valid as long as the tensors exist."""
        assert all(x is None or (x.is_contiguous() and x.device.type == "cpu") for x in self[:4])
        return [0 if x is None else x.data_ptr() for x in self[:4]] + [self.inputs, self.outputs, self.groups, 0]


def linear(matrix: PackedWeight, x: Float[Tensor, "n i"]) -> Float[Tensor, "n o"]:
    """Multiply each row of `x` with the matrix; the result of a row does not depend on the others."""
    out, part = torch.empty(len(x), matrix.outputs), np.empty(256, np.float32)
    descriptor, rows = np.array(matrix.descriptor(), np.int64), decode_step.allocate_rows(len(x), matrix.inputs, matrix.groups)
    decode_step.linear_forward(descriptor, x.detach().contiguous().numpy(), rows, part, out.numpy())
    return out


def self_test() -> None:
    """Compile and run a small product; raise the error of numba if that fails."""
    linear(PackedWeight(torch.zeros(1, 2, 64, 2, dtype=torch.int8), torch.zeros(64), None, None, 4, 4, 0), torch.ones(1, 4))


@njit(nogil=True, cache=True, fastmath=FAST, error_model="numpy")
def _recur(linear: Any, gates: Any, h: Any, c: Any, inputs: Any, part: Any, y: Any, out: Any) -> None:
    """Run an LSTM layer; `gates` [f, b, 4 d] are those of the inputs: input, forget, cell, output. Updates `h` and `c`."""
    one, width = np.float32(1), h.shape[1]
    for t in range(gates.shape[0]):
        decode_step.quantize_rows(h, linear, inputs)
        decode_step.matmul_tiles(linear, inputs, (0, 1), part, y, decode_step.PLAIN)
        for b in range(h.shape[0]):
            from_input, from_state = gates[t, b], y[b]
            for j in range(width):
                input_gate = one / (one + exp(-(from_input[j] + from_state[j])))
                forget_gate = one / (one + exp(-(from_input[width + j] + from_state[width + j])))
                cell_gate = one - (one + one) / (
                    one + exp((one + one) * (from_input[2 * width + j] + from_state[2 * width + j]))
                )
                output_gate = one / (one + exp(-(from_input[3 * width + j] + from_state[3 * width + j])))
                c[b, j] = forget_gate * c[b, j] + input_gate * cell_gate
                h[b, j] = output_gate * (one - (one + one) / (one + exp((one + one) * c[b, j])))
                out[t, b, j] = h[b, j]


def lstm_layer(
    matrix: PackedWeight, gates: Float[Tensor, "f b g"], state: tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]]
) -> tuple[Float[Tensor, "f b d"], tuple[Float[Tensor, "b d"], Float[Tensor, "b d"]]]:
    """Return the outputs of an LSTM layer and its last state; `gates` are the projected inputs with their bias."""
    h, c = (x.float().contiguous().clone() for x in state)
    rows, out = len(h), torch.empty(*gates.shape[:2], matrix.inputs)
    inputs, part = decode_step.allocate_rows(rows, matrix.inputs, matrix.groups), np.empty(256, np.float32)
    y, descriptor = np.empty((rows, matrix.outputs), np.float32), np.array(matrix.descriptor(), np.int64)
    _recur(descriptor, gates.float().contiguous().numpy(), h.numpy(), c.numpy(), inputs, part, y, out.numpy())
    return out, (h, c)
