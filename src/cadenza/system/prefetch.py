"""Prefetching of a stream in a thread, with a bounded number of chunks."""

import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")
POLL = 0.2  # seconds between checks for Ctrl-C and the end of the program


class Prefetcher(Generic[T]):
    """Iterator over `stream`, of which a thread computes at most `chunks` in advance.

    An error in the stream is raised in the consumer, after the chunks computed before it. `close`, the end of a `with`
    block, the end of the stream and deleting the object all end the thread and close the stream, after the current chunk.

        with Prefetcher(system.stream("slow piano", seconds=300), chunks=16) as chunks:
            for chunk in chunks:
                ...
    """

    def __init__(self, stream: Iterable[T], *, chunks: int = 8) -> None:
        if chunks < 1:
            raise ValueError(f"chunks must be at least 1, got {chunks}")
        self._shelf: _Shelf[T] = _Shelf(chunks)
        self._thread = threading.Thread(target=_fill, args=(self._shelf, iter(stream)), name="cadenza ahead")
        self._dropped = weakref.finalize(self, self._shelf.close)  # the thread has no reference to this object
        self._dropped.atexit = False  # by then the thread has seen that the program ends
        self._thread.start()

    def __iter__(self) -> Iterator[T]:
        return self

    def __next__(self) -> T:
        try:
            return self._shelf.take()
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        """Number of chunks computed and not yet taken."""
        return len(self._shelf.made)

    def close(self) -> None:
        """Cancel the rest of the stream, and wait until the thread has ended."""
        self._dropped()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class _Shelf(Generic[T]):
    """Queue shared by the thread and the consumer."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.made: deque[T] = deque()
        self.error: BaseException | None = None
        self.ended = False  # no more chunks will be added
        self.closed = False  # no more chunks will be taken
        self.changed = threading.Condition()

    def wanted(self) -> bool:
        """Wait until the queue has space; return False if no more chunks will be taken."""
        with self.changed:
            while len(self.made) >= self.room and self._open():
                self.changed.wait(POLL)
            return self._open()

    def put(self, chunk: T) -> None:
        with self.changed:
            if not self.closed:
                self.made.append(chunk)
            self.changed.notify_all()

    def end(self, error: BaseException | None) -> None:
        with self.changed:
            self.ended, self.error = True, None if self.closed else error
            self.changed.notify_all()

    def take(self) -> T:
        with self.changed:
            while not self.made and not self.ended and not self.closed:
                self.changed.wait(POLL)
            if self.made:
                self.changed.notify_all()
                return self.made.popleft()
            error, self.error = self.error, None
        try:
            raise StopIteration if error is None else error
        finally:
            del error  # whose traceback holds this frame

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.made.clear()
            self.changed.notify_all()

    def _open(self) -> bool:
        return not self.closed and threading.main_thread().is_alive()


def _fill(shelf: _Shelf[T], stream: Iterator[T]) -> None:
    """Compute chunks until the queue is closed or the stream ends, then close the stream."""
    failed: BaseException | None = None
    try:
        try:
            while shelf.wanted():
                try:
                    shelf.put(next(stream))
                except StopIteration:
                    break
        finally:
            getattr(stream, "close", lambda: None)()
    except BaseException as error:
        failed = error
    shelf.end(failed)
    del failed, stream  # whose tracebacks hold this frame
