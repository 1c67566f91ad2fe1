"""The command line as a user meets it: results, and one clear line for every mistake."""

import json
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_system

from cadenza.apps.cli.main import main
from cadenza.codecs.encodec import EncodecSpec
from cadenza.data.encoded_dataset import EncodedDataset

TIMEOUT = 120


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_system().save(folder)
    return folder


class Run(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


@pytest.fixture
def cadenza(capsys, monkeypatch):
    """The program, run in this process: `cadenza("generate", "x", cwd=folder)`."""

    def run(*arguments: object, cwd: Path) -> Run:
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["cadenza", *map(str, arguments)])
        with pytest.raises(SystemExit) as end, warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = lambda message, *_: print(message, file=sys.stderr)
            main()
        return Run(int(end.value.code or 0), *capsys.readouterr())

    return run


def refused(run: Run | subprocess.CompletedProcess, *words: str) -> None:
    """One clear message, no traceback, status 2."""
    assert run.returncode == 2, run.stderr + run.stdout
    assert "Traceback" not in run.stderr
    for word in words:
        assert word in run.stderr


def test_generate_writes_and_says_what(cadenza, model, tmp_path):
    run = cadenza("generate", "slow piano", "--model", model, "--seconds", 0.5, "--seed", 3, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    samples, rate = soundfile.read(tmp_path / "out.wav")
    assert rate == 8000 and len(samples) == 4000
    for word in ("out.wav", "tiny", "MIT", "seed 3", "x real time"):
        assert word in run.stdout


def test_generate_says_what_it_read_in_the_prompt(cadenza, model, tmp_path):
    arguments = ("generate", "slow piano, 90 bpm", "--model", model, "--seconds", 0.2)
    assert "read in the prompt: tempo 90\n" in cadenza(*arguments, cwd=tmp_path).stdout
    assert "read in the prompt" not in cadenza(*arguments, "--set", "tempo=80", cwd=tmp_path).stdout


def test_generate_several(cadenza, model, tmp_path):
    options = [
        "--model",
        model,
        "--seconds",
        0.2,
        "--variations",
        2,
        "--out",
        "a.flac",
        "--set",
        "tempo=90",
        "--set",
        "key=A minor",
        "--seed",
        7,
    ]
    run = cadenza("generate", "one", "two", *options, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert [line.rpartition("seed ")[2] for line in run.stdout.splitlines() if "seed" in line] == ["7", "8", "7", "8"]
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"a-{i}.flac" for i in (1, 2, 3, 4)]


def test_the_same_seed_writes_the_same_file(cadenza, model, tmp_path):
    for name in ("a.wav", "b.wav"):
        assert (
            cadenza("generate", "x", "--model", model, "--seconds", 0.3, "--seed", 1, "--out", name, cwd=tmp_path).returncode
            == 0
        )
    assert (tmp_path / "a.wav").read_bytes() == (tmp_path / "b.wav").read_bytes()


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["x", "--set", "tempo="], ["NAME=VALUE"]),
        (["x", "--seconds", 0], ["seconds", "above 0"]),
        (["x", "--seconds", -3], ["seconds", "above 0"]),
        (["x", "--seconds", 1e6], ["too long", "up to 3600"]),
        (["x", "--out", "out.xyz"], [".xyz", ".wav"]),
        (["x", "--out", "nowhere/out.wav"], ["nowhere"]),
        (["x", "--out", "/proc/out.wav"], ["/proc/out.wav"]),
        (["x", "--set", "tempo=fast"], ["tempo=fast"]),
        (["x", "--set", "tempoo=90"], ["tempoo", "Did you mean 'tempo'"]),
        (["x", "--set", "tempo"], ["NAME=VALUE"]),
        (["x", "--sampling", "temprature=1"], ["Did you mean 'temperature'"]),
        (["x", "--variations", 0], ["variations"]),
    ],
)
def test_mistakes_are_one_clear_message(cadenza, model, tmp_path, arguments, words):
    refused(cadenza("generate", *arguments, "--model", model, cwd=tmp_path), *words)
    assert list(tmp_path.iterdir()) == []


def test_ten_thousand_words_are_cut_with_a_warning(cadenza, model, tmp_path):
    run = cadenza("generate", "slow piano " * 5000, "--model", model, "--seconds", 0.2, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "longer than 128 tokens" in run.stderr and "Traceback" not in run.stderr


def test_unknown_model(cadenza, tmp_path):
    refused(cadenza("generate", "x", "--model", "startr", cwd=tmp_path), "startr")


def test_half_a_checkpoint(cadenza, model, tmp_path):
    folder = tmp_path / "half"
    folder.mkdir()
    (folder / "system.json").write_text((model / "system.json").read_text())
    refused(cadenza("generate", "x", "--model", folder, cwd=tmp_path), "no weights")
    whole = load_file(model / "model.safetensors")
    save_file(dict(list(whole.items())[::2]), folder / "model.safetensors")
    refused(cadenza("generate", "x", "--model", folder, cwd=tmp_path), "missing")
    (folder / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:1000])
    refused(cadenza("generate", "x", "--model", folder, cwd=tmp_path), "not a whole safetensors file")


def test_misspelt_spec_field(cadenza, model, tmp_path):
    folder = tmp_path / "odd"
    folder.mkdir()
    (folder / "system.json").write_text((model / "system.json").read_text().replace('"depth"', '"deepth"', 1))
    refused(cadenza("inspect", folder, cwd=tmp_path), "deepth", "Did you mean 'depth'")


def test_encode_and_decode_keep_the_length(cadenza, model, tmp_path):
    wave = 0.3 * np.sin(np.arange(4321) * 0.2)
    soundfile.write(tmp_path / "in.wav", wave, 8000)
    run = cadenza("encode", "in.wav", "--model", model, cwd=tmp_path)
    assert run.returncode == 0 and "2 codebooks x 271 frames" in run.stdout, run.stderr
    run = cadenza("decode", "codes.safetensors", "--model", model, "--out", "back.wav", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert len(soundfile.read(tmp_path / "back.wav")[0]) == 4321


def test_a_bandwidth_pays_for_codebooks(cadenza, model, tmp_path):
    """Codes of 4 bits, 500 frames a second: 2 kbit/s a codebook."""
    soundfile.write(tmp_path / "in.wav", 0.3 * np.sin(np.arange(800) * 0.2), 8000)
    run = cadenza("encode", "in.wav", "--model", model, "--bandwidth", 3, cwd=tmp_path)
    assert "1 codebooks x 50 frames" in run.stdout, run.stderr
    assert cadenza("decode", "codes.safetensors", "--model", model, cwd=tmp_path).returncode == 0
    refused(cadenza("encode", "in.wav", "--model", model, "--bandwidth", 1, cwd=tmp_path), "choose 2 to 4")
    refused(cadenza("encode", ".", "--model", model, "--bandwidth", 3, cwd=tmp_path), "--bandwidth")


def test_one_sample_is_audio(cadenza, model, tmp_path):
    soundfile.write(tmp_path / "in.wav", np.array([0.5]), 8000)
    assert cadenza("encode", "in.wav", "--model", model, cwd=tmp_path).returncode == 0
    assert cadenza("decode", "codes.safetensors", "--model", model, cwd=tmp_path).returncode == 0
    assert len(soundfile.read(tmp_path / "out.wav")[0]) == 1


def test_audio_that_is_none(cadenza, model, tmp_path):
    soundfile.write(tmp_path / "nan.wav", np.full(800, np.nan, dtype=np.float32), 8000, subtype="FLOAT")
    (tmp_path / "text.wav").write_text("not audio")
    soundfile.write(tmp_path / "empty.wav", np.zeros(0), 8000)
    before = sorted(tmp_path.iterdir())
    refused(cadenza("encode", "nan.wav", "--model", model, cwd=tmp_path), "nan.wav", "NaN")
    refused(cadenza("encode", "text.wav", "--model", model, cwd=tmp_path), "text.wav")
    refused(cadenza("encode", "empty.wav", "--model", model, cwd=tmp_path), "empty.wav")
    refused(cadenza("encode", "missing.wav", "--model", model, cwd=tmp_path), "missing.wav")
    assert sorted(tmp_path.iterdir()) == before


def test_codes_of_another_codec(cadenza, model, tmp_path):
    other = {"codec": json.dumps(EncodecSpec(sample_rate=16000).to_dict())}
    save_file({"ids": torch.zeros(1, 2, 3, dtype=torch.long)}, tmp_path / "codes.safetensors", other)
    refused(cadenza("decode", "codes.safetensors", "--model", model, cwd=tmp_path), "another codec")
    refused(cadenza("decode", model / "model.safetensors", "--model", model, cwd=tmp_path), "not a file of codes")


def test_a_store_is_not_drawn(cadenza, model, tmp_path):
    (tmp_path / "in").mkdir()
    refused(cadenza("encode", "in", "--plot", "a.png", "--model", model, cwd=tmp_path), "--plot", "one audio file")


def _minding() -> None:
    """Ctrl-C counts, though a shell that runs the tests in its background has it ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize("patience", [0.0, 1.5])
def test_ctrl_c_leaves_nothing_behind(model, tmp_path, patience):
    arguments = ["generate", "x", "--model", model, "--seconds", "2", "--variations", "200"]
    line = [sys.executable, "-m", "cadenza", *map(str, arguments)]
    process = subprocess.Popen(line, cwd=tmp_path, stderr=subprocess.PIPE, preexec_fn=_minding)  # noqa: PLW1509
    time.sleep(2.5 + patience)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=TIMEOUT)
    assert process.returncode in (130, -signal.SIGINT), errors  # a shell calls both 130
    assert b"cancelled" in errors and b"Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_behind(model, tmp_path):
    """A file size limit stands for the disk: the system refuses to write past it just as it does when full."""
    command = f"ulimit -f 4; exec '{sys.executable}' -m cadenza generate x --model '{model}' --seconds 2 --seed 0"
    process = subprocess.run(
        ["bash", "-c", command], cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT, check=False
    )
    refused(process, "out.wav")
    assert list(tmp_path.iterdir()) == []


HELP = """
import sys
from typer.testing import CliRunner
from cadenza.apps.cli.main import app
result = CliRunner().invoke(app, ["--help"])
assert "generate" in result.output, result.output
assert not {"torch", "pydantic", "numpy"} & set(sys.modules)
"""


def test_help_loads_no_model_code():
    subprocess.run([sys.executable, "-c", HELP], check=True)


def test_a_folder_becomes_a_store(cadenza, model, tmp_path):
    for i in range(3):
        soundfile.write(tmp_path / f"{i}.wav", 0.3 * np.sin(np.arange(4000) * 0.1 * (i + 1)), 8000)
    (tmp_path / "3.wav").write_text("not audio")
    run = cadenza("encode", ".", "--model", model, "--out", "store", cwd=tmp_path)
    assert run.returncode == 0 and "3.wav" in run.stdout, run.stderr
    assert len(EncodedDataset(tmp_path / "store", frames=100)) == 6  # windows of 100 frames in 250


TRAINING = """
name: tiny
system:
  codec: {type: encodec, sample_rate: 8000, strides: [4, 4], codebooks: 2, bins: 16, filters: 4, dimension: 8}
task: {type: codec, unquantized_steps: 2, kmeans_frames: 64, mel_windows: [64]}
steps: 100000
warmup: 1
batch: 2
seconds: 0.2
workers: 0
validation_items: 0
trackers: []
"""


def test_ctrl_c_in_training_leaves_a_checkpoint_to_go_on_from(cadenza, tmp_path):
    for i in range(4):
        soundfile.write(tmp_path / f"{i}.wav", 0.3 * np.sin(np.arange(8000) * 0.1 * (i + 1)), 8000)
    (tmp_path / "tiny.yaml").write_text(TRAINING)
    command = [sys.executable, "-m", "cadenza", "train", "tiny.yaml", "--data", ".", "--out", "run"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    log = tmp_path / "run" / "log.jsonl"
    started = time.monotonic()
    while not (log.exists() and '"step": 10' in log.read_text()):
        assert process.poll() is None and time.monotonic() - started < TIMEOUT, process.communicate()[0]
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=TIMEOUT)
    assert process.returncode == 130 and "Traceback" not in output and "stopped" in output, output
    done = int(sorted((tmp_path / "run" / "checkpoints").iterdir())[-1].name.removeprefix("step-"))
    run = cadenza("train", "tiny.yaml", "--data", ".", "--out", "run", "--set", f"steps={done + 2}", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "run" / "final" / "system.json").exists()


def test_mistakes_in_training_are_one_clear_message(cadenza, tmp_path):
    (tmp_path / "tiny.yaml").write_text(TRAINING.replace("unquantized_steps", "unquantized_step"))
    refused(cadenza("train", "tiny.yaml", "--data", ".", cwd=tmp_path), "unquantized_step", "Did you mean 'unquantized_steps'")
    (tmp_path / "tiny.yaml").write_text(TRAINING)
    refused(cadenza("train", "tiny.yaml", "--data", "nowhere", cwd=tmp_path), "nowhere")
    refused(cadenza("train", "none.yaml", "--data", ".", cwd=tmp_path), "none.yaml")
