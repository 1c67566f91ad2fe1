"""Section: a file that is a range of bytes within another, such as a member of a tar."""

import io
from dataclasses import dataclass
from pathlib import Path

from cadenza.core.errors import AudioError


@dataclass(frozen=True)
class ByteRange:
    """`size` bytes of `file` from byte `start`, called `name` there; each `open` is a reading of its own."""

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
        """The bytes as a seekable file; the caller closes it."""
        return io.BufferedReader(_Range(self))

    def read_bytes(self) -> bytes:
        with self.open() as file:
            return file.read()


class _Range(io.RawIOBase):
    def __init__(self, section: ByteRange) -> None:
        try:
            self._file = open(section.file, "rb")  # closed by `close`
        except OSError as error:
            raise AudioError(f"{section}: cannot be opened: {error.strerror}") from error
        self._start, self._size, self._at = section.start, section.size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer) -> int:  # type: ignore[override]
        wanted = max(0, min(len(buffer), self._size - self._at))
        self._file.seek(self._start + self._at)
        found = self._file.read(wanted)
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)

    def close(self) -> None:
        if hasattr(self, "_file"):
            self._file.close()
        super().close()


Place = str | Path | ByteRange  # where an audio file is
