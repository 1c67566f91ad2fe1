"""Ahead: a stream made ahead of its consumer, by a thread, and no further than the consumer has room for."""

import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")
POLL = 0.2  # seconds between two looks at what no notice comes of: Ctrl-C, the end of the program


class Prefetcher(Generic[T]):
    """The chunks of `stream`, of which at most `chunks` are made and not yet taken.

    Making goes on while the consumer plays or writes. What goes wrong in the stream is raised in the consumer, after the
    chunks that were made before. `close`, the end of a `with` block, the end of the stream and dropping the object all
    end the thread and close the stream; the chunk that is under way is finished first.

        with Ahead(system.stream("slow piano", seconds=300), chunks=16) as ahead:
            for chunk in ahead:
                ...
    """

    def __init__(self, stream: Iterable[T], *, chunks: int = 8) -> None:
        if chunks < 1:
            raise ValueError(f"a stream is made at least one chunk ahead, not {chunks}")
        self._shelf: _Shelf[T] = _Shelf(chunks)
        self._thread = threading.Thread(target=_fill, args=(self._shelf, iter(stream)), name="cadenza ahead")
        self._dropped = weakref.finalize(self, self._shelf.close)  # the thread knows the shelf, not this object
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
        """Chunks that are made and not yet taken."""
        return len(self._shelf.made)

    def close(self) -> None:
        """Cancels what is not made yet, and waits until the thread has ended."""
        self._dropped()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class _Shelf(Generic[T]):
    """What the thread and the consumer share."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.made: deque[T] = deque()
        self.error: BaseException | None = None
        self.ended = False  # nothing will be made any more
        self.closed = False  # nothing will be taken any more
        self.changed = threading.Condition()

    def wanted(self) -> bool:
        """Waits until there is room for one more; False where nothing more will be taken."""
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
    """Makes chunks while they are wanted, and then closes the stream, whatever has ended it."""
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
