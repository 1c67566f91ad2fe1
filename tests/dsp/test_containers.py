"""Containers read through PyAV, where the `audio` extra is installed."""

import numpy as np
import pytest

from cadenza.core.errors import AudioError
from cadenza.dsp import audio_io

av = pytest.importorskip("av", reason="the `audio` extra is not installed")


@pytest.mark.parametrize(("suffix", "codec"), [(".m4a", "aac"), (".mkv", "pcm_s16le"), (".webm", "libopus")])
def test_segments_equal_the_same_part_of_the_whole(tmp_path, suffix, codec):
    t = np.arange(48_000 * 3) / 48_000
    samples = np.stack([np.sin(t * 1400), np.sin(t * 2000 + t**2 * 300)]).astype(np.float32) * 0.3
    path = tmp_path / f"a{suffix}"
    with av.open(str(path), "w") as out:
        stream = out.add_stream(codec, rate=48_000, layout="stereo")
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = 48_000, 0
        for resampled in [*av.AudioResampler(stream.format, "stereo", 48_000, 960).resample(frame)]:
            out.mux(stream.encode(resampled))
        out.mux(stream.encode(None))
    whole, rate = audio_io.read_samples(path)
    assert rate == 48_000 and whole.shape[1] == 2 and abs(len(whole) - samples.shape[1]) <= 2048
    assert audio_io.probe(path).frames == len(whole)
    n = min(len(whole), samples.shape[1])
    assert ((whole[:n] - samples.T[:n]) ** 2).mean() < 0.01 * (samples**2).mean()
    for start, frames in [(0, 10), (1, 5000), (47_999, 48_001), (100_000, 960)]:
        part, _ = audio_io.read_samples(path, start, frames)
        assert len(part) == frames
        np.testing.assert_allclose(part, whole[start : start + frames], atol=1e-4)
    (tmp_path / f"b{suffix}").write_bytes(b"hello" * 100)
    with pytest.raises(AudioError, match=f"b{suffix}: not audio"):
        audio_io.read_samples(tmp_path / f"b{suffix}")
