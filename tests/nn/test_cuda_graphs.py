"""What is recorded, kept and freed, with a recorder that stands for a device's."""

import copy
import gc
import pickle
import warnings
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from tape import TapeRecorder
from torch import Tensor, nn

from cadenza.nn import cuda_graphs
from cadenza.nn.cuda_graphs import GraphCache, GraphCapturer, capturer_for


@dataclass
class Count:
    """A state of two tensors and a number that is no tensor."""

    total: Tensor
    step: Tensor
    by: float = 1.0


class Unable(GraphCapturer):
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


def begun(made: GraphCache, state: Count) -> Any:
    recorded = made.acquire(state, MODULE)
    assert recorded is not None
    return recorded


def test_runs_are_done_as_often_as_asked_recorded_or_not() -> None:
    """The sum of 0 to n - 1, in pieces and under two keys; a single run of a key is not worth a recording."""
    tape = TapeRecorder()
    made = GraphCache(lambda _: tape)
    recorded = begun(made, count())
    for times, key in ((4, "a"), (1, "b"), (5, "a"), (1, "b"), (0, "c")):
        recorded.run(adding(recorded.state), times, key=key)
    assert recorded.state.total.tolist() == [sum(range(11))] * 3
    assert len(tape.tapes) == 1 and tape.replayed == 8


def test_what_cannot_be_recorded_is_done_one_by_one_and_said_once() -> None:
    recorded = begun(GraphCache(lambda _: Unable()), count())
    with pytest.warns(UserWarning, match=r"one by one.*\(operation not permitted\)$") as seen:
        for key in "aab":
            recorded.run(adding(recorded.state), 3, key=key)
    assert len(seen) == 1 and recorded.state.total.tolist() == [sum(range(9))] * 3


def test_the_next_of_the_same_shape_is_replayed_with_its_own_numbers() -> None:
    tapes: list[TapeRecorder] = []

    def recorder(_: torch.device) -> GraphCapturer:
        tapes.append(TapeRecorder())
        return tapes[-1]

    made = GraphCache(recorder)
    for first, state, recordings in (
        (0.0, count(0.0), 1),
        (7.0, count(7.0), 1),  # served by what was kept
        (1.0, count(1.0, size=5), 2),  # of another shape
        (0.0, count(0.0, size=5, by=2.0), 3),  # another number in what was recorded
    ):
        recorded = begun(made, state)
        recorded.run(adding(recorded.state), 4, key=0)
        assert recorded.state.total.tolist() == [first + 6 * state.by] * len(state.total)
        assert sum(len(tape.tapes) for tape in tapes) == recordings
        made.release(recorded)


def test_moved_weights_are_recorded_anew() -> None:
    tape, module = TapeRecorder(), nn.Linear(2, 2)
    made = GraphCache(lambda _: tape)
    for _ in range(2):
        recorded = made.acquire(count(), module)
        assert recorded is not None
        recorded.run(adding(recorded.state), 2, key=0)
        made.release(recorded)
        module.weight = nn.Parameter(module.weight.detach().clone())
    assert len(tape.tapes) == 2


def test_two_at_once_have_their_own() -> None:
    made = GraphCache(lambda _: TapeRecorder())
    made.release(begun(made, count()))
    one, other = begun(made, count()), begun(made, count())
    assert one.state.total is not other.state.total


def test_nothing_is_kept_that_is_large_or_was_given_up_or_cleared(monkeypatch: pytest.MonkeyPatch) -> None:
    made = GraphCache(lambda _: TapeRecorder())

    def alive(then: Callable[[Any], None]) -> bool:
        recorded = begun(made, count())
        recorded.run(adding(recorded.state), 3, key=0)
        reference = weakref.ref(recorded.state.total)
        then(recorded)
        del recorded
        gc.collect()
        return reference() is not None

    assert alive(made.release)
    made.clear()
    assert not alive(lambda _: None)
    assert alive(made.release)
    assert not alive(lambda recorded: (made.release(recorded), made.clear()) and None)
    monkeypatch.setattr(cuda_graphs, "MAX_KEPT_BYTES", 10)
    assert not alive(made.release)


def test_copies_of_a_model_record_their_own() -> None:
    made = GraphCache()
    made.release(begun(GraphCache(lambda _: TapeRecorder()), count()))
    for other in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert other._kept is None and made._kept is not None


def test_nothing_is_recorded_on_a_cpu() -> None:
    assert capturer_for(torch.device("cpu")) is None and capturer_for(torch.device("mps")) is None
    assert GraphCache().acquire(count(), MODULE) is None and not GraphCache().is_supported(MODULE)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GraphCache().clear()


def test_cuda_graphs_share_a_stream_and_a_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls that torch's documentation asks for, in a torch that only notes them: no GPU is needed."""
    done: list[str] = []

    class Stream:
        def __init__(self, name: str) -> None:
            self.name = name

        def wait_stream(self, other: "Stream") -> None:
            done.append(f"{self.name} waits for {other.name}")

    class Within:
        def __init__(self, what: Any, *, pool: Any = None, stream: Any = None, capture_error_mode: str = "") -> None:
            self.said = (
                f"on {what.name}" if isinstance(what, Stream) else f"{what.name}, {pool}, {stream.name}, {capture_error_mode}"
            )

        def __enter__(self) -> None:
            done.append(self.said)

        def __exit__(self, *_: Any) -> None:
            done.append("end")

    class Graph:
        made = 0

        def __init__(self) -> None:
            Graph.made += 1
            self.name = f"graph {Graph.made}"

        def pool(self) -> str:
            return "one pool"

        def replay(self) -> None:
            done.append(f"replay {self.name}")

    here = Stream("here")
    for name, fake in {"stream": Within, "graph": Within, "CUDAGraph": Graph}.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: here)
    monkeypatch.setattr(cuda_graphs, "_capture_stream", lambda _: Stream("beside"))
    recorded = begun(GraphCache(lambda _: capturer_for(torch.device("cuda", 0))), count())
    for key in "ab":
        recorded.run(lambda: done.append("run"), 3, key=key)
    warm = ["beside waits for here", "on beside", "run", "end", "here waits for beside"]
    assert done[:12] == [*warm, "on here", "graph 1, None, beside, thread_local", "run", "end", "end", *["replay graph 1"] * 2]
    assert done[12:] == [
        *warm,
        "on here",
        "graph 2, one pool, beside, thread_local",
        "run",
        "end",
        "end",
        *["replay graph 2"] * 2,
    ]
