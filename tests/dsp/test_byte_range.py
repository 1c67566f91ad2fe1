"""Sections: parts of a file that read as files of their own."""

import io

import numpy as np
import pytest

from cadenza.core.errors import AudioError
from cadenza.dsp import audio_io
from cadenza.dsp.audio import load_audio
from cadenza.dsp.byte_range import ByteRange


def inside(path, name="inner.wav", before=b"x" * 777):
    """The bytes of a file in the middle of another."""
    outer = path.with_name("outer.bin")
    data = path.read_bytes()
    outer.write_bytes(before + data + b"y" * 999)
    return ByteRange(outer, len(before), len(data), name)


def test_a_section_is_a_file(tmp_path):
    (tmp_path / "a").write_bytes(bytes(range(100)))
    section = inside(tmp_path / "a", "dir/a.bin")
    assert (
        section.read_bytes() == bytes(range(100)) and section.suffix == ".bin" and str(section).endswith("outer.bin:dir/a.bin")
    )
    with section.open() as file:
        assert file.seek(-3, io.SEEK_END) == 97 and file.read(50) == bytes([97, 98, 99]) and file.read() == b""
        assert file.seek(10) == 10 and file.read(2) == bytes([10, 11]) and file.seek(5, io.SEEK_CUR) == 17 and file.tell() == 17
        assert file.seek(500) == 500 and file.read() == b""


@pytest.mark.parametrize("ending", ["wav", "flac", "ogg", "opus", "mp3", "aiff"])
def test_audio_reads_the_same_inside_another_file(tmp_path, ending):
    t = np.arange(3 * 16_000)
    path = tmp_path / f"a.{ending}"
    audio_io.write_samples(path, (0.5 * np.sin(t * 0.05 + (t / 20_000) ** 2))[:, None].astype(np.float32), 16_000)
    section = inside(path, f"a.{ending}")
    assert audio_io.probe(section) == audio_io.probe(path)
    for start, frames in ((0, None), (30_000, 4000), (47_000, None)):
        assert load_audio(section, start, frames).wave.equal(load_audio(path, start, frames).wave)
    whole, _ = audio_io.read_samples(path)
    for place in (section, path):
        np.testing.assert_allclose(np.concatenate(list(audio_io.iter_blocks(place, 7000))), whole, atol=1e-6)


def test_a_container_inside_another_file(tmp_path):
    av = pytest.importorskip("av", reason="the `audio` extra is not installed")
    path = tmp_path / "a.m4a"
    samples = (0.3 * np.sin(np.arange(48_000) * 0.05)).astype(np.float32)[None]
    with av.open(str(path), "w") as out:
        stream = out.add_stream("aac", rate=48_000, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples, format="fltp", layout="mono")
        frame.sample_rate = 48_000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    section = inside(path, "a.m4a")
    assert audio_io.probe(section) == audio_io.probe(path)
    assert load_audio(section, 20_000, 5000).wave.equal(load_audio(path, 20_000, 5000).wave)


def test_what_is_wrong_is_named(tmp_path):
    (tmp_path / "a").write_bytes(b"no sound in here at all")
    with pytest.raises(AudioError, match=r"outer.bin:in.flac: not audio"):
        audio_io.probe(inside(tmp_path / "a", "in.flac"))
    with pytest.raises(AudioError, match=r"gone.bin:x.wav: cannot be opened"):
        audio_io.probe(ByteRange(tmp_path / "gone.bin", 0, 10, "x.wav"))


def test_blocks_say_where_a_file_ends_too_early(tmp_path):
    path = tmp_path / "a.flac"
    audio_io.write_samples(path, np.random.default_rng(0).uniform(-0.5, 0.5, (40_000, 1)).astype(np.float32), 16_000)
    path.write_bytes(path.read_bytes()[:30_000])
    with pytest.raises(audio_io.TruncatedAudioError, match="a.flac: .* of 40000 samples"):
        list(audio_io.iter_blocks(path, 4096))
