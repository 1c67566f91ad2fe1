"""Capture, reuse and release of graphs, with a capturer that runs on a CPU."""

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tape import TapeRecorder
from torch import Tensor, nn

from cadenza.nn import cuda_graphs
from cadenza.nn.cuda_graphs import CUDAGraphCapturer, GraphCache, capturer_for


@dataclass
class Count:
    """A state of two tensors and a number."""

    total: Tensor
    step: Tensor
    by: float = 1.0


class FailingCapturer(CUDAGraphCapturer):
    def __init__(self) -> None:
        """Use no device."""

    def warmup(self, run: Callable[[], Any]) -> None:
        run()

    def capture(self, run: Callable[[], Any]) -> Callable[[], Any]:
        raise RuntimeError("operation not permitted\nat a place in C++")


MODULE = nn.Linear(2, 2)


def count(first: float = 0.0, size: int = 3, by: float = 1.0) -> Count:
    return Count(torch.full((size,), first), torch.zeros(1, dtype=torch.long), by)


def adding(state: Count) -> Callable[[], None]:
    def run() -> None:
        state.total.add_(state.step * state.by)
        state.step.add_(1)

    return run


def acquire(cache: GraphCache, state: Count) -> Any:
    runner = cache.acquire(state, MODULE)
    assert runner is not None
    return runner


def test_number_of_runs_is_exact_with_and_without_capture() -> None:
    """The sum of 0 to n - 1, in parts and under two keys; a single run of a key is not captured."""
    tape = TapeRecorder()
    cache = GraphCache(lambda _: tape)
    runner = acquire(cache, count())
    for times, key in ((4, "a"), (1, "b"), (5, "a"), (1, "b"), (0, "c")):
        runner.run(adding(runner.state), times, key=key)
    assert runner.state.total.tolist() == [sum(range(11))] * 3
    assert len(tape.tapes) == 1 and tape.replayed == 8


def test_failed_capture_runs_step_by_step_and_warns_once() -> None:
    runner = acquire(GraphCache(lambda _: FailingCapturer()), count())
    with pytest.warns(UserWarning, match=r"one by one.*\(operation not permitted\)$") as seen:
        for key in "aab":
            runner.run(adding(runner.state), 3, key=key)
    assert len(seen) == 1 and runner.state.total.tolist() == [sum(range(9))] * 3


def test_state_of_the_same_shapes_is_replayed_with_its_own_values() -> None:
    tapes: list[TapeRecorder] = []

    def capturer(_: torch.device) -> TapeRecorder:
        tapes.append(TapeRecorder())
        return tapes[-1]

    cache = GraphCache(capturer)
    for first, state, captures in (
        (0.0, count(0.0), 1),
        (7.0, count(7.0), 1),  # the kept runner
        (1.0, count(1.0, size=5), 2),  # of another shape
        (0.0, count(0.0, size=5, by=2.0), 3),  # another value outside the tensors
    ):
        runner = acquire(cache, state)
        runner.run(adding(runner.state), 4, key=0)
        assert runner.state.total.tolist() == [first + 6 * state.by] * len(state.total)
        assert sum(len(tape.tapes) for tape in tapes) == captures
        cache.release(runner)


def test_moved_weights_are_captured_again() -> None:
    tape, module = TapeRecorder(), nn.Linear(2, 2)
    cache = GraphCache(lambda _: tape)
    for _ in range(2):
        runner = cache.acquire(count(), module)
        assert runner is not None
        runner.run(adding(runner.state), 2, key=0)
        cache.release(runner)
        module.weight = nn.Parameter(module.weight.detach().clone())
    assert len(tape.tapes) == 2


def test_concurrent_runners_have_separate_states() -> None:
    cache = GraphCache(lambda _: TapeRecorder())
    cache.release(acquire(cache, count()))
    one, other = acquire(cache, count()), acquire(cache, count())
    assert one.state.total is not other.state.total


def test_released_runners_are_kept_unless_large(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = GraphCache(lambda _: TapeRecorder())

    def alive(then: Callable[[Any], None]) -> bool:
        runner = acquire(cache, count())
        runner.run(adding(runner.state), 3, key=0)
        reference = weakref.ref(runner.state.total)
        then(runner)
        del runner
        gc.collect()
        return reference() is not None

    assert alive(cache.release)
    assert not alive(lambda _: None)
    monkeypatch.setattr(cuda_graphs, "MAX_KEPT_BYTES", 10)
    assert not alive(cache.release)


def test_copies_of_a_model_capture_their_own() -> None:
    cache = GraphCache()
    cache.release(acquire(GraphCache(lambda _: TapeRecorder()), count()))
    for other in (copy.deepcopy(cache), pickle.loads(pickle.dumps(cache))):
        assert other._kept is None and cache._kept is not None


def test_no_capture_on_a_cpu() -> None:
    assert capturer_for(torch.device("cpu")) is None and capturer_for(torch.device("mps")) is None
    assert GraphCache().acquire(count(), MODULE) is None


def test_cuda_graphs_share_a_stream_and_a_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls that torch's documentation requires, recorded by fakes of `torch.cuda`; needs no GPU."""
    calls: list[str] = []

    class Stream:
        def __init__(self, name: str) -> None:
            self.name = name

        def wait_stream(self, other: "Stream") -> None:
            calls.append(f"{self.name} waits for {other.name}")

    class FakeContext:
        def __init__(self, what: Any, *, pool: Any = None, stream: Any = None, capture_error_mode: str = "") -> None:
            self.label = (
                f"on {what.name}" if isinstance(what, Stream) else f"{what.name}, {pool}, {stream.name}, {capture_error_mode}"
            )

        def __enter__(self) -> None:
            calls.append(self.label)

        def __exit__(self, *_: Any) -> None:
            calls.append("end")

    class Graph:
        count = 0

        def __init__(self) -> None:
            Graph.count += 1
            self.name = f"graph {Graph.count}"

        def pool(self) -> str:
            return "one pool"

        def replay(self) -> None:
            calls.append(f"replay {self.name}")

    here = Stream("here")
    for name, fake in {"stream": FakeContext, "graph": FakeContext, "CUDAGraph": Graph}.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: here)
    monkeypatch.setattr(cuda_graphs, "_capture_stream", lambda _: Stream("side"))
    runner = acquire(GraphCache(lambda _: capturer_for(torch.device("cuda", 0))), count())
    for key in "ab":
        runner.run(lambda: calls.append("run"), 3, key=key)
    warm = ["side waits for here", "on side", "run", "end", "here waits for side"]
    assert calls[:12] == [*warm, "on here", "graph 1, None, side, thread_local", "run", "end", "end", *["replay graph 1"] * 2]
    assert calls[12:] == [
        *warm,
        "on here",
        "graph 2, one pool, side, thread_local",
        "run",
        "end",
        "end",
        *["replay graph 2"] * 2,
    ]
