"""Prefetching: number of chunks in advance, errors, and that neither thread nor memory is left after the end."""

import gc
import subprocess
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator

import pytest
import torch
from tiny import tiny_system

from cadenza.system.prefetch import Prefetcher


class Chunk:
    """Something that can be watched."""

    def __init__(self, number: int) -> None:
        self.number = number


class Source:
    """A stream that notes what was made of it, and whether it was closed."""

    def __init__(self, count: int = 1000, *, fails_at: int | None = None) -> None:
        self.made, self.closed, self.alive = 0, False, list[weakref.ref]()
        self.count, self.fails_at = count, fails_at

    def stream(self) -> Iterator[Chunk]:
        try:
            for number in range(self.count):
                if number == self.fails_at:
                    raise ArithmeticError("the stream has broken")
                chunk = Chunk(number)
                self.alive.append(weakref.ref(chunk))
                self.made += 1
                yield chunk
                del chunk
        finally:
            self.closed = True


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "cadenza prefetch"]


def until(happened: Callable[[], bool]) -> None:
    """Waits for another thread; a test that hangs here has failed."""
    for _ in range(3000):
        if happened():
            return
        time.sleep(0.01)
    raise AssertionError("it did not happen")


def test_everything_in_order() -> None:
    source = Source(50)
    assert [chunk.number for chunk in Prefetcher(source.stream(), chunks=3)] == list(range(50))
    assert source.closed and not threads()
    assert list(Prefetcher([])) == [] and list(Prefetcher([1, 2])) == [1, 2]


@pytest.mark.parametrize("room", [1, 4])
def test_a_slow_consumer_bounds_the_work(room: int) -> None:
    source = Source()
    with Prefetcher(source.stream(), chunks=room) as ahead:
        for taken in range(1, 6):
            chunk = next(ahead)
            until(lambda taken=taken: source.made == taken + room)
            time.sleep(0.05)  # and no more than that
            assert source.made == taken + room and len(ahead) == room
            del chunk
            assert sum(ref() is not None for ref in source.alive) <= room + 1  # the source's own, and those in the buffer
    assert source.closed and not threads()


def test_making_goes_on_while_the_consumer_is_busy() -> None:
    source = Source(4)
    with Prefetcher(source.stream(), chunks=8) as ahead:
        until(lambda: source.closed)
        assert len(ahead) == 4 and not threads(), "the thread does not wait for its chunks to be taken"
        assert [chunk.number for chunk in ahead] == [0, 1, 2, 3]


def test_closing_leaves_no_thread_and_no_memory() -> None:
    source = Source()
    ahead = Prefetcher(source.stream(), chunks=4)
    next(ahead)
    ahead.close()
    ahead.close()
    assert source.closed and not threads() and len(ahead) == 0
    assert next(ahead, None) is None
    assert not any(ref() for ref in source.alive)


def test_a_stream_that_is_dropped_leaves_no_thread_and_no_memory() -> None:
    source = Source()
    for chunk in Prefetcher(source.stream(), chunks=4):
        assert chunk.number == 0
        del chunk
        break
    gc.collect()
    until(lambda: not threads())
    assert source.closed and not any(ref() for ref in source.alive)


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, GeneratorExit])
def test_an_error_of_the_consumer_ends_the_stream(error: type[BaseException]) -> None:
    source = Source()
    with pytest.raises(error), Prefetcher(source.stream()) as ahead:
        next(ahead)
        raise error
    assert source.closed and not threads()


@pytest.mark.parametrize("error", [ArithmeticError("the stream has broken"), KeyboardInterrupt(), SystemExit(3)])
def test_an_error_of_the_stream_is_raised_after_what_was_made(error: BaseException) -> None:
    def breaks() -> Iterator[int]:
        yield 1
        yield 2
        raise error

    taken = []
    with pytest.raises(type(error)) as caught:
        for chunk in Prefetcher(breaks(), chunks=8):
            taken.append(chunk)
    assert taken == [1, 2] and caught.value is error and not threads()
    assert "breaks" in [frame.name for frame in traceback.extract_tb(caught.tb)], "its traceback leads to where it broke"


def test_an_error_is_no_memory() -> None:
    source = Source(9, fails_at=3)
    ahead = Prefetcher(source.stream())
    with pytest.raises(ArithmeticError):
        list(ahead)
    watch = weakref.ref(ahead)
    del ahead
    gc.collect()
    assert watch() is None and not any(ref() for ref in source.alive) and next(iter(threads()), None) is None


def test_a_signal_reaches_a_consumer_that_waits() -> None:
    """Ctrl-C while nothing has come yet, and the end of a program that has forgotten its stream."""
    code = """
import itertools, os, signal, sys, threading, time
from cadenza.system.prefetch import Prefetcher
def slow():
    yield 0
    threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
    time.sleep(0.6)
    yield 1
forgotten = Prefetcher(itertools.count(), chunks=2)
next(forgotten)
ahead = Prefetcher(slow())
next(ahead)
try:
    next(ahead)
except KeyboardInterrupt:
    print("interrupted", [t.name for t in threading.enumerate()].count("cadenza prefetch"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted 1\n", "")


def test_a_system_ahead_is_the_system() -> None:
    system = tiny_system()
    plain = list(system.stream("drums", seconds=0.5, seed=1))
    with Prefetcher(system.stream("drums", seconds=0.5, seed=1), chunks=2) as ahead:
        for one, other in zip(plain, ahead, strict=True):
            assert torch.equal(one.wave, other.wave)


def test_a_room_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="chunks must be at least 1, got 0"):
        Prefetcher([], chunks=0)
