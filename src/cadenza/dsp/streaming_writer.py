"""Audio files and pipes written while audio is generated; a file is readable at any time."""

import struct
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, Protocol, cast, runtime_checkable

import numpy as np
from jaxtyping import Float

from cadenza.core.errors import AudioError
from cadenza.dsp.audio_io import FORMATS, CallbackFile, format_of, set_tags, to_pcm

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
    samples: int  # per channel, received so far
    clipped: int  # samples of all channels above full scale

    def write(self, samples: Float[np.ndarray, "t c"]) -> None: ...

    def close(self) -> None: ...


@runtime_checkable
class BinaryWriter(Protocol):
    """Object that bytes can be written to."""

    def write(self, data: bytes, /) -> int: ...
    def flush(self) -> None: ...


class StreamingAudioWriter(AbstractContextManager):
    """Audio file to which samples are appended.

    `target` is a path, created at the first samples, or a pipe. `kind` is `raw` (16 bits, little-endian, interleaved),
    `wav`, `mp3`, or for a path any of `audio_io.FORMATS`. Samples above full scale are clipped and counted in `clipped`.
    """

    def __init__(
        self, target: Path | BinaryWriter, kind: str, sound: StreamFormat, tags: Mapping[str, str] | None = None
    ) -> None:  # fmt: skip
        kind = kind.lower().lstrip(".")
        kinds = ("raw", *(suffix[1:] for suffix in FORMATS)) if isinstance(target, Path) else PIPED
        name = str(target) if isinstance(target, Path) else "a pipe"
        if kind not in kinds:
            raise AudioError(f"{name}: cannot stream '{kind}'; choose from {', '.join(kinds)}")
        if kind != "raw":
            format_of(name, f".{kind}", sound.sample_rate)
        self.target, self.kind, self.sound, self.tags = target, kind, sound, tags or {}
        self.samples = self.clipped = 0
        self._file: Any = None
        self._encoder: Any = None

    def write(self, samples: Float[np.ndarray, "t c"]) -> None:
        """Append samples and flush."""
        if not np.isfinite(samples).all():
            raise AudioError(f"{self.kind} audio: samples after {self.samples} are NaN or infinite; writing stopped")
        if self._encoder is None:
            self._file = open(self.target, "w+b") if isinstance(self.target, Path) else self.target  # noqa: SIM115
            self._encoder = (_PCMEncoder if self.kind in ("raw", "wav") else _LibsndfileEncoder)(self._file, self)
        self.clipped += int((np.abs(samples) > 1).sum())
        self._encoder.write(samples.clip(-1, 1))
        self.samples += len(samples)
        self._file.flush()

    def close(self) -> None:
        """Finish the file; a pipe stays open."""
        encoder, self._encoder = self._encoder, None
        if encoder is None:
            return
        try:
            encoder.close()
            self._file.flush()
        finally:
            if isinstance(self.target, Path):
                self._file.close()

    def __exit__(self, *error: object) -> None:
        self.close()


class _PCMEncoder:
    """16-bit samples; those of kind `wav` follow a header, which states an unknown length if the file is not seekable."""

    def __init__(self, file: Any, writer: StreamingAudioWriter) -> None:
        self.file, self.writer = file, writer
        if writer.kind == "wav":
            self.seekable = file.seekable()
            file.write(self._header(0))

    def write(self, samples: np.ndarray) -> None:
        self.file.write(to_pcm(samples, 16).astype("<i2").tobytes())
        if self.writer.kind == "wav" and self.seekable:
            self.file.seek(0)
            self.file.write(self._header(self.writer.samples + len(samples)))
            self.file.seek(0, 2)

    def close(self) -> None:
        """Do nothing: all samples are written."""

    def _header(self, samples: int) -> bytes:
        rate, channels = self.writer.sound
        form = struct.pack("<HHIIHH", 1, channels, rate, rate * channels * 2, channels * 2, 16)
        texts = [(name, self.writer.tags.get(tag)) for tag, name in _INFO.items()]
        info = b"".join(_chunk(name, text.encode() + b"\0") for name, text in texts if text)
        head = b"WAVE" + _chunk(b"fmt ", form) + (_chunk(b"LIST", b"INFO" + info) if info else b"") + b"data"
        size = min(samples * channels * 2, UNKNOWN - len(head) - 4) if self.seekable else UNKNOWN
        return b"RIFF" + struct.pack("<I", min(len(head) + 4 + size, UNKNOWN)) + head + struct.pack("<I", size)


class _LibsndfileEncoder:
    """Samples in any format of libsndfile."""

    def __init__(self, file: Any, writer: StreamingAudioWriter) -> None:
        import soundfile

        name, subtype, _ = FORMATS[f".{writer.kind}"]
        self.file = CallbackFile(file) if isinstance(writer.target, Path) else _UnseekableFile(file)
        options: dict[str, Any] = MP3 if name == "MP3" else {}
        rate, channels = writer.sound
        self.out = soundfile.SoundFile(cast(BinaryIO, self.file), "w", rate, channels, subtype, format=name, **options)
        set_tags(self.out, writer.tags)

    def write(self, samples: np.ndarray) -> None:
        self.out.write(to_pcm(samples, 16) if self.out.subtype == "PCM_16" else samples.astype(np.float32))
        self.file.check()

    def close(self) -> None:
        self.out.close()
        self.file.check()


class _UnseekableFile(CallbackFile):
    """Pipe to which appended bytes are written, while rewrites of earlier bytes are dropped."""

    position = length = 0

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
