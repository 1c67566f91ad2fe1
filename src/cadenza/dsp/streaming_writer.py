"""Audio that is written while it is made, to a file or a pipe: all that was written can be read at any moment."""

import struct
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, NamedTuple, Protocol, Self, cast, runtime_checkable

import numpy as np
from jaxtyping import Float

from cadenza.core.errors import AudioError
from cadenza.dsp.audio_io import FORMATS, CallbackFile, to_pcm

PIPED = ("raw", "wav", "mp3")  # kinds that need no way back to what was written
UNKNOWN = 0xFFFFFFFF  # the length in a wav header of what has no end yet, as players of pipes take it
MP3 = {"bitrate_mode": "CONSTANT", "compression_level": 0.2}  # about 128 kbit/s at 24 kHz: the frames alone say their length
_INFO = {"title": b"INAM", "artist": b"IART", "software": b"ISFT", "comment": b"ICMT", "copyright": b"ICOP"}


class StreamFormat(NamedTuple):
    """What a header says."""

    sample_rate: int
    channels: int


class AudioSink(Protocol):
    """Where the samples of one clip go as they are made."""

    sound: StreamFormat

    @property
    def samples(self) -> int:
        """Those that it was given, a channel."""
        ...

    @property
    def clipped(self) -> int:
        """Samples over full scale."""
        ...

    def write(self, samples: Float[np.ndarray, "t c"]) -> None: ...

    def close(self) -> None: ...


@runtime_checkable
class BinaryWriter(Protocol):
    """What takes bytes."""

    def write(self, data: bytes, /) -> int: ...
    def flush(self) -> None: ...


class StreamingAudioWriter:
    """An audio file to which samples are added.

    `target` is the path of a file, which is made at the first samples, or something open to write to. `kind` is `raw`
    (16 bits, little-endian, interleaved), `wav`, `mp3`, or into a file any that `files.FORMATS` names. Nothing can be
    turned down afterwards: what is over full scale is clipped, and counted in `clipped`.
    """

    def __init__(
        self, target: Path | BinaryWriter, kind: str, sound: StreamFormat, tags: Mapping[str, str] | None = None
    ) -> None:
        kind = kind.lower().lstrip(".")
        kinds = PIPED if not isinstance(target, Path) else ("raw", *(suffix[1:] for suffix in FORMATS))
        name = str(target) if isinstance(target, Path) else "a pipe"
        if kind not in kinds:
            raise AudioError(f"{name}: cannot write '{kind}' while it is made; choose from {', '.join(kinds)}")
        rates = FORMATS[f".{kind}"].rates if kind != "raw" else ()
        if rates and sound.sample_rate not in rates:
            known = ", ".join(map(str, rates))
            raise AudioError(f"{name}: {kind} does not have {sound.sample_rate} Hz, only {known}; choose another kind")
        self.target, self.kind, self.sound, self.tags = target, kind, sound, dict(tags or {})
        self.samples = self.clipped = 0  # written so far, a channel; those of all channels over full scale
        self._file: Any = None
        self._form: Any = None

    def write(self, samples: Float[np.ndarray, "t c"]) -> None:
        """Adds samples, and hands them on at once."""
        if not np.isfinite(samples).all():
            raise AudioError(f"{self.kind} audio: samples after {self.samples} are NaN or infinite; nothing more is written")
        if self._file is None:
            self._file = open(self.target, "w+b") if isinstance(self.target, Path) else self.target  # noqa: SIM115
            self._form = {"raw": _Raw, "wav": _Wav}.get(self.kind, _Encoded)(self._file, self)
        self.clipped += int((np.abs(samples) > 1).sum())
        self._form.add(samples.clip(-1, 1))
        self.samples += len(samples)
        self._form.settle()
        self._file.flush()

    def close(self) -> None:
        """Ends the file; a pipe stays open for its owner."""
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
    """Samples of 16 bits and nothing else."""

    def __init__(self, file: Any, whole: StreamingAudioWriter) -> None:
        self.file, self.whole = file, whole

    def add(self, samples: np.ndarray) -> None:
        self.file.write(to_pcm(samples, 16).astype("<i2").tobytes())

    def settle(self) -> None:
        pass

    def end(self) -> None:
        pass


class _Wav(_Raw):
    """A header before them, corrected each time where there is a way back; else it says that the length is not known."""

    def __init__(self, file: Any, whole: StreamingAudioWriter) -> None:
        super().__init__(file, whole)
        self.seekable = file.seekable()
        file.write(self._header(0 if self.seekable else None))

    def settle(self) -> None:
        if self.seekable:
            self.file.seek(0)
            self.file.write(self._header(self.whole.samples))
            self.file.seek(0, 2)

    def _header(self, samples: int | None) -> bytes:
        rate, channels = self.whole.sound
        form = struct.pack("<HHIIHH", 1, channels, rate, rate * channels * 2, channels * 2, 16)
        said = [(name, self.whole.tags[tag].encode() + b"\0") for tag, name in _INFO.items() if self.whole.tags.get(tag)]
        info = b"".join(_chunk(name, text) for name, text in said)
        head = b"WAVE" + _chunk(b"fmt ", form) + (_chunk(b"LIST", b"INFO" + info) if info else b"") + b"data"
        size = None if samples is None else min(samples * channels * 2, UNKNOWN - len(head) - 4)
        riff = UNKNOWN if size is None else len(head) + 4 + size
        return b"RIFF" + struct.pack("<I", riff) + head + struct.pack("<I", UNKNOWN if size is None else size)


class _Encoded:
    """What libsndfile makes of them."""

    def __init__(self, file: Any, whole: StreamingAudioWriter) -> None:
        import soundfile

        name, subtype, _ = FORMATS[f".{whole.kind}"]
        self.whole_numbers = subtype.startswith("PCM_")
        self.sink = CallbackFile(file) if isinstance(whole.target, Path) else _Forward(file)
        how: dict[str, Any] = MP3 if name == "MP3" else {}
        rate, channels = whole.sound
        self.out = soundfile.SoundFile(cast(BinaryIO, self.sink), "w", rate, channels, subtype, format=name, **how)
        for key, text in whole.tags.items():
            if text:
                setattr(self.out, key, text)

    def add(self, samples: np.ndarray) -> None:
        self.out.write(to_pcm(samples, 16) if self.whole_numbers else samples.astype(np.float32))
        self.sink.check()

    def settle(self) -> None:
        pass

    def end(self) -> None:
        self.out.close()
        self.sink.check()


class _Forward(CallbackFile):
    """A pipe that takes what comes next, and drops what would correct the beginning."""

    def __init__(self, file: Any) -> None:
        super().__init__(file)
        self.place = self.length = 0

    def write(self, data: bytes) -> int:
        if self.place == self.length:
            super().write(data)
            self.length += len(data)
        self.place += len(data)
        return len(data)

    def seek(self, offset: int, whence: Literal[0, 1, 2] = 0) -> int:  # type: ignore[override]
        self.place = offset + (0, self.place, self.length)[whence]
        return self.place

    def tell(self) -> int:
        return self.place


def _chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
