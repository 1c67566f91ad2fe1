"""Audio inside containers that libsndfile does not know (m4a, webm, ...), through ffmpeg by way of PyAV."""

import importlib
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from cadenza.core.errors import AudioError
from cadenza.dsp.sections import ByteRange

PREROLL = 1.0  # seconds decoded before a segment; with less, Opus has not settled


def probe_ffmpeg(path: Path | ByteRange) -> tuple[int, int, int]:
    """Sample rate, channels and samples a channel; decodes the file, as no container's header is exact."""
    samples, sample_rate = read_ffmpeg(path, 0, None)
    return sample_rate, samples.shape[1], len(samples)


def read_ffmpeg(path: Path | ByteRange, start: int, frames: int | None) -> tuple[Float[np.ndarray, "t c"], int]:
    """Samples `[start, start + frames)` of the first audio stream of a file."""
    av = _av(path)
    if isinstance(path, Path) and not path.is_file():
        raise AudioError(f"{path}: no such file")
    try:
        with _source(path) as source, av.open(source) as container:
            if not container.streams.audio:
                raise AudioError(f"{path}: has no audio stream")
            stream = container.streams.audio[0]
            rate = stream.codec_context.sample_rate
            samples = _decode(container, stream, start, None if frames is None else start + frames)
    except (av.error.FFmpegError, OSError) as error:
        raise AudioError(f"{path}: not audio, or damaged ({error})") from error
    if not len(samples):
        raise AudioError(f"{path}: there is no sample {start}")
    return samples, rate


def _source(path: Path | ByteRange) -> AbstractContextManager[Any]:
    """What ffmpeg is to open: the path, or an open file that closes itself."""
    return path.open() if isinstance(path, ByteRange) else nullcontext(str(path))


def _decode(container: Any, stream: Any, start: int, stop: int | None) -> np.ndarray:
    rate = stream.codec_context.sample_rate
    origin = stream.start_time or 0  # encoder delay is before it
    exact = stream.time_base * rate <= 1  # webm's clock ticks in milliseconds: only counting from the start is exact
    if exact and start > PREROLL * rate:
        container.seek(origin + int((start / rate - PREROLL) / stream.time_base), stream=stream)
    pieces, begin, decoded = [], None, 0
    for frame in container.decode(stream):
        if begin is None:
            begin = decoded = round((frame.pts - origin) * stream.time_base * rate) if exact else 0
        pieces.append(_floats(frame))
        decoded += frame.samples
        if stop is not None and decoded >= stop:
            break
    whole = np.concatenate(pieces) if pieces else np.zeros((0, 1), np.float32)
    first = max(0, start - (begin or 0))
    return whole[first : None if stop is None else first + stop - start]


def _floats(frame: Any) -> np.ndarray:
    """One decoded frame as [samples, channels] at full scale ±1."""
    data = frame.to_ndarray()
    if not frame.format.is_planar:
        data = data.reshape(-1, frame.layout.nb_channels).T
    if data.dtype == np.uint8:
        return ((data.astype(np.float32) - 128) / 128).T
    scale = 1.0 if np.issubdtype(data.dtype, np.floating) else float(np.iinfo(data.dtype).max) + 1
    return (data.astype(np.float32) / scale).T


def _av(path: Path | ByteRange) -> Any:
    try:
        av = importlib.import_module("av")
    except ImportError as error:
        raise AudioError(f'{path}: {path.suffix} files need the `audio` extra: pip install "cadenza[audio]"') from error
    return av
