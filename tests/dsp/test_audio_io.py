"""Audio files: exact round trips and seeks, whole files or none, clear messages for bad input."""

import os
import resource
import stat
import subprocess
import sys
import wave as stdlib_wave

import numpy as np
import pytest

from cadenza.core.errors import AudioError
from cadenza.dsp import audio_io

LOSSY = [".ogg", ".opus", ".mp3"]


def music(seconds: float, rate: int, channels: int = 2) -> np.ndarray:
    """A few decaying partials, different in each channel."""
    t = np.arange(round(seconds * rate)) / rate
    tones = [220 * (1 + c / 4) for c in range(channels)]
    return np.stack([0.4 * np.sin(2 * np.pi * hz * t) * np.exp(-(t % 0.5) * 4) for hz in tones], 1).astype(np.float32)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".aiff"])
@pytest.mark.parametrize(("subtype", "bits"), [("PCM_16", 16), ("PCM_24", 24)])
def test_every_integer_sample_comes_back_exactly(tmp_path, suffix, subtype, bits):
    whole = np.random.default_rng(0).integers(-(2 ** (bits - 1)), 2 ** (bits - 1), (70_000, 2))
    whole[0], whole[1] = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    samples = (whole / 2 ** (bits - 1)).astype(np.float32)
    audio_io.write_samples(tmp_path / f"a{suffix}", samples, 22_050, subtype=subtype)
    back, rate = audio_io.read_samples(tmp_path / f"a{suffix}")
    assert rate == 22_050 and back.dtype == np.float32
    np.testing.assert_array_equal(back, samples)


def test_wav_agrees_with_the_standard_library(tmp_path):
    samples = music(0.1, 8000, 1)
    audio_io.write_samples(tmp_path / "a.wav", samples, 8000)
    with stdlib_wave.open(str(tmp_path / "a.wav")) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (8000, 1, 2)
        ints = np.frombuffer(file.readframes(10**6), "<i2")
    np.testing.assert_array_equal(ints, np.round(samples[:, 0].astype(np.float64) * 32768).astype(np.int16))


def test_float_wav_keeps_what_is_over_full_scale(tmp_path):
    samples = music(0.1, 8000) * 5
    audio_io.write_samples(tmp_path / "a.wav", samples, 8000, subtype="FLOAT")
    np.testing.assert_array_equal(audio_io.read_samples(tmp_path / "a.wav")[0], samples)


@pytest.mark.parametrize("suffix", LOSSY)
def test_lossy_formats_keep_length_and_sound(tmp_path, suffix):
    samples = music(2.0, 48_000)
    audio_io.write_samples(tmp_path / f"a{suffix}", samples, 48_000)
    back, rate = audio_io.read_samples(tmp_path / f"a{suffix}")
    assert back.shape == samples.shape and rate == 48_000
    assert audio_io.probe(tmp_path / f"a{suffix}") == audio_io.AudioFileInfo(48_000, 2, 96_000)
    noise = ((back - samples) ** 2).mean() / (samples**2).mean()
    assert 10 * np.log10(noise) < -15


@pytest.mark.parametrize("suffix", [".wav", ".flac", *LOSSY])
@pytest.mark.parametrize("seconds", [3.0, 31.7])
def test_segments_equal_the_same_part_of_the_whole(tmp_path, suffix, seconds):
    path, total = tmp_path / f"a{suffix}", round(seconds * 24_000)
    audio_io.write_samples(path, music(seconds, 24_000), 24_000)
    whole, _ = audio_io.read_samples(path)
    rng = np.random.default_rng(0)
    spots = [(int(start), 500) for start in [*rng.integers(0, total, 30), *rng.integers(total - 30_000, total, 30)]]
    for start, frames in [(0, 1), (1, 1000), (23_999, 24_000), (50_001, 7), (total - 1, 1), (total - 2000, 9999), *spots]:
        part, _ = audio_io.read_samples(path, start, frames)
        assert len(part) == min(frames, total - start)
        np.testing.assert_allclose(part, whole[start : start + frames], atol=1e-6, err_msg=str(start))


def test_a_long_vorbis_file_in_one_call(tmp_path):
    """libsndfile's encoder crashes the process on one long buffer: in a process of its own."""
    code = (
        "import numpy as np; from cadenza.dsp.audio_io import write_samples\n"
        f"write_samples({str(tmp_path / 'a.ogg')!r}, np.random.default_rng(0).uniform(-.3, .3, (44100 * 60, 2)), 44100)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert audio_io.probe(tmp_path / "a.ogg").frames == 44_100 * 60


@pytest.mark.parametrize("suffix", [".wav", ".flac", *LOSSY])
def test_one_sample(tmp_path, suffix):
    audio_io.write_samples(tmp_path / f"a{suffix}", np.full((1, 1), 0.5, np.float32), 48_000)
    assert audio_io.read_samples(tmp_path / f"a{suffix}")[0].shape == (1, 1)


def test_too_loud_is_turned_down_with_a_warning_that_names_the_overshoot(tmp_path):
    samples = music(0.5, 8000)
    samples *= 2 / np.abs(samples).max()
    with pytest.warns(UserWarning, match=r"2\.000, 6\.0 dB over full scale"):
        audio_io.write_samples(tmp_path / "a.wav", samples, 8000)
    back = audio_io.read_samples(tmp_path / "a.wav")[0]
    assert 20 * np.log10(np.abs(back).max()) == pytest.approx(-0.1, abs=0.01)
    np.testing.assert_allclose(back / np.abs(back).max(), samples / 2, atol=1e-4)


def test_too_loud_as_an_error_or_clipped_when_asked(tmp_path):
    samples = np.array([[-3.0], [0.5], [3.0]], np.float32)
    with pytest.raises(AudioError, match="full scale.*normalize"):
        audio_io.write_samples(tmp_path / "a.wav", samples, 8000, peak="error")
    assert not list(tmp_path.iterdir())
    audio_io.write_samples(tmp_path / "a.wav", samples, 8000, peak="clip")
    np.testing.assert_allclose(audio_io.read_samples(tmp_path / "a.wav")[0][:, 0], [-1, 0.5, 1], atol=1e-4)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nan_and_infinity_are_errors_both_ways(tmp_path, bad):
    samples = np.zeros((10, 2), np.float32)
    samples[3, 1] = bad
    with pytest.raises(AudioError, match="1 of 10 samples are NaN or infinite, the first at 3"):
        audio_io.write_samples(tmp_path / "a.wav", samples, 8000)
    assert not list(tmp_path.iterdir())
    import soundfile

    soundfile.write(tmp_path / "b.wav", samples, 8000, subtype="FLOAT")
    with pytest.raises(AudioError, match="b.wav: contains NaN"):
        audio_io.read_samples(tmp_path / "b.wav")


@pytest.mark.parametrize(
    ("name", "samples", "rate", "message"),
    [
        ("a.wav", np.zeros((0, 1)), 8000, "shape \\(0, 1\\)"),
        ("a.wav", np.zeros((5, 0)), 8000, "shape \\(5, 0\\)"),
        ("a.xyz", np.zeros((5, 1)), 8000, "cannot write '.xyz' files; choose from: .wav, .flac"),
        ("a", np.zeros((5, 1)), 8000, "the file name has no suffix"),
        ("a.opus", np.zeros((5, 1)), 44_100, "do not support 44100 Hz; resample to one of: 8000, .*48000"),
        ("a.mp3", np.zeros((5, 3)), 44_100, "3 channel\\(s\\)"),
        ("nowhere/a.wav", np.zeros((5, 1)), 8000, "make the folder"),
        (".", np.zeros((5, 1)), 8000, "choose from"),
    ],
)
def test_what_cannot_be_written_says_so(tmp_path, name, samples, rate, message):
    with pytest.raises(AudioError, match=message):
        audio_io.write_samples(tmp_path / name, samples.astype(np.float32), rate)
    assert not list(tmp_path.iterdir())


def test_a_folder_in_the_way(tmp_path):
    (tmp_path / "a.wav").mkdir()
    with pytest.raises(AudioError, match="it is a folder"):
        audio_io.write_samples(tmp_path / "a.wav", np.zeros((5, 1), np.float32), 8000)
    assert [path.name for path in tmp_path.iterdir()] == ["a.wav"]


def test_no_permission(tmp_path):
    folder = tmp_path / "closed"
    folder.mkdir()
    code = f"""
import os, soundfile, numpy as np
from cadenza.dsp import audio_io
os.chdir({str(tmp_path)!r})
os.getuid() or os.setuid(65534)
try: audio_io.write_samples('closed/a.wav', np.zeros((5, 1)), 8000)
except audio_io.AudioError as error: print(error)
"""
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    folder.chmod(stat.S_IRWXU)
    assert "a.wav: cannot be written: Permission denied; check" in done.stdout, done.stderr
    assert not list(folder.iterdir())


@pytest.mark.parametrize("suffix", [".wav", ".flac", *LOSSY])
def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    audio_io.write_samples(path, music(0.1, 48_000), 48_000)
    before = path.read_bytes()
    noise = np.random.default_rng(0).uniform(-0.9, 0.9, (48_000 * 10, 2)).astype(np.float32)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, old[1]))  # what a full disk does, for one process
    try:
        with pytest.raises(AudioError, match="cannot be written: File too large; check the free space"):
            audio_io.write_samples(path, noise, 48_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert [p.name for p in tmp_path.iterdir()] == [path.name] and path.read_bytes() == before


def test_a_small_tmpfs(tmp_path):
    """The same on a real file system of 4 MB, where this machine lets a process mount one."""
    code = """
import os, numpy as np
from cadenza.dsp import audio_io
try: audio_io.write_samples('m/a.wav', np.zeros((3_000_000, 1)), 48000)
except audio_io.AudioError as error: print(error, os.listdir('m'))
"""
    (tmp_path / "m").mkdir()
    shell = f'mount -t tmpfs -o size=4m none m && "{sys.executable}" -c "$CODE"'
    environment = {**os.environ, "CODE": code}
    run = ["unshare", "--mount", "--map-root-user", "sh", "-c", shell]
    done = subprocess.run(run, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    if "mount" not in done.stderr and "unshare" not in done.stderr:
        assert "No space left on device; check the free space" in done.stdout and done.stdout.strip().endswith("[]"), done
    assert not list((tmp_path / "m").iterdir())


@pytest.mark.parametrize("suffix", [".wav", ".mp3"])
def test_ctrl_c_while_writing(tmp_path, monkeypatch, suffix):
    calls = []
    seek = audio_io.CallbackFile.write

    def interrupted(sink, data):
        calls.append(len(data))
        return seek(sink, data) if len(calls) < 3 else sink._guard(lambda: (_ for _ in ()).throw(KeyboardInterrupt), len(data))

    monkeypatch.setattr(audio_io.CallbackFile, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        audio_io.write_samples(tmp_path / f"a{suffix}", music(5.0, 48_000), 48_000)
    assert not list(tmp_path.iterdir())


def test_bad_files_are_named(tmp_path):
    (tmp_path / "junk.wav").write_bytes(b"hello world" * 100)
    (tmp_path / "empty.flac").write_bytes(b"")
    (tmp_path / "notes.txt").write_text("no audio")
    (tmp_path / "dir.wav").mkdir()
    import soundfile

    soundfile.write(tmp_path / "none.wav", np.zeros((0, 1)), 8000)
    messages = {"junk.wav": "not audio", "empty.flac": "not audio", "notes.txt": "known formats: .wav", "dir.wav": "a folder"}
    for name, message in {**messages, "none.wav": "has no samples", "missing.wav": "no such file"}.items():
        for use in (audio_io.read_samples, audio_io.probe):
            with pytest.raises(AudioError, match=f"{name}.*{message}"):
                use(tmp_path / name)


@pytest.mark.parametrize("suffix", [".wav", ".flac", *LOSSY])
def test_truncated_files_are_errors_and_never_shorter_audio(tmp_path, suffix, capfd):
    audio_io.write_samples(tmp_path / f"a{suffix}", music(2.0, 48_000), 48_000)
    data = (tmp_path / f"a{suffix}").read_bytes()
    (tmp_path / f"b{suffix}").write_bytes(data[: len(data) * 2 // 3 + 1])
    with pytest.raises(AudioError, match=f"b{suffix}: (cut short|damaged)"):
        audio_io.read_samples(tmp_path / f"b{suffix}")


def test_segments_that_do_not_exist(tmp_path):
    audio_io.write_samples(tmp_path / "a.wav", music(0.1, 8000), 8000)
    for start, frames in [(-1, 5), (0, 0), (800, 1)]:
        with pytest.raises(AudioError, match="a.wav"):
            audio_io.read_samples(tmp_path / "a.wav", start, frames)


@pytest.mark.parametrize("suffix", [".wav", ".flac", ".ogg", ".mp3"])
def test_tags(tmp_path, suffix):
    import soundfile

    audio_io.write_samples(
        tmp_path / f"a{suffix}", music(0.1, 48_000), 48_000, tags={"title": "slow piano", "comment": "seed 3"}
    )
    with soundfile.SoundFile(tmp_path / f"a{suffix}") as file:
        assert (file.title, file.comment) == ("slow piano", "seed 3")


def test_containers_say_which_extra_they_need(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "a.m4a").write_bytes(b"")
    with pytest.raises(AudioError, match=r'a.m4a: .m4a files need the `audio` extra: pip install -e "\.\[audio\]"'):
        audio_io.read_samples(tmp_path / "a.m4a")
