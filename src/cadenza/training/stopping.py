"""Stopping: Ctrl-C and SIGTERM ask a run to stop after its step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_ASKS = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """Which signal asked the run to stop, if any."""

    name: str | None = None


@contextmanager
def graceful_stop() -> Iterator[StopSignal]:
    """The first signal is noted; a second one raises KeyboardInterrupt."""
    stop = StopSignal()

    def note(number: int, frame: FrameType | None) -> None:
        if stop.name is not None:
            raise KeyboardInterrupt
        stop.name = signal.Signals(number).name

    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may set handlers
        return
    before = {number: signal.signal(number, note) for number in _ASKS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
