"""`cadenza generate --stream`: played, piped and written audio equals that of `generate`; cancelled and broken streams."""

import io
import re
import signal
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import soundfile
import torch
from tiny import lively, tiny_system

from cadenza.apps.cli import playback, stream
from cadenza.apps.cli.main import main
from cadenza.apps.cli.stream import StreamMeter
from cadenza.dsp.audio import Audio
from cadenza.dsp.audio_io import to_pcm
from cadenza.system.system import System

LINE = (
    r"first audio after \d+\.\d s, \d+\.\dx real time, \d+ chunks(, \d+ underruns?)?, \d+\.\d s to load, on cpu, float32: .*\n"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    lively(tiny_system()).save(folder)
    return folder


@pytest.fixture
def generate(model, tmp_path, capsysbinary, monkeypatch):
    """`generate(...)` gives status, the bytes of the standard output, and the messages on standard error."""

    def run(*arguments: object) -> tuple[int, bytes, str]:
        monkeypatch.chdir(tmp_path)
        line = ["cadenza", "generate", *arguments, "--model", model]
        monkeypatch.setattr(sys, "argv", list(map(str, line)))
        with pytest.raises(SystemExit) as end, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            main()
        out, said = capsysbinary.readouterr()
        assert "cadenza prefetch" not in [thread.name for thread in threading.enumerate()]
        return int(end.value.code or 0), out, said.decode()

    return run


def expected(prompt: str, seconds: float, seed: int) -> np.ndarray:
    return to_pcm(lively(tiny_system()).generate(prompt, seconds=seconds, seed=seed).wave[0].numpy().T, 16)


def same(read: np.ndarray, prompt: str, seconds: float, seed: int) -> None:
    whole = expected(prompt, seconds, seed)
    assert read.shape == whole.shape and np.abs(read.astype(int) - whole).max() <= 1, "but for rounding"
    assert np.abs(np.diff(whole, axis=0)).max() > 1000, "the audio is not silent"


def test_raw_in_a_pipe_is_what_is_generated(generate):
    status, out, said = generate("a song", "--stream", "--out", "-", "--format", "raw", "--seconds", 0.5, "--seed", 3)
    assert status == 0 and re.search(LINE, said)
    same(np.frombuffer(out, "<i2")[:, None], "a song", 0.5, 3)


def test_a_wav_in_a_pipe_needs_nothing_else_said(generate):
    """`--out -` is a stream; the values read from a prompt are not written between the audio."""
    status, out, said = generate("one at 90 bpm", "--out", "-", "--seconds", 0.5, "--seed", 3)
    assert status == 0 and "tempo 90" in said and "seed 3" in said and out[:4] == b"RIFF"
    read, rate = soundfile.read(io.BytesIO(out), dtype="int16", always_2d=True)
    assert rate == 8000
    same(read, "one at 90 bpm", 0.5, 3)


def test_an_mp3_in_a_pipe_is_decoded(generate):
    status, out, _ = generate("a song", "--stream", "--out", "-", "--format", "mp3", "--seconds", 1, "--seed", 3)
    assert status == 0
    with av.open(io.BytesIO(out)) as container:
        decoded = np.concatenate([frame.to_ndarray()[0] for frame in container.decode(audio=0)])
    whole = expected("a song", 1, 3)[:, 0] / 2**15
    delay = np.correlate(decoded, whole, "valid").argmax()
    heard = decoded[delay : delay + 8000]
    assert len(decoded) >= 8000 and np.corrcoef(heard, whole)[0, 1] > 0.5


def test_files_grow(generate, tmp_path, monkeypatch):
    seen = []
    whole = StreamMeter.record_chunk
    monkeypatch.setattr(StreamMeter, "record_chunk", lambda self, chunk: (_lengths(tmp_path, seen), whole(self, chunk))[1])
    status, out, said = generate("a", "b", "--stream", "--out", "{index}.wav", "--seconds", 0.5, "--seed", 3)
    assert status == 0 and b"1.wav: 0.5 s" in out and b"2.wav: 0.5 s" in out and re.search(LINE, said)
    for name, prompt in (("1.wav", "a"), ("2.wav", "b")):
        read, rate = soundfile.read(tmp_path / name, dtype="int16", always_2d=True)
        assert rate == 8000
        same(read, prompt, 0.5, 3)
    assert len(seen) > 5 and seen == sorted(set(seen)) and seen[-1] < 4000
    with soundfile.SoundFile(tmp_path / "1.wav") as file:
        assert file.title == "a" and "model tiny; seed 3; weights under MIT" in file.comment


def _lengths(folder: Path, seen: list[int]) -> None:
    path = folder / "1.wav"
    seen.append(soundfile.info(path).frames if path.exists() else 0)


@pytest.fixture
def player(tmp_path, monkeypatch):
    """An ffplay, the only player installed, that writes its options and its input to files."""
    folder = tmp_path / "programs"
    folder.mkdir()

    def install(does: str = 'echo "$@" > {0}/options; /bin/cat > {0}/input') -> Path:
        (folder / "ffplay").write_text("#!/bin/sh\n" + does.format(folder) + "\n")
        (folder / "ffplay").chmod(0o755)
        monkeypatch.setenv("PATH", str(folder))
        monkeypatch.setattr(playback, "_portaudio", lambda: None)
        return folder

    return install


def test_a_player_gets_all_samples(generate, player):
    folder = player()
    status, out, said = generate("a song", "--stream", "--seconds", 0.5, "--seed", 3)
    assert status == 0 and out.startswith(b"played: 0.5 s") and re.search(LINE, said) and "underrun" in said
    assert (folder / "options").read_text() == playback.FFPLAY_OPTIONS + "\n"
    header, samples = (folder / "input").read_bytes()[:44], (folder / "input").read_bytes()[44:]
    assert header[:4] == b"RIFF" and header[36:40] == b"data"
    same(np.frombuffer(samples, "<i2")[:, None], "a song", 0.5, 3)


def test_a_player_begins_with_a_lead(generate, player, monkeypatch):
    """It is given its first samples when half a second is made, which are several chunks."""
    player()
    taken = []
    whole = StreamMeter.record_chunk
    monkeypatch.setattr(StreamMeter, "record_chunk", lambda self, chunk: (taken.append(self.generated), whole(self, chunk))[1])
    assert generate("a song", "--stream", "--seconds", 1.5, "--seed", 3)[0] == 0
    assert len(taken) > 40 and taken[0] >= stream.LEAD


def test_an_audio_device_gets_all_samples(generate, monkeypatch):
    """The library of the `play` extra, in the place of one that knows a machine's loudspeakers."""
    heard: list[bytes] = []
    said: list[object] = []

    class Stream:
        def __init__(self, *how: object, **more: object) -> None:
            said.append((how, more["channels"], more["dtype"]))

        def __getattr__(self, name: str):
            return lambda *data: said.append(name) if not data else heard.append(data[0])

    library = SimpleNamespace(RawOutputStream=Stream, PortAudioError=OSError)
    monkeypatch.setattr(playback, "_portaudio", lambda: library)
    assert generate("a song", "--stream", "--seconds", 0.6, "--seed", 3)[0] == 0
    assert said == [((8000,), 1, "int16"), "start", "stop", "close"]
    same(np.frombuffer(b"".join(heard), "<i2")[:, None], "a song", 0.6, 3)


def test_a_player_that_fails_says_why(generate, player):
    player("echo 'no such card' >&2; exit 3")
    status, _, said = generate("a song", "--stream", "--seconds", 60, "--seed", 3)
    assert status == 2 and said.endswith(
        "error: ffplay could not play: no such card; write to a file instead, with --out song.wav\n"
    )


def test_a_player_that_is_closed_ends_the_work(generate, player, monkeypatch):
    """More than a pipe holds would take minutes to make."""
    player("/usr/bin/head -c 100 > /dev/null")
    status, _, said = generate("a song", "--stream", "--seconds", 3000, "--seed", 3)
    assert status == 1 and said == ""


def test_nothing_to_play_with(generate, player, monkeypatch):
    monkeypatch.setattr(System, "from_saved", lambda *_, **__: pytest.fail("a large model would have been read"))
    (player() / "ffplay").unlink()
    status, _, said = generate("a song", "--stream")
    assert status == 2 and said.count("\n") == 1
    assert said.startswith("error: no audio player found: install ffmpeg") and "--out song.wav" in said


def test_mistakes_name_the_mend(generate, player, tmp_path, monkeypatch):
    player()
    monkeypatch.setattr(System, "from_saved", lambda *_, **__: pytest.fail("a large model would have been read"))
    cases = {
        ("x", "--stream", "--loudness", "-14"): "--loudness needs a whole clip; leave it out, or leave out --stream",
        ("x", "--format", "mp3"): "is for --out -; the suffix of a file name sets its format",
        ("x", "--stream", "--out", "a.wav", "--format", "mp3"): "is for --out -",
        ("x", "--out", "-", "--format", "flac"): "'flac' is none of raw, wav, mp3",
        ("x", "y", "--stream"): "2 clips cannot be played or piped at once",
        ("x", "--variations", "3", "--out", "-"): "3 clips cannot be played or piped at once",
        ("x", "--stream", "--out", "a.xyz"): "unknown kind of file '.xyz'",
        ("x", "--stream", "--out", "gone/a.wav"): "folder 'gone' not found",
    }
    for arguments, complaint in cases.items():
        status, out, said = generate(*arguments)
        assert (status, out) == (2, b"") and complaint in said, (arguments, said)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert "audio is not for a terminal" in generate("x", "--out", "-")[2]
    assert not list(tmp_path.glob("*.wav"))


def test_what_is_over_full_scale_is_said(generate, model, tmp_path, monkeypatch):
    whole = System.stream
    monkeypatch.setattr(
        System, "stream", lambda self, *a, **k: (Audio(c.wave * 1e4, c.sample_rate, c.lengths) for c in whole(self, *a, **k))
    )
    status, _, said = generate("a", "--stream", "--out", "a.wav", "--seconds", 0.2)
    assert status == 0 and re.search(r"a.wav: \d+ samples were over full scale and are clipped", said)
    assert np.abs(soundfile.read(tmp_path / "a.wav")[0]).max() <= 1


def command(model: Path, *arguments: object) -> list[str]:
    return [sys.executable, "-m", "cadenza", "generate", "a song", "--model", str(model), *map(str, arguments)]


@pytest.mark.parametrize("form", ["wav", "mp3"])
def test_a_closed_pipe_ends_quietly(model, form):
    """An hour of audio would take more than the time that is given."""
    line = command(model, "--out", "-", "--format", form, "--seconds", 3600)
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        assert len(process.stdout.read(1000)) == 1000
        process.stdout.close()
        said = process.stderr.read()
        assert (process.wait(timeout=120), said) == (1, b"")


def test_an_interrupted_stream_keeps_what_it_has_written(model, tmp_path):
    line = command(model, "--stream", "--out", tmp_path / "a.wav", "--seconds", 3600)
    with subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "a.wav").exists() and process.poll() is None:
            time.sleep(0.05)
        time.sleep(0.3)
        process.send_signal(signal.SIGINT)
        out, said = process.communicate(timeout=120)
    assert process.returncode == 130 and out == "", said
    seconds = soundfile.info(tmp_path / "a.wav").duration
    assert 0 < seconds < 3600 and said == f"{tmp_path / 'a.wav'}: ends after {seconds:.1f} s\ncancelled\n"


def test_a_meter_counts_what_a_listener_hears(monkeypatch):
    """Chunks of a second: the second comes in time, the third when nothing is left, the fourth in time again."""
    clock = iter([12.0, 12.9, 14.5, 15.4])
    monkeypatch.setattr(stream, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    meter = StreamMeter(True, started=10.0)
    for _ in range(4):
        meter.record_chunk(Audio(torch.zeros(1, 1, 8000), 8000))
    assert (meter.first, meter.chunks, meter.underruns, meter.until) == (2.0, 4, 1, 16.5)
    meter.generated, meter.busy = 4.0, 2.0
    assert str(meter) == "first audio after 2.0 s, 2.0x real time, 4 chunks, 1 underrun"
