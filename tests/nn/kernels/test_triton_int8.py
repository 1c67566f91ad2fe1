"""Products with int8 weights on a GPU, and the reason given if the kernel cannot be compiled."""

import subprocess
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cadenza.nn.kernels import gpu_kernel_unavailable_reason, triton_int8
from cadenza.nn.weight_quantization import QuantizedLinear


@pytest.fixture(autouse=True)
def forgotten() -> Any:
    """Clear the cached results of this machine."""
    gpu_kernel_unavailable_reason.cache_clear()
    yield
    gpu_kernel_unavailable_reason.cache_clear()


def test_reason_is_given_if_compilation_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_int8, "triton", None)
    assert gpu_kernel_unavailable_reason() == "Triton is not installed; torch's builds for GPUs bring it"

    class TritonError(Exception):
        pass

    errors = (
        RuntimeError("Failed to find C compiler.\nPlease specify via CC"),
        subprocess.CalledProcessError(1, "gcc"),
        TritonError("arange's range must be a power of 2"),
    )
    monkeypatch.setattr(triton_int8, "triton", SimpleNamespace(TritonError=TritonError))
    for error, said in zip(errors, ("Failed to find C compiler.", "Command 'gcc' returned", "arange's range"), strict=True):
        gpu_kernel_unavailable_reason.cache_clear()

        def fail(error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(triton_int8, "run_small_product", fail)
        assert (reason := gpu_kernel_unavailable_reason()) is not None and reason.startswith(
            f"Triton cannot compile here: {said}"
        )
        assert "\n" not in reason


def test_arguments_of_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the kernel by Python: rows are padded to a power of two, inputs to pairs."""

    class Kernel:
        def __getitem__(self, frame_format: tuple[int, ...]) -> Any:
            def run(x: Any, packed: Any, scale: Any, y: Any, pairs: int, outputs: int, held: int, block: int, **_: Any) -> None:
                assert x.is_contiguous() and x.shape == (held, 2 * pairs) and frame_format == (len(packed),)
                assert held & (held - 1) == 0 and held * block == triton_int8.PAIRS
                weight = packed.transpose(1, 2).reshape(-1, 2 * pairs) * scale[:, None]
                y.copy_(x @ weight[:outputs].T)

            return run

    monkeypatch.setattr(triton_int8, "_kernel", Kernel())
    for inputs, outputs, rows in ((64, 64, 1), (37, 100, 3), (96, 130, 2), (5, 3, 7)):
        part, x = QuantizedLinear.from_linear(nn.Linear(inputs, outputs, bias=False), "int8"), torch.randn(rows, inputs)
        got = triton_int8.int8_matmul(x, part.packed, part.scale, outputs=outputs)
        torch.testing.assert_close(got, F.linear(x, part.dequantize()))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_kernel_equals_the_product(dtype: torch.dtype) -> None:
    """Compare with float64 on the CPU, then in a graph with other rows."""
    assert gpu_kernel_unavailable_reason() is None
    for inputs, outputs, rows in ((64, 64, 1), (1024, 3072, 2), (37, 100, 3), (4096, 1024, 8)):
        part = QuantizedLinear.from_linear(nn.Linear(inputs, outputs), "int8")
        x, other = (torch.randn(rows, inputs).to(dtype) for _ in range(2))
        want = [F.linear(each.double(), part.dequantize(torch.float64), part.bias.double()) for each in (x, other)]  # type: ignore[union-attr]
        part, placed = part.cuda(), x.cuda()
        limit = {torch.float32: 1e-5, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]
        found = part(placed)
        assert found.dtype == dtype and (found.double().cpu() - want[0]).norm() / want[0].norm() < limit
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = part(placed)
        placed.copy_(other)
        graph.replay()
        assert (found.double().cpu() - want[1]).norm() / want[1].norm() < limit
