"""Kernels compiled on first use: for a CPU by numba (`pip install -e '.[fast]'`), for a GPU by Triton."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch


@contextmanager
def single_torch_thread() -> Iterator[None]:
    """Limit torch to the calling thread: its idle threads spin for 9 ms on the cores of the decoder's threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@cache
def cpu_kernel_unavailable_reason() -> str | None:
    """Return the reason why numba cannot compile on this machine, or None if it can."""
    try:
        from numba.core.errors import NumbaError
    except ImportError:
        return "numba is not installed; pip install -e '.[fast]'"
    from cadenza.nn.kernels.int_linear import self_test

    try:
        self_test()
    except (NumbaError, RuntimeError, OSError) as error:  # from LLVM, or from the cache folder
        return f"numba cannot compile here: {str(error).strip().partition(chr(10))[0]}"
    return None


@cache
def gpu_kernel_unavailable_reason() -> str | None:
    """Return the reason why Triton cannot compile for the GPU, or None if it can."""
    from subprocess import CalledProcessError

    from cadenza.nn.kernels import triton_int8

    if triton_int8.triton is None:
        return "Triton is not installed; torch's builds for GPUs bring it"
    try:
        triton_int8.run_small_product()
    except (RuntimeError, OSError, CalledProcessError, triton_int8.triton.TritonError) as error:  # it also needs a C compiler
        return f"Triton cannot compile here: {str(error).strip().partition(chr(10))[0]}"
    return None
