"""Audio files and pipes written while audio is generated; a file is readable at any time."""

import struct
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, NamedTuple, Protocol, Self, cast, runtime_checkable

import numpy as np
from jaxtyping import Float

from cadenza.core.errors import AudioError
from cadenza.dsp.audio_io import FORMATS, CallbackFile, to_pcm

PIPED = ("raw", "wav", "mp3")  # kinds that need no seeking
UNKNOWN = 0xFFFFFFFF  # length field of a wav header for a stream of unknown length
MP3 = {"bitrate_mode": "CONSTANT", "compression_level": 0.2}  # about 128 kbit/s at 24 kHz; the length follows from the frames
_INFO = {"title": b"INAM", "artist": b"IART", "software": b"ISFT", "comment": b"ICMT", "copyright": b"ICOP"}


class StreamFormat(NamedTuple):
    """Sample rate in Hz and number of channels."""

    sample_rate: int
    channels: int


class AudioSink(Protocol):
    """Receiver of the samples of one clip while they are generated."""

    sound: StreamFormat

    @property
    def samples(self) -> int:
        """Samples per channel received so far."""
        ...

    @property
    def clipped(self) -> int:
        """Samples above full scale received so far."""
        ...

    def write(self, samples: Float[np.ndarray, "t c"]) -> None: ...

    def close(self) -> None: ...


@runtime_checkable
class BinaryWriter(Protocol):
    """Object that bytes can be written to."""

    def write(self, data: bytes, /) -> int: ...
    def flush(self) -> None: ...


class StreamingAudioWriter:
    """Audio file to which samples are appended.

    `target` is a path, created at the first samples, or an open writer. `kind` is `raw` (16 bits, little-endian, interleaved),
    `wav`, `mp3`, or for a path any of `audio_io.FORMATS`. Samples above full scale are clipped and counted in `clipped`.
    """

    def __init__(
        self, target: Path | BinaryWriter, kind: str, sound: StreamFormat, tags: Mapping[str, str] | None = None
    ) -> None:
        kind = kind.lower().lstrip(".")
        kinds = PIPED if not isinstance(target, Path) else ("raw", *(suffix[1:] for suffix in FORMATS))
        name = str(target) if isinstance(target, Path) else "a pipe"
        if kind not in kinds:
            raise AudioError(f"{name}: cannot stream '{kind}'; choose from {', '.join(kinds)}")
        rates = FORMATS[f".{kind}"].rates if kind != "raw" else ()
        if rates and sound.sample_rate not in rates:
            known = ", ".join(map(str, rates))
            raise AudioError(f"{name}: {kind} does not support {sound.sample_rate} Hz, only {known}; choose another kind")
        self.target, self.kind, self.sound, self.tags = target, kind, sound, dict(tags or {})
        self.samples = self.clipped = 0  # samples per channel; samples of all channels above full scale
        self._file: Any = None
        self._form: Any = None

    def write(self, samples: Float[np.ndarray, "t c"]) -> None:
        """Append samples and flush."""
        if not np.isfinite(samples).all():
            raise AudioError(f"{self.kind} audio: samples after {self.samples} are NaN or infinite; writing stopped")
        if self._file is None:
            self._file = open(self.target, "w+b") if isinstance(self.target, Path) else self.target  # noqa: SIM115
            self._form = {"raw": _Raw, "wav": _Wav}.get(self.kind, _Encoded)(self._file, self)
        self.clipped += int((np.abs(samples) > 1).sum())
        self._form.add(samples.clip(-1, 1))
        self.samples += len(samples)
        self._form.update_header()
        self._file.flush()

    def close(self) -> None:
        """Finish the file; a pipe stays open."""
        file, form, self._file = self._file, self._form, None
        if file is None or form is None:
            return
        try:
            form.end()
            file.flush()
        finally:
            if isinstance(self.target, Path):
                file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class _Raw:
    """16-bit samples without a header."""

    def __init__(self, file: Any, writer: StreamingAudioWriter) -> None:
        self.file, self.writer = file, writer

    def add(self, samples: np.ndarray) -> None:
        self.file.write(to_pcm(samples, 16).astype("<i2").tobytes())

    def update_header(self) -> None:
        pass

    def end(self) -> None:
        pass


class _Wav(_Raw):
    """16-bit samples after a header, which is updated if the file is seekable, else states an unknown length."""

    def __init__(self, file: Any, writer: StreamingAudioWriter) -> None:
        super().__init__(file, writer)
        self.seekable = file.seekable()
        file.write(self._header(0 if self.seekable else None))

    def update_header(self) -> None:
        if self.seekable:
            self.file.seek(0)
            self.file.write(self._header(self.writer.samples))
            self.file.seek(0, 2)

    def _header(self, samples: int | None) -> bytes:
        rate, channels = self.writer.sound
        form = struct.pack("<HHIIHH", 1, channels, rate, rate * channels * 2, channels * 2, 16)
        tags = [(name, self.writer.tags[tag].encode() + b"\0") for tag, name in _INFO.items() if self.writer.tags.get(tag)]
        info = b"".join(_chunk(name, text) for name, text in tags)
        head = b"WAVE" + _chunk(b"fmt ", form) + (_chunk(b"LIST", b"INFO" + info) if info else b"") + b"data"
        size = None if samples is None else min(samples * channels * 2, UNKNOWN - len(head) - 4)
        riff = UNKNOWN if size is None else len(head) + 4 + size
        return b"RIFF" + struct.pack("<I", riff) + head + struct.pack("<I", UNKNOWN if size is None else size)


class _Encoded:
    """Samples encoded by libsndfile."""

    def __init__(self, file: Any, writer: StreamingAudioWriter) -> None:
        import soundfile

        name, subtype, _ = FORMATS[f".{writer.kind}"]
        self.is_integer = subtype.startswith("PCM_")
        self.sink = CallbackFile(file) if isinstance(writer.target, Path) else _Forward(file)
        options: dict[str, Any] = MP3 if name == "MP3" else {}
        rate, channels = writer.sound
        self.out = soundfile.SoundFile(cast(BinaryIO, self.sink), "w", rate, channels, subtype, format=name, **options)
        for key, text in writer.tags.items():
            if text:
                setattr(self.out, key, text)

    def add(self, samples: np.ndarray) -> None:
        self.out.write(to_pcm(samples, 16) if self.is_integer else samples.astype(np.float32))
        self.sink.check()

    def update_header(self) -> None:
        pass

    def end(self) -> None:
        self.out.close()
        self.sink.check()


class _Forward(CallbackFile):
    """Unseekable output: appends are written, rewrites of earlier bytes are dropped."""

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self.position = self.length = 0

    def write(self, data: bytes) -> int:
        if self.position == self.length:
            super().write(data)
            self.length += len(data)
        self.position += len(data)
        return len(data)

    def seek(self, offset: int, whence: Literal[0, 1, 2] = 0) -> int:  # type: ignore[override]
        self.position = offset + (0, self.position, self.length)[whence]
        return self.position

    def tell(self) -> int:
        return self.position


def _chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
