"""What a run writes down: lines, trackers, samples."""

import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import soundfile
import torch
from matplotlib.image import imread
from test_loop import lines
from training_toys import train

from cadenza.core.errors import TrainingError
from cadenza.dsp.audio import Audio
from cadenza.training import loggers
from cadenza.training.loggers import ProgressPrinter, RunLogger


def test_reopened_at_a_step_it_forgets_what_came_after(tmp_path: Path) -> None:
    log = RunLogger(tmp_path, 0)
    for step in (1, 2, 3, 4):
        log.log_scalars("train", step, {"a/loss": step / 3})
        assert json.loads((tmp_path / "log.jsonl").read_text().splitlines()[-1])["a/loss"] == step / 3  # at once, and exact
    log.log_scalars("valid", 2, {"loss": 1.0})
    log.close()
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 2, "a/lo')
    log = RunLogger(tmp_path, 2)
    log.log_scalars("train", 3, {"a/loss": 7.0})
    log.close()
    assert [record["a/loss"] for record in lines(tmp_path).values()] == [1 / 3, 2 / 3, 7.0]
    assert list(lines(tmp_path, "valid")) == [2]


def test_a_log_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="cannot be written"):
        RunLogger(tmp_path / "none", 0)
    if Path("/dev/full").exists():
        (tmp_path / "log.jsonl").symlink_to("/dev/full")
        log = RunLogger.__new__(RunLogger)
        log.path, log.trackers = tmp_path / "log.jsonl", ()
        log._file = log.path.open("a")
        with pytest.raises(TrainingError, match="No space left on device; free space, then start again"):
            log.log_scalars("train", 1, {"a": 1.0})


def test_tensorboard_has_scalars_sound_and_pictures_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tmp_path, steps=6, minutes=1e-6, trackers=["tensorboard"])
    train(tmp_path, steps=6, trackers=["tensorboard"], samples=True, samples_every=3)
    events = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"scalars": 0, "audio": 0, "images": 0}).Reload()
    found = {event.step: event.value for event in events.Scalars("train/discriminator/real")}
    assert found == pytest.approx({step: record["discriminator/real"] for step, record in lines(tmp_path).items()}, rel=1e-6)
    assert [event.step for event in events.Scalars("valid/loss")] == [6]
    assert [event.step for event in events.Audio("toy-1")] == [event.step for event in events.Images("toy-1")] == [3, 6]


def test_wandb_is_one_run_however_often_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[dict[str, Any]] = []
    runs: list[dict[str, Any]] = []

    def init(**options: Any) -> Any:
        runs.append(options)
        return SimpleNamespace(log=heard.append, define_metric=lambda *_, **__: None, finish=lambda: None)

    fake = ModuleType("wandb")
    vars(fake).update(init=init, util=SimpleNamespace(generate_id=lambda: f"id{len(runs)}"), Audio=lambda *a, **k: "audio")
    vars(fake)["Image"] = lambda path: path
    monkeypatch.setitem(sys.modules, "wandb", fake)
    train(tmp_path, steps=4, minutes=1e-6, trackers=["wandb"])
    train(tmp_path, steps=4, trackers=["wandb"], samples=True, samples_every=4)
    assert [run["id"] for run in runs] == ["id0", "id0"] and all(run["resume"] == "allow" for run in runs)
    assert [record["step"] for record in heard if "train/codec/loss" in record] == [1, 2, 3, 4]
    assert any("toy-1/audio" in record for record in heard)
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(TrainingError, match=r'pip install -e "\.\[tracking\]"'):
        train(tmp_path / "other", trackers=["wandb"])


def test_samples_are_the_sound_and_a_picture_of_it(tmp_path: Path) -> None:
    t = torch.arange(8000) / 8000
    tone = torch.sin(2 * torch.pi * 1000 * t)[None, None] * 0.5
    pair = Audio(torch.cat([tone, tone / 2]), 8000, torch.tensor([8000, 4000]))
    logger = loggers.RunLogger(tmp_path, 0)
    logger.log_samples(1, tmp_path / "deep/er", "tone", pair)
    assert {path.stem for path in (tmp_path / "deep/er").iterdir()} == {"tone-1", "tone-2"}
    wave, rate = soundfile.read(tmp_path / "deep/er/tone-2.wav")
    assert rate == 8000 and len(wave) == 4000 and abs(wave - tone[0, 0, :4000].numpy() / 2).max() < 1e-4
    long, short = (imread(tmp_path / f"deep/er/{name}.png") for name in ("tone-1", "tone-2"))
    assert long.shape == short.shape and not (long == short).all()  # one lasts twice as long; dsp tests what is drawn
    logger.log_samples(1, tmp_path, "silence", Audio(torch.zeros(1, 1, 10), 8000))
    logger.close()


def test_the_line_for_the_eye(capfd: pytest.CaptureFixture[str]) -> None:
    ticker = ProgressPrinter(10, every=0.0)
    ticker._start -= 2.0
    ticker.update(1, 8.0, {"codec/loss": 1.23456, "codec/l1": 2.0})
    said = capfd.readouterr().err
    assert said.startswith("step 1/10  codec/loss 1.235  0.50 steps/s  4.0 audio-s/s  ETA 0:00:18")
    ProgressPrinter(10, quiet=True, every=0.0).update(10, 0.0, {})
    assert capfd.readouterr().err == ""


def test_importing_the_trainer_loads_no_accelerate_and_no_tracker() -> None:
    code = (
        "import sys, cadenza.training.trainer; "
        "print([m for m in ('accelerate', 'tensorboard', 'wandb', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
