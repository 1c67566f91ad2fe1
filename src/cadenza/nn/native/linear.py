"""One quantised matrix on this processor."""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from cadenza.nn.native import kernel


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


def scratch(matrix: PackedWeight, rows: int) -> tuple[kernel.QuantizedRows, np.ndarray]:
    """Room for rows that a matrix reads, and to compute with."""
    inputs = kernel.QuantizedRows(
        np.empty((rows, matrix.inputs + matrix.inputs % 2), np.int16),
        np.empty(rows, np.float32),
        np.empty((rows, max(1, matrix.groups)), np.int32),
    )
    return inputs, np.empty(256, np.float32)


def linear(matrix: PackedWeight, x: Float[Tensor, "n i"]) -> Float[Tensor, "n o"]:
    """The rows of `x` through the matrix; each by itself, so that its numbers do not depend on the others."""
    out = torch.empty(len(x), matrix.outputs)
    numbers = np.array(matrix.descriptor(), np.int64)
    kernel.linear_forward(numbers, x.detach().contiguous().numpy(), *scratch(matrix, len(x)), out.numpy())
    return out


def self_test() -> None:
    """Compiles and runs a product; raises what numba raises where that cannot be."""
    linear(PackedWeight(torch.zeros(1, 2, 64, 2, dtype=torch.int8), torch.zeros(64), None, None, 4, 4, 0), torch.ones(1, 4))
