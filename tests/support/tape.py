"""Graphs on a CPU that behave as CUDA graphs: operations are replayed on the same tensors, without Python.

Operations are recorded with their tensors; a replay runs them again and writes each result to the recorded output. A
host number that should have changed keeps its old value, and the result is wrong. Operations that synchronise with the
device, or copy a number to it, raise as in a capture.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cadenza.nn.cuda_graphs import CUDAGraphCapturer

WAITS = {
    *("_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "masked_select", "unique", "unique2", "bincount"),
    *("lift_fresh", "lift_fresh_copy"),  # a tensor made of the host's numbers
    *("where.ScalarSelf", "where.ScalarOther", "where.Scalar"),  # a CUDA device is sent the number by itself, and waited for
}


class Tape(TorchDispatchMode):
    """Operations in the order of execution."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = str(func).removeprefix("aten.").removesuffix(".default")
        by_truth = name.startswith("index.") and any(x.dtype == torch.bool for x in tree_leaves(args[1]) if x is not None)
        if name in WAITS or name.partition(".")[0] in WAITS or by_truth:
            raise RuntimeError(f"operation not permitted when stream is capturing: {name}")
        if func._schema.is_mutable:
            for x in _tensors((args, kwargs)):
                whole = x if x._base is None else x._base
                self.before.setdefault(_place(x), (whole, whole.clone()))
        out = func(*args, **kwargs)
        self.operations.append((func, args, kwargs, out))
        return out

    def undo(self) -> None:
        """Restore the tensors that recording has changed."""
        for x, kept in self.before.values():
            x.copy_(kept)

    def replay(self) -> None:
        for func, args, kwargs, out in self.operations:
            given = set(map(_place, _tensors((args, kwargs))))
            old = _tensors(out)
            if func._schema.is_mutable:
                func(*args, **kwargs)
            elif any(_place(x) not in given for x in old):  # else a view, which lies where it lay
                for x, new in zip(old, _tensors(func(*args, **kwargs)), strict=True):
                    x.copy_(new)


def _tensors(x: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(x) if isinstance(leaf, Tensor)]


def _place(x: Tensor) -> int:
    """Return the address of a tensor; opaque oneDNN layouts have none."""
    return x.untyped_storage().data_ptr() if x.layout == torch.strided and not x.is_mkldnn else id(x)


class TapeRecorder(CUDAGraphCapturer):
    """Record tapes, and count them."""

    def __init__(self) -> None:
        self.warmed = 0
        self.tapes: list[Tape] = []
        self.replayed = 0

    def warmup(self, run: Callable[[], Any]) -> None:
        self.warmed += 1
        run()

    def capture(self, run: Callable[[], Any]) -> Callable[[], Any]:
        tape = Tape()
        with tape:
            run()
        tape.undo()
        self.tapes.append(tape)

        def replay() -> None:
            self.replayed += 1
            tape.replay()

        return replay
