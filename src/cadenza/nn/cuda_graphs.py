"""Work on a device that is recorded once and then replayed without Python: CUDA graphs, on AMD's devices HIP graphs.

What is recorded reads and writes the tensors it was recorded with, and takes nothing from the host: of what changes
from run to run it finds on the device where it stands (`nn.span`).
"""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field, fields, is_dataclass
from functools import cache
from itertools import chain
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn

LIMIT = 2**31  # bytes of the largest state that is kept for the next request
Run = Callable[[], Any]
State = TypeVar("State")


class GraphCapturer(ABC):
    """Records what runs do on a device."""

    @abstractmethod
    def warmup(self, run: Run) -> None:
        """Does it, in the way in which it will be recorded, so that everything is set up."""

    @abstractmethod
    def capture(self, run: Run) -> Run:
        """What does the same again, each time it is called; does not do it yet. Raises RuntimeError where it cannot be."""


class CUDAGraphCapturer(GraphCapturer):
    """Records CUDA graphs, one after the other in the same memory: none may run while another one does."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.stream = _beside(device)
        self.pool: Any = None

    def warmup(self, run: Run) -> None:
        here = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(here)
        with torch.cuda.stream(self.stream):
            run()
        here.wait_stream(self.stream)

    def capture(self, run: Run) -> Run:
        graph = torch.cuda.CUDAGraph()
        here = torch.cuda.stream(torch.cuda.current_stream(self.device))  # which a recording that fails does not go back to
        # other threads may use the device meanwhile, to decode what is there already
        with here, torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"):
            run()
        self.pool = graph.pool()
        return graph.replay


@cache
def _beside(device: torch.device) -> torch.cuda.Stream:
    """The one stream of a device on which is recorded; each further one would hold a workspace of cuBLAS for good."""
    return torch.cuda.Stream(device)


@dataclass
class GraphRunner(Generic[State]):
    """Runs over one state, recorded by key."""

    state: State
    signature: Hashable
    recorder: GraphCapturer | None  # None: each run is done by itself
    runs: dict[Hashable, Run] = field(default_factory=dict)

    def run(self, run: Run, times: int, *, key: Hashable) -> None:
        """Does `run` `times` times; the first of a key sets up what recording needs, and the others are replayed."""
        if self.recorder is not None and key not in self.runs and times:
            self.recorder.warmup(run)
            times -= 1
            if times:
                self._record(self.recorder, run, key)
        again = self.runs.get(key, run)
        for _ in range(times):
            again()

    def _record(self, recorder: GraphCapturer, run: Run, key: Hashable) -> None:
        try:
            self.runs[key] = recorder.capture(run)
        except RuntimeError as error:
            reason = str(error).strip().partition("\n")[0]
            warnings.warn(
                f"steps are launched one by one, which is slower: no graph could be recorded ({reason})", stacklevel=4
            )
            self.recorder = None
            self.runs.clear()


class GraphCache:
    """What a model has recorded over states of one shape; the last one, if not too large, serves the next request."""

    def __init__(self, recorder: "Callable[[torch.device], GraphCapturer | None] | None" = None) -> None:
        """`recorder` makes what records on a device, None where nothing does; by default CUDA graphs where there are any."""
        self.recorder = recorder or capturer_for
        self._kept: GraphRunner[Any] | None = None

    def __reduce__(self) -> Any:
        return type(self), (self.recorder,)  # a copy of a model records its own

    def is_supported(self, module: nn.Module) -> bool:
        """Whether anything records where a module is."""
        return self.recorder(next(module.parameters()).device) is not None

    @torch.inference_mode()
    def acquire(self, state: State, module: nn.Module) -> GraphRunner[State] | None:
        """A place to record runs of `module` over a state: one that was kept, holding this state now, or a new one.

        None where nothing records, which is everywhere but on a GPU. Nobody else gets it until it is given to `keep`.
        """
        recorder = self.recorder(next(module.parameters()).device)
        if recorder is None:
            return None
        kept, self._kept = self._kept, None
        signature = (state_signature(state), *(x.data_ptr() for x in chain(module.parameters(), module.buffers())))
        if kept is None or kept.signature != signature:
            return GraphRunner(state, signature, recorder)
        for old, new in zip(iter_tensors(kept.state), iter_tensors(state), strict=True):
            old.copy_(new)
        return kept

    def release(self, recorded: GraphRunner[Any]) -> None:
        """Leaves what was recorded for the next request, which must find it at rest."""
        if recorded.recorder is not None and sum(x.nbytes for x in iter_tensors(recorded.state)) <= LIMIT:
            self._kept = recorded

    def clear(self) -> None:
        """Frees what is kept."""
        self._kept = None


def capturer_for(device: torch.device) -> GraphCapturer | None:
    """CUDA graphs on a GPU of NVIDIA or AMD; nothing elsewhere."""
    return CUDAGraphCapturer(device) if device.type == "cuda" else None


def state_signature(state: Any) -> Hashable:
    """What two states have in common that the same recorded runs can serve: everything but the numbers in their tensors."""
    if isinstance(state, Tensor):
        return (*state.shape, state.dtype, state.device)
    parts = _parts(state)
    return state if parts is None else (type(state), *map(state_signature, parts))


def iter_tensors(state: Any) -> Iterator[Tensor]:
    """The tensors of a state, in order."""
    if isinstance(state, Tensor):
        yield state
    for part in _parts(state) or ():
        yield from iter_tensors(part)


def _parts(state: Any) -> list[Any] | None:
    """What a dataclass or sequence is made of; None for what is one thing."""
    if is_dataclass(state):
        return [getattr(state, each.name) for each in fields(state)]
    return list(state) if isinstance(state, list | tuple) else None
