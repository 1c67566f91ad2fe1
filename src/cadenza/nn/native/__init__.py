"""Kernels that are compiled for this processor when first used; they need numba (`pip install cadenza[fast]`)."""

from functools import cache


@cache
def obstacle() -> str | None:
    """Why nothing can be compiled here; None where it can."""
    try:
        from numba.core.errors import NumbaError
    except ImportError:
        return "numba is not installed; pip install 'cadenza[fast]'"
    from cadenza.nn.native.linear import attempt

    try:
        attempt()
    except (NumbaError, RuntimeError, OSError) as error:  # of LLVM, and of the folder where compiled code is kept
        return f"numba cannot compile here: {str(error).strip().partition(chr(10))[0]}"
    return None
