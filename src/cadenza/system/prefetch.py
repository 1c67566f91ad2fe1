"""Prefetching of a stream in a thread, with a bounded number of chunks."""

import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Generic, TypeVar

T = TypeVar("T")
POLL = 0.2  # seconds between checks for Ctrl-C and the end of the program


class Prefetcher(Iterator[T], AbstractContextManager["Prefetcher[T]"]):
    """Iterator over `stream`, of which a thread computes at most `chunks` in advance.

    An error in the stream is raised in the consumer, after the chunks computed before it. `close`, the end of a `with`
    block, the end of the stream and deleting the object all end the thread and close the stream, after the current chunk.
    """

    def __init__(self, stream: Iterable[T], *, chunks: int = 8) -> None:
        if chunks < 1:
            raise ValueError(f"chunks must be at least 1, got {chunks}")
        self._buffer = buffer = _Buffer[T](chunks)
        self._thread = threading.Thread(target=buffer.fill, args=(iter(stream),), name="cadenza prefetch")
        self._cancel = weakref.finalize(self, buffer.closed.set)  # the thread has no reference to this object
        self._cancel.atexit = False  # by then the thread has ended, as the main thread has
        self._thread.start()

    def __next__(self) -> T:
        try:
            return self._buffer.get()
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        """Number of chunks computed and not yet taken."""
        return len(self._buffer.chunks)

    def close(self) -> None:
        """Cancel the rest of the stream, and wait until the thread has ended."""
        self._cancel()
        self._buffer.free.release()
        self._buffer.ready.release()
        if threading.current_thread() is not self._thread:
            self._thread.join()
        self._buffer.chunks.clear()

    def __exit__(self, *_: object) -> None:
        self.close()


class _Buffer(Generic[T]):
    """Chunks shared by the thread and the consumer; semaphores count its free places and the chunks that are ready."""

    def __init__(self, size: int) -> None:
        self.chunks: deque[T] = deque()
        self.free, self.ready = threading.Semaphore(size), threading.Semaphore(0)
        self.closed = threading.Event()
        self.end: BaseException = StopIteration()  # raised after the last chunk

    def fill(self, stream: Iterator[T]) -> None:
        """Compute chunks until the buffer is closed, the stream ends or the program ends, then close the stream."""
        try:
            try:
                while not self.closed.is_set() and threading.main_thread().is_alive():
                    if self.free.acquire(timeout=POLL) and not self.closed.is_set():
                        self.chunks.append(next(stream))
                        self.ready.release()
            finally:
                getattr(stream, "close", lambda: None)()
        except BaseException as error:
            self.end = error
        self.ready.release()

    def get(self) -> T:
        while not self.ready.acquire(timeout=POLL):
            pass
        try:
            chunk = self.chunks.popleft()
        except IndexError:  # after the last chunk, or closed
            pass
        else:
            self.free.release()
            return chunk
        raise StopIteration if self.closed.is_set() else self.end
