"""A range of bytes within a file, such as a member of a tar, as a seekable file."""

import io
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

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

    def open(self, mode: Literal["rb"] = "rb") -> io.BufferedReader:
        """Open the bytes as a seekable file, as `Path.open` does; the caller closes it."""
        try:
            file = self.file.open(mode)
        except OSError as error:
            raise AudioError(f"{self}: cannot be opened: {error.strerror}") from error
        return io.BufferedReader(_Range(file, self.start, self.size))

    def read_bytes(self) -> bytes:
        with self.open() as file:
            return file.read()


class _Range(io.RawIOBase):
    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        self._file, self._start, self._size, self._position = file, start, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._position = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence])
        return self._position

    def readinto(self, buffer) -> int:  # type: ignore[override]
        size = max(0, min(len(buffer), self._size - self._position))
        self._file.seek(self._start + self._position)
        data = self._file.read(size)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


AudioPath = str | Path | ByteRange
