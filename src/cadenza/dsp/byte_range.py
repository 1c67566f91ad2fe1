"""A range of bytes within a file, such as a member of a tar, as a seekable file."""

import io
from dataclasses import dataclass
from pathlib import Path

from cadenza.core.errors import AudioError


@dataclass(frozen=True)
class ByteRange:
    """`size` bytes of `file` from byte `start`, named `name`; each `open` returns an independent file."""

    file: Path
    start: int
    size: int
    name: str

    def __str__(self) -> str:
        return f"{self.file}:{self.name}"

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix

    def open(self) -> io.BufferedReader:
        """Open the bytes as a seekable file; the caller closes it."""
        return io.BufferedReader(_Range(self))

    def read_bytes(self) -> bytes:
        with self.open() as file:
            return file.read()


class _Range(io.RawIOBase):
    def __init__(self, byte_range: ByteRange) -> None:
        try:
            self._file = open(byte_range.file, "rb")  # closed by `close`
        except OSError as error:
            raise AudioError(f"{byte_range}: cannot be opened: {error.strerror}") from error
        self._start, self._size, self._position = byte_range.start, byte_range.size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence])
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer) -> int:  # type: ignore[override]
        size = max(0, min(len(buffer), self._size - self._position))
        self._file.seek(self._start + self._position)
        data = self._file.read(size)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()
        super().close()


AudioPath = str | Path | ByteRange
