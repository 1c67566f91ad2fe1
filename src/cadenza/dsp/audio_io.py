"""Audio files: exact segment reads and atomic writes with libsndfile; other containers (m4a, webm, ...) with PyAV."""

import importlib
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple, cast

import numpy as np
from jaxtyping import Float

from cadenza.core.atomic import atomic_write
from cadenza.core.errors import AudioError
from cadenza.dsp.byte_range import AudioPath, ByteRange

PREROLL = 1.0  # seconds decoded before a segment in a container; Opus needs that long to converge
BLOCK = 65_536  # frames a write; libsndfile's Vorbis encoder crashes on one long buffer (libsndfile#1023)
RUN_IN = 16_384  # samples decoded before a segment by decoders with state


class FileFormat(NamedTuple):
    """libsndfile's names for the format of a suffix."""

    name: str
    subtype: str
    rates: tuple[int, ...] = ()  # supported sample rates; empty for all


FORMATS = {
    ".wav": FileFormat("WAV", "PCM_16"),
    ".flac": FileFormat("FLAC", "PCM_16"),
    ".ogg": FileFormat("OGG", "VORBIS"),
    ".oga": FileFormat("OGG", "VORBIS"),
    ".opus": FileFormat("OGG", "OPUS", (8000, 12000, 16000, 24000, 48000)),
    ".mp3": FileFormat("MP3", "MPEG_LAYER_III", (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)),
    ".aiff": FileFormat("AIFF", "PCM_16"),
    ".aif": FileFormat("AIFF", "PCM_16"),
}
CONTAINERS = (".m4a", ".aac", ".mp4", ".m4b", ".mov", ".mkv", ".webm", ".wma", ".ac3", ".amr")  # read only
SUFFIXES = (*FORMATS, *CONTAINERS)
_FLOATS = ("FLOAT", "DOUBLE")


class TruncatedAudioError(AudioError):
    """An audio file that ends before the length in its header."""


@dataclass(frozen=True)
class AudioFileInfo:
    """Sample rate in Hz, channels, and samples per channel of an audio file."""

    sample_rate: int
    channels: int
    frames: int

    @property
    def seconds(self) -> float:
        return self.frames / self.sample_rate


def probe(path: AudioPath) -> AudioFileInfo:
    """Return sample rate, channels and length; raise AudioError if the file is empty or truncated.

    Containers are decoded for it, because their headers are not exact.
    """
    path = _as_path(path)
    if path.suffix.lower() in CONTAINERS:
        samples, sample_rate = _read_container(path, 0, None)
        return AudioFileInfo(sample_rate, samples.shape[1], len(samples))
    with _open_sound_file(path) as file:
        return AudioFileInfo(file.samplerate, file.channels, file.frames)


def read_samples(path: AudioPath, start: int = 0, frames: int | None = None) -> tuple[Float[np.ndarray, "t c"], int]:
    """Return samples `[start, start + frames)`, fewer at the end of the file, and the sample rate."""
    path = _as_path(path)
    if start < 0 or (frames is not None and frames <= 0):
        raise AudioError(f"{path}: cannot read {frames} samples from sample {start}; start at 0 or later and read some")
    if path.suffix.lower() in CONTAINERS:
        samples, sample_rate = _read_container(path, start, frames)
    else:
        with _open_sound_file(path) as file:
            if start >= file.frames:
                raise AudioError(f"{path}: sample {start} is past the end; the file has {file.frames}")
            count = min(file.frames - start, file.frames if frames is None else frames)
            samples, sample_rate = _read_exact(path, file, start, count), file.samplerate
    if not np.isfinite(samples).all():
        raise AudioError(f"{path}: contains NaN or infinite samples; export the file again")
    return samples, sample_rate


def iter_blocks(path: AudioPath, frames: int) -> Iterator[Float[np.ndarray, "t c"]]:
    """Yield a whole file in blocks of `frames` samples, NaN included.

    Raise TruncatedAudioError if it cannot be decoded to its end.
    """
    path = _as_path(path)
    if path.suffix.lower() in CONTAINERS:
        samples, _ = read_samples(path)
        yield from (samples[start : start + frames] for start in range(0, len(samples), frames))
        return
    with _open_sound_file(path) as file:
        for start in range(0, file.frames, frames):  # soundfile seeks after each read, which is not exact either
            yield _read_exact(path, file, start, min(frames, file.frames - start))


def write_samples(
    path: str | Path,
    samples: Float[np.ndarray, "t c"],
    sample_rate: int,
    *,
    peak: Literal["normalize", "error", "clip"] = "normalize",
    subtype: str | None = None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Write an audio file atomically, in the format of its suffix.

    `peak` decides about audio above full scale in integer formats: scale to -0.1 dBFS with a warning, raise AudioError, or
    clip. `subtype` is a name of libsndfile ("PCM_24", "FLOAT"); `tags` are its text fields ("title", "comment", ...).
    """
    import soundfile

    path, samples = Path(path), np.asarray(samples, dtype=np.float32)
    format = format_of(str(path), path.suffix, sample_rate)
    subtype = subtype or format.subtype
    _check_samples(path, samples)
    if subtype not in ("FLOAT", "DOUBLE"):
        samples = _limit_peak(path, samples, peak)
    if subtype.startswith("PCM_") and subtype != "PCM_U8":  # libsndfile scales by 2^n - 1, which its reader does not invert
        samples = to_pcm(samples, int(subtype.removeprefix("PCM_S").removeprefix("PCM_")))
    channels = samples.shape[1]
    with atomic_write(path, AudioError) as target:
        file = CallbackFile(target)
        try:
            with soundfile.SoundFile(cast(BinaryIO, file), "w", sample_rate, channels, subtype, format=format.name) as encoder:
                set_tags(encoder, tags or {})
                for begin in range(0, len(samples), BLOCK):
                    encoder.write(samples[begin : begin + BLOCK])
                    file.check()
        except (soundfile.LibsndfileError, ValueError, AttributeError, TypeError) as error:
            raise AudioError(
                f"{path}: {channels} channel(s) at {sample_rate} Hz cannot be written as {format.name} {subtype}: {error}"
            ) from error
        finally:
            file.check()


def set_tags(encoder: Any, tags: Mapping[str, str]) -> None:
    """Set the text fields of a `SoundFile`; libsndfile rejects empty ones in wav files."""
    for field, text in tags.items():
        if text:
            setattr(encoder, field, text)


class CallbackFile:
    """File object for libsndfile that stores exceptions of its callbacks, where they would be lost."""

    def __init__(self, file: Any) -> None:
        self.file = file
        self.error: BaseException | None = None

    def check(self) -> None:
        """Raise the stored exception, if any."""
        if self.error is not None:
            raise self.error

    def _guard(self, call: Callable[[], int], default: int) -> int:
        if self.error is None:
            try:
                return call()
            except BaseException as error:  # KeyboardInterrupt too: `check` raises it outside the callback
                self.error = error
        return default

    def write(self, data: bytes) -> int:
        return self._guard(lambda: self.file.write(data), len(data))

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._guard(lambda: self.file.seek(offset, whence), 0)

    def tell(self) -> int:
        return self._guard(self.file.tell, 0)


def format_of(name: str, suffix: str, sample_rate: int) -> FileFormat:
    """Return the format of a suffix; raise AudioError if it is unknown or does not support the sample rate."""
    format = FORMATS.get(suffix.lower())
    if format is None:
        problem = f"cannot write '{suffix}' files" if suffix else "the file name has no suffix"
        raise AudioError(f"{name}: {problem}; choose from: {', '.join(FORMATS)}")
    if sample_rate <= 0 or (format.rates and sample_rate not in format.rates):
        known = ", ".join(map(str, format.rates)) or "a positive rate"
        raise AudioError(f"{name}: {suffix} files do not support {sample_rate} Hz; resample to one of: {known}")
    return format


def _check_samples(path: Path, samples: np.ndarray) -> None:
    if samples.ndim != 2 or not samples.size:
        raise AudioError(
            f"{path}: audio of shape {tuple(samples.shape)} cannot be written; expected [samples, channels], neither 0"
        )
    bad = np.flatnonzero(~np.isfinite(samples).all(1))
    if len(bad):
        raise AudioError(
            f"{path}: {len(bad)} of {len(samples)} samples are NaN or infinite, the first at {bad[0]}; nothing was written"
        )


def _limit_peak(path: Path, samples: np.ndarray, peak: str) -> np.ndarray:
    top = float(np.abs(samples).max())
    if top <= 1:
        return samples
    over = f"{path}: the peak is {top:.3f}, {20 * np.log10(top):.1f} dB over full scale"
    if peak == "error":
        raise AudioError(f"{over}; scale it, or write with peak='normalize' or as 32-bit float")
    if peak == "clip":
        return samples.clip(-1, 1)
    warnings.warn(f"{over}; the file was scaled to -0.1 dBFS", stacklevel=3)
    return samples * np.float32(10 ** (-0.1 / 20) / top)


def to_pcm(samples: np.ndarray, bits: int) -> np.ndarray:
    """Round to integers of `bits` bits; 24 and 32 bits are in the upper bits of int32, as libsndfile expects."""
    whole = np.round(samples.astype(np.float64) * 2 ** (bits - 1)).clip(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return whole.astype(np.int16) if bits == 16 else (whole.astype(np.int64) << (32 - bits)).astype(np.int32)


def _as_path(path: AudioPath) -> Path | ByteRange:
    return path if isinstance(path, ByteRange) else Path(path)


def _read_container(path: Path | ByteRange, start: int, frames: int | None) -> tuple[Float[np.ndarray, "t c"], int]:
    """Return samples `[start, start + frames)` of the first audio stream, and the sample rate."""
    try:
        av: Any = importlib.import_module("av")
    except ImportError as error:
        raise AudioError(f'{path}: {path.suffix} files need the `audio` extra: pip install -e ".[audio]"') from error
    try:
        source = path.open() if isinstance(path, ByteRange) else nullcontext(str(path))
        with source as file, av.open(file) as container:
            if not container.streams.audio:
                raise AudioError(f"{path}: has no audio stream")
            samples, rate = _decode(container, av.AudioResampler(format="fltp"), start, frames)
    except (av.error.FFmpegError, OSError) as error:
        raise AudioError(_unreadable(path, error)) from error
    if not len(samples):
        raise AudioError(f"{path}: sample {start} is past the end")
    return samples, rate


def _decode(container: Any, to_floats: Any, start: int, frames: int | None) -> tuple[Float[np.ndarray, "t c"], int]:
    stream = container.streams.audio[0]
    rate = stream.codec_context.sample_rate
    origin = stream.start_time or 0  # samples before it are encoder delay
    exact = stream.time_base * rate <= 1  # webm time stamps are milliseconds: only counting from the start is exact
    if exact and start > PREROLL * rate:
        container.seek(origin + int((start / rate - PREROLL) / stream.time_base), stream=stream)
    blocks, first, decoded = [], None, 0
    for frame in container.decode(stream):
        if first is None:
            first = decoded = round((frame.pts - origin) * stream.time_base * rate) if exact else 0
        blocks += [converted.to_ndarray().T for converted in to_floats.resample(frame)]
        decoded += frame.samples
        if frames is not None and decoded >= start + frames:
            break
    samples = np.concatenate(blocks) if blocks else np.zeros((0, 1), np.float32)
    return samples[max(0, start - (first or 0)) :][:frames], rate


def _read_exact(path: Path | ByteRange, file: Any, start: int, count: int) -> np.ndarray:
    """Return samples `[start, start + count)` of an open file, exact for every codec."""
    import soundfile

    early = _seek_position(path, file, start)
    try:
        if early or file.tell():
            file.seek(early)
        samples = file.read(start - early + count, dtype="float32", always_2d=True)[start - early :]
    except soundfile.LibsndfileError as error:
        problem = f"damaged after {start} of {file.frames} samples ({_reason(error)})"
        raise TruncatedAudioError(f"{path}: {problem}; export or download it again") from error
    if len(samples) < count:
        problem = f"cut short: it has {start + len(samples)} of {file.frames} samples"
        raise TruncatedAudioError(f"{path}: {problem}; export or download it again")
    return samples


@contextmanager
def _open_sound_file(path: Path | ByteRange) -> Iterator[Any]:
    """Open a `SoundFile`; raise AudioError unless it is complete and has at least one sample."""
    import soundfile

    if path.suffix.lower() == ".raw":
        raise AudioError(f"{path}: a .raw file has no sample rate and channels; convert it to .wav")
    with ExitStack() as stack:
        try:
            source = stack.enter_context(path.open()) if isinstance(path, ByteRange) else path
            file = stack.enter_context(soundfile.SoundFile(source))
        except (soundfile.LibsndfileError, OSError) as error:
            raise AudioError(_unreadable(path, error)) from error
        if _is_truncated(path, file):
            raise TruncatedAudioError(f"{path}: cut short: the file ends before its data does; export or download it again")
        if file.frames <= 0:
            raise AudioError(f"{path}: the audio file has no samples")
        yield file


def _unreadable(path: Path | ByteRange, error: Exception) -> str:
    if isinstance(path, Path):
        if not path.exists():
            return f"{path}: no such file"
        if path.is_dir():
            return f"{path}: a folder, not an audio file"
        if not os.access(path, os.R_OK):
            return f"{path}: not readable; check its permissions"
    known = "" if path.suffix.lower() in SUFFIXES else f"; known formats: {', '.join(SUFFIXES)}"
    return f"{path}: not audio, or damaged ({_reason(error)}){known}"


def _reason(error: Exception) -> str:
    text = getattr(error, "error_string", "") or str(error)
    return text.strip().rstrip(".:") or type(error).__name__


def _is_truncated(path: Path | ByteRange, file: Any) -> bool:
    """Return whether wav or aiff data, or the last ogg page, extends past the end of the file; libsndfile ignores it."""
    if file.format in ("WAV", "WAVEX"):
        match = re.search(r"^data : (\d+) \(should be (\d+)\)", file.extra_info, re.MULTILINE)
        return match is not None and int(match[2]) < int(match[1]) < 0x7FFFF000  # streamed wav files state 0 or a maximum
    if file.format == "AIFF":
        with path.open("rb") as raw:
            expected = 8 + int.from_bytes(raw.read(8)[4:], "big")  # total size, after FORM and the field itself
            return raw.seek(0, os.SEEK_END) < expected
    if file.format == "OGG":
        tail = _tail(path)
        page = tail[tail.rfind(b"OggS") :]  # 27 bytes, the last of which counts segments, their sizes, the segments
        return len(page) < 27 or len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]])
    return False


def _seek_position(path: Path | ByteRange, file: Any, start: int) -> int:
    """Return where to seek to decode `start` exactly; seeking to it is not exact in mp3 and the last Vorbis page."""
    if file.format == "MP3":
        return max(0, start - RUN_IN)
    if file.subtype != "VORBIS" or not start:
        return start
    tail = _tail(path)
    pages = [match.start() for match in re.finditer(b"OggS\0", tail)][:-1]  # before the last
    ends = [int.from_bytes(tail[at + 6 : at + 14], "little", signed=True) for at in pages]
    return max(0, min([start, *(end - RUN_IN for end in ends[-1:])])) if ends else 0


def _tail(path: Path | ByteRange) -> bytes:
    """Return the end of an ogg file: its last two pages, of at most 65,307 bytes each."""
    with path.open("rb") as raw:
        raw.seek(max(0, raw.seek(0, os.SEEK_END) - 2 * 65_307))
        return raw.read()
