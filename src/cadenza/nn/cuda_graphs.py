"""Capture and replay of work on a device without Python: CUDA graphs, or HIP graphs on AMD devices.

Captured work reads and writes the tensors it was captured with and takes no number from the host; numbers that change
between replays are read from the device (`nn.kv_cache.PositionRange`).
"""

import warnings
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from itertools import chain
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

MAX_KEPT_BYTES = 2**31  # of a state that is kept for the next request
Run = Callable[[], Any]
State = TypeVar("State")


class CUDAGraphCapturer:
    """Captures CUDA graphs that share one memory pool; they must not run at the same time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = _capture_stream(device)
        self.pool: Any = None

    def warmup(self, run: Run) -> None:
        """Run once on the stream used for the capture, so that all libraries are initialised."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            run()
        current.wait_stream(self.stream)

    def capture(self, run: Run) -> Run:
        """Capture `run` without running it, and return a callable that replays it; raise RuntimeError if that fails."""
        graph = torch.cuda.CUDAGraph()
        current = torch.cuda.stream(torch.cuda.current_stream(self.device))  # restored also if the capture fails
        # thread_local: other threads may use the device meanwhile, for example to decode audio
        with current, torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            run()
        self.pool = graph.pool()
        return graph.replay


@cache
def _capture_stream(device: torch.device) -> torch.cuda.Stream:
    """Return the capture stream of a device; each further one would permanently hold a cuBLAS workspace."""
    return torch.cuda.Stream(device)


@dataclass
class GraphRunner(Generic[State]):
    """Work over one state, captured by key."""

    state: State
    signature: Hashable
    capturer: CUDAGraphCapturer | None  # None after a failed capture: every run is launched by Python
    runs: dict[Hashable, Run] = field(default_factory=dict)

    def run(self, run: Run, times: int, *, key: Hashable) -> None:
        """Run `times` times; the first run of a key is the warm-up of its capture, the others are replays."""
        if self.capturer is not None and key not in self.runs and times:
            self.capturer.warmup(run)
            times -= 1
            try:
                if times:
                    self.runs[key] = self.capturer.capture(run)
            except RuntimeError as error:
                reason = str(error).strip().partition("\n")[0]
                message = f"steps are launched one by one, which is slower: no graph could be captured ({reason})"
                warnings.warn(message, stacklevel=3)
                self.capturer = None
                self.runs.clear()
        replay = self.runs.get(key, run)
        for _ in range(times):
            replay()


def capturer_for(device: torch.device) -> CUDAGraphCapturer | None:
    """Return the capturer of an NVIDIA or AMD GPU; None for other devices."""
    return CUDAGraphCapturer(device) if device.type == "cuda" else None


class GraphCache:
    """Captured work of a model; that of the last request is reused for the next one with a state of the same shapes."""

    def __init__(self, capturer: Callable[[torch.device], CUDAGraphCapturer | None] = capturer_for) -> None:
        self.capturer = capturer
        self._kept: GraphRunner[Any] | None = None

    def __reduce__(self) -> Any:
        return type(self), (self.capturer,)  # a copy of a model captures its own

    @torch.inference_mode()
    def acquire(self, state: State, module: nn.Module) -> GraphRunner[State] | None:
        """Return a runner for a module: the kept one, with this state copied into its own, or a new one.

        None where graphs cannot be captured. The runner is exclusive until `release`.
        """
        capturer = self.capturer(next(module.parameters()).device)
        if capturer is None:
            return None
        kept, self._kept = self._kept, None
        signature = (state_signature(state), *(x.data_ptr() for x in chain(module.parameters(), module.buffers())))
        if kept is None or kept.signature != signature:
            return GraphRunner(state, signature, capturer)
        for old, new in zip(iter_tensors(kept.state), iter_tensors(state), strict=True):
            old.copy_(new)
        return kept

    def release(self, runner: GraphRunner[Any]) -> None:
        """Keep a runner, which must have finished, for the next request."""
        if runner.capturer is not None and sum(x.nbytes for x in iter_tensors(runner.state)) <= MAX_KEPT_BYTES:
            self._kept = runner


def state_signature(state: Any) -> Hashable:
    """Return a key that is equal for states that differ only in the values of their tensors."""
    return tuple((*x.shape, x.dtype, x.device) if isinstance(x, Tensor) else x for x in _flatten(state))


def iter_tensors(state: Any) -> Iterator[Tensor]:
    """Yield the tensors of a state in order."""
    return (x for x in _flatten(state) if isinstance(x, Tensor))


def _flatten(state: Any) -> Iterator[Any]:
    """Yield the values in dataclasses and sequences, each preceded by its type and size."""
    parts = [getattr(state, field.name) for field in fields(state)] if is_dataclass(state) else state
    if isinstance(parts, list | tuple):
        yield type(state), len(parts)
        for part in parts:
            yield from _flatten(part)
    else:
        yield state
