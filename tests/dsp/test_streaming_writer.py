"""Files that grow, read by soundfile, the standard library and ffmpeg at every stage."""

import io
import struct
import wave
from pathlib import Path

import av
import numpy as np
import pytest
import soundfile

from cadenza.core.errors import AudioError
from cadenza.dsp import audio_io
from cadenza.dsp.streaming_writer import StreamFormat, StreamingAudioWriter

RATE = 24000
TAGS = {"title": "a häppy tune", "comment": "model tiny; seed 7", "software": "Cadenza", "license": "MIT"}


def tone(seconds: float, channels: int = 1) -> np.ndarray:
    t = np.arange(round(RATE * seconds)) / RATE
    return np.stack([0.5 * np.sin(2 * np.pi * (220 + 110 * c) * t) for c in range(channels)], 1).astype(np.float32)


class Pipe(io.BytesIO):
    """What only takes: no length, no way back."""

    def seekable(self) -> bool:
        return False

    def seek(self, *_: int) -> int:
        raise io.UnsupportedOperation("a pipe has no way back")

    @property
    def all(self) -> bytes:
        return self.getvalue()


def piped(kind: str, samples: np.ndarray, step: int = 1000) -> bytes:
    pipe = Pipe()
    with StreamingAudioWriter(pipe, kind, StreamFormat(RATE, samples.shape[1]), TAGS) as file:
        for start in range(0, len(samples), step):
            before = len(pipe.all)
            file.write(samples[start : start + step])
            assert kind == "mp3" or len(pipe.all) > before, "samples are handed on at once"
    assert not pipe.closed, "which is its owner's to close"
    return pipe.all


@pytest.mark.parametrize("channels", [1, 2])
def test_a_wav_is_whole_after_each_piece(tmp_path: Path, channels: int) -> None:
    path, samples = tmp_path / "a.wav", tone(0.5, channels)
    audio_io.write_samples(tmp_path / "once.wav", samples, RATE)
    expected, _ = soundfile.read(tmp_path / "once.wav", dtype="int16", always_2d=True)
    with StreamingAudioWriter(path, ".wav", StreamFormat(RATE, channels), TAGS) as file:
        assert not path.exists(), "nothing is made of nothing"
        for start in range(0, len(samples), 1111):
            file.write(samples[start : start + 1111])
            so_far, rate = soundfile.read(path, dtype="int16", always_2d=True)
            assert rate == RATE and np.array_equal(so_far, expected[: start + 1111])
            with wave.open(str(path)) as other:
                assert other.getnframes() == len(so_far) and other.getnchannels() == channels
    with soundfile.SoundFile(path) as file:
        assert file.title == TAGS["title"] and file.comment == TAGS["comment"]
    size, data = struct.unpack("<4xI", path.read_bytes()[:8])[0], path.stat().st_size
    assert size == data - 8, "a header that says the size of its file"


@pytest.mark.parametrize("channels", [1, 2])
def test_a_wav_in_a_pipe_is_read_to_its_end(tmp_path: Path, channels: int) -> None:
    samples = tone(0.5, channels)
    data = piped("wav", samples)
    expected = audio_io.to_pcm(samples, 16)
    (tmp_path / "a.wav").write_bytes(data)
    read, rate = soundfile.read(tmp_path / "a.wav", dtype="int16", always_2d=True)
    assert rate == RATE and np.array_equal(read, expected)
    with wave.open(io.BytesIO(data)) as file:
        assert file.readframes(10**6) == expected.astype("<i2").tobytes() and file.getframerate() == RATE
    with av.open(io.BytesIO(data)) as container:
        decoded = np.concatenate([frame.to_ndarray().reshape(-1, channels) for frame in container.decode(audio=0)])
    assert np.array_equal(decoded, expected)


def test_raw_is_the_samples_alone() -> None:
    samples = tone(0.1, 2)
    assert piped("raw", samples) == audio_io.to_pcm(samples, 16).astype("<i2").tobytes()


@pytest.mark.parametrize("channels", [1, 2])
def test_an_mp3_in_a_pipe_is_decoded_from_its_first_bytes_on(channels: int) -> None:
    samples = tone(2.0, channels)
    pipe = Pipe()
    with StreamingAudioWriter(pipe, "mp3", StreamFormat(RATE, channels), TAGS) as file:
        file.write(samples[:RATE])
        early = len(pipe.all)
        file.write(samples[RATE:])
    for data, seconds in ((pipe.all[:early], 0.9), (pipe.all, 2.0)):
        with av.open(io.BytesIO(data)) as container:
            decoded = np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], -1)
        assert len(decoded) == channels and decoded.shape[-1] >= seconds * RATE
        late = decoded[0, RATE // 2 : RATE // 2 + 8192] * np.hanning(8192)
        assert np.abs(np.fft.rfft(late)).argmax() * RATE / 8192 == pytest.approx(220, abs=3)
        assert np.abs(decoded[0, RATE // 2 : RATE // 2 + 8192]).max() == pytest.approx(0.5, abs=0.03)
    read, _ = soundfile.read(io.BytesIO(pipe.all), always_2d=True)
    assert len(read) >= len(samples), "a reader that trusts the first frame finds the whole length"


@pytest.mark.parametrize("kind", ["flac", "ogg", "mp3", "aiff", "opus"])
def test_other_kinds_are_whole_at_the_end(tmp_path: Path, kind: str) -> None:
    path, samples = tmp_path / f"a.{kind}", tone(1.0)
    with StreamingAudioWriter(path, kind, StreamFormat(RATE, 1), TAGS) as file:
        for start in range(0, len(samples), 2000):
            file.write(samples[start : start + 2000])
    read, rate = soundfile.read(path)
    assert rate == RATE and len(samples) <= len(read) <= len(samples) + (3000 if kind == "mp3" else 0)
    if kind in ("flac", "aiff"):
        assert np.abs(read - samples[:, 0]).max() <= 0.5 / 2**15


def test_what_is_over_full_scale_is_clipped_and_counted(tmp_path: Path) -> None:
    samples = tone(0.1) * 4
    with StreamingAudioWriter(tmp_path / "a.wav", "wav", StreamFormat(RATE, 1)) as file:
        file.write(samples)
        assert file.clipped == int((np.abs(samples) > 1).sum()) > 100 and file.samples == len(samples)
    assert np.abs(soundfile.read(tmp_path / "a.wav")[0] - samples[:, 0].clip(-1, 1)).max() < 1e-4


@pytest.mark.parametrize("kind", ["raw", "wav", "mp3"])
def test_a_closed_pipe_is_an_error_of_the_writer(kind: str) -> None:
    class Closed(Pipe):
        def write(self, data) -> int:
            if len(self.all) > 3000:
                raise BrokenPipeError
            return super().write(data)

    with pytest.raises(BrokenPipeError), StreamingAudioWriter(Closed(), kind, StreamFormat(RATE, 1)) as file:
        for _ in range(20):
            file.write(tone(0.5))


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match=r"a pipe: cannot stream 'flac'; choose from raw, wav, mp3"):
        StreamingAudioWriter(Pipe(), "flac", StreamFormat(RATE, 1))
    with pytest.raises(AudioError, match=r"a.xyz: cannot stream 'xyz'.*wav"):
        StreamingAudioWriter(tmp_path / "a.xyz", ".xyz", StreamFormat(RATE, 1))
    with pytest.raises(AudioError, match="mp3 files do not support 10000 Hz; resample to one of: 8000"):
        StreamingAudioWriter(tmp_path / "a.mp3", "mp3", StreamFormat(10000, 1))
    with (
        pytest.raises(AudioError, match="NaN or infinite"),
        StreamingAudioWriter(tmp_path / "a.wav", "wav", StreamFormat(RATE, 1)) as file,
    ):
        file.write(np.full((3, 1), np.nan, np.float32))
    assert not list(tmp_path.iterdir())
