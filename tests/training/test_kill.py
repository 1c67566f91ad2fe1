"""A run that is killed, or asked to stop, goes on as if nothing had happened; two processes are one."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_loop import lines
from training_toys import train

TOYS = Path(__file__).with_name("training_toys.py")
RUN = {"workers": 2, "accumulation": 3, "ema": 0.9, "warmup": 20, "checkpoint_every": 7, "validate_every": 5}


def start(folder: Path, steps: int, seed: int = 0, **environment: str) -> subprocess.Popen[str]:
    """Trains the toys in a process of its own, whose global chance starts from `seed`."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE")}
    return subprocess.Popen(
        [sys.executable, str(TOYS), str(folder), json.dumps({**RUN, "steps": steps})],
        env={**inherited, "OMP_NUM_THREADS": "1", "TOY_SEED": str(seed), **environment},
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def here(folder: Path, steps: int, seed: int = 0) -> None:
    """The same in this process, without workers: neither may make a difference."""
    torch.manual_seed(seed)
    train(folder, **{**RUN, "steps": steps, "workers": 0})


def finish(process: subprocess.Popen[str]) -> str:
    _, said = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said


def last_step(folder: Path) -> int:
    try:
        whole = (folder / "log.jsonl").read_text().rpartition("\n")[0]
    except FileNotFoundError:
        return 0
    return json.loads(whole.splitlines()[-1])["step"] if whole else 0


def wait_for(process: subprocess.Popen[str], folder: Path, step: int) -> None:
    deadline = time.monotonic() + 200
    while process.poll() is None and last_step(folder) < step and time.monotonic() < deadline:
        time.sleep(0.002)


def same(killed: Path, whole: Path) -> None:
    for kind in ("train", "valid"):
        assert lines(killed, kind) == lines(whole, kind)
    for name in ("final", "best"):
        ours, theirs = (load_file(folder / name / "model.safetensors") for folder in (killed, whole))
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs) and ours.keys() == theirs.keys()


@pytest.mark.parametrize(("kills", "steps"), [(3, 60), pytest.param(20, 300, marks=pytest.mark.slow)])
def test_killed_at_random_steps_the_losses_continue(tmp_path: Path, kills: int, steps: int) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    here(whole, steps)
    chance = random.Random(kills)
    heard: dict[int, dict[str, float]] = {}
    for kill in range(kills):
        process = start(killed, steps, seed=kill)  # chance that differs in each process, as it does in life
        wait_for(process, killed, last_step(killed) + chance.randint(1, 2 * steps // kills) if kill else chance.randint(1, 9))
        time.sleep(chance.random() * 0.02)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        whole_lines = (killed / "log.jsonl").read_text().rpartition("\n")[0].splitlines()
        for record in map(json.loads, whole_lines):
            if record["kind"] == "train":
                found = {name: value for name, value in record.items() if name not in ("time", "kind")}
                assert heard.setdefault(record["step"], found) == found, "a step went otherwise the second time"
    here(killed, steps, seed=99)
    same(killed, whole)
    assert not list((killed / "checkpoints").glob(".*"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_it_finishes_its_step_and_says_so(
    tmp_path: Path, number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    """A terminal and a cluster ask the workers, too, which must not mind."""
    here(tmp_path / "whole", 30)
    stopped = tmp_path / "stopped"
    process = start(stopped, 30)
    wait_for(process, stopped, 10)
    os.killpg(process.pid, number)
    said = finish(process)
    assert "Traceback" not in said and "to continue" in said
    step = int(said.split(f"stopped by {number.name} at step ")[1].split(" of 30")[0])
    assert (stopped / f"checkpoints/step-{step:08d}").is_dir()
    assert step == last_step(stopped) >= 10
    here(stopped, 30, seed=5)
    assert f"continuing from step {step}" in capfd.readouterr().err
    same(stopped, tmp_path / "whole")


def test_two_processes_are_one_with_a_double_batch(tmp_path: Path) -> None:
    quiet = {"task": {"type": "toy", "noisy": False}, "steps": 8, "workers": 0}
    port = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(29500 + os.getpid() % 2000)}
    common = {**os.environ, "OMP_NUM_THREADS": "1", **port}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(TOYS), str(tmp_path / "two"), json.dumps({**RUN, **quiet, "batch": 3})],
            env={**common, "WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"},
            stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    train(tmp_path / "one", **{**RUN, **quiet, "batch": 6})
    for process in ranks:
        finish(process)
    one, two = lines(tmp_path / "one"), lines(tmp_path / "two")
    assert sorted(one) == sorted(two) == list(range(1, 9))
    for step, record in one.items():
        assert two[step] == pytest.approx(record, rel=1e-4, abs=1e-5)
    weights = [load_file(tmp_path / name / "final/model.safetensors") for name in ("one", "two")]
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-4, atol=1e-5)
    assert json.loads((tmp_path / "two/checkpoints/step-00000008/state.json").read_text())["processes"] == 2
