"""Kernels that are compiled when first used: for a CPU by numba (`pip install cadenza[fast]`), for a GPU by Triton."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch


@contextmanager
def single_torch_thread() -> Iterator[None]:
    """Keeps torch to the calling thread: others of its own that had some work wait 9 ms for more, on a walk's cores."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@cache
def cpu_kernel_unavailable_reason() -> str | None:
    """Why nothing can be compiled here; None where it can."""
    try:
        from numba.core.errors import NumbaError
    except ImportError:
        return "numba is not installed; pip install 'cadenza[fast]'"
    from cadenza.nn.kernels.int_linear import self_test

    try:
        self_test()
    except (NumbaError, RuntimeError, OSError) as error:  # of LLVM, and of the folder where compiled code is kept
        return f"numba cannot compile here: {str(error).strip().partition(chr(10))[0]}"
    return None


@cache
def gpu_kernel_unavailable_reason() -> str | None:
    """Why nothing can be compiled for the GPU; None where it can."""
    from subprocess import CalledProcessError

    from cadenza.nn.kernels import triton_int8

    if triton_int8.triton is None:
        return "Triton is not installed; torch's builds for GPUs bring it"
    try:
        triton_int8.self_test()
    except (RuntimeError, OSError, CalledProcessError, triton_int8.triton.TritonError) as error:  # it also needs a C compiler
        return f"Triton cannot compile here: {str(error).strip().partition(chr(10))[0]}"
    return None
