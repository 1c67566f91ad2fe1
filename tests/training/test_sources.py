"""Training from everything that the data layer reads, as a user names it."""

import gzip
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cadenza.core.errors import TrainingError
from cadenza.data.manifest import Manifest, scan_folder
from cadenza.data.music_metadata import PromptMixer
from cadenza.data.webdataset import write_shards
from cadenza.dsp import audio_io
from cadenza.dsp.audio import load_audio
from cadenza.system.spec import SystemSpec
from cadenza.system.system import System
from cadenza.training.trainer import Trainer

RATE = 8000
SYSTEM = {
    "codec": {"type": "encodec", "sample_rate": RATE, "strides": [4, 4, 4], "codebooks": 2, "bins": 16, "filters": 2},
    "conditioners": {"prompt": {"type": "text", "output_dim": 16, "vocabulary": 270, "dim": 8, "depth": 1, "heads": 1}},
    "fusion": {"cross": ["prompt"]},
    "generator": {"type": "codec_lm", "width": 16, "depth": 1, "heads": 1, "max_frames": 80, "end_of_sequence": False},
}
QUICK: dict[str, Any] = {
    "batch": 2, "seconds": 0.25, "workers": 0, "steps": 2, "log_every": 1, "validate_every": 2, "samples_every": 100,
    "validation_items": 2, "sample_items": 0, "trackers": [],
}  # fmt: skip


@pytest.fixture(scope="module")
def system() -> System:
    torch.manual_seed(0)
    return System(SystemSpec.parse(SYSTEM))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "audio").mkdir()
    for i in range(8):
        wave = 0.3 * np.sin(np.arange(RATE // 2) * (0.1 + i / 50))
        audio_io.write_samples(tmp_path / f"audio/{i}.wav", wave.astype(np.float32)[:, None], RATE)
        (tmp_path / f"audio/{i}.json").write_text(json.dumps({"description": f"tone {i}", "bpm": 100 + i}))
    return tmp_path / "audio"


def audiocraft(folder: Path, system: System) -> Path:
    lines = [json.dumps({"path": f"{i}.wav", "duration": 0.5, "sample_rate": RATE, "weight": 1 + i % 2}) for i in range(8)]
    (folder / "data.jsonl.gz").write_bytes(gzip.compress("\n".join(lines).encode()))
    return folder


def shards(folder: Path, system: System) -> Path:
    write_shards(scan_folder(folder)[0], folder.parent / "shards", clips=3)
    shutil.rmtree(folder)
    return folder.parent / "shards"


def dataset_config(folder: Path, system: System) -> Path:
    path = folder.parent / "dataset.json"
    path.write_text(json.dumps({"dataset_type": "audio_dir", "datasets": [{"id": "x", "path": str(folder)}]}))
    return path


def manifest_and_function(folder: Path, system: System) -> Manifest:
    return scan_folder(folder)[0].with_transform(PromptMixer(merge=1))


def arrays(folder: Path, system: System) -> Path:
    for path in sorted(folder.glob("*.wav")):
        np.save(folder.parent / f"{path.stem}.npy", system.codec.encode(load_audio(path)).ids[0].numpy())  # type: ignore[union-attr]
        (folder.parent / f"{path.stem}.json").write_text(json.dumps({"prompt": path.stem}))
    shutil.rmtree(folder)
    return folder.parent


@pytest.mark.parametrize("make", [audiocraft, shards, dataset_config, manifest_and_function, arrays])
def test_two_steps_from(make: Any, folder: Path, system: System, tmp_path: Path) -> None:
    data = make(folder, system)
    outcome = Trainer(system, data, out=tmp_path.parent / f"{tmp_path.name}-run", cpu=True, **QUICK).train()
    assert outcome.reason == "finished"


def test_a_config_mixes_music_metadata(folder: Path, system: System, tmp_path: Path) -> None:
    data, run = audiocraft(folder, system), tmp_path / "run"
    mixed = Trainer(system, data, out=run, cpu=True, **QUICK, music={"merge": 1, "keep_field": 1, "drop_description": 0})
    prompts = [item["prompt"] for item in (mixed._train_set[i] for i in range(len(mixed._train_set)))]
    assert all(text == f"tone {text[5]}. bpm: {100 + int(text[5])}" for text in prompts)
    plain = Trainer(system, data, out=run, cpu=True, **QUICK)
    assert plain._train_set[0]["prompt"].startswith("tone ") and "bpm" not in plain._train_set[0]["prompt"]


def test_a_codec_needs_audio(folder: Path, system: System, tmp_path: Path) -> None:
    data = arrays(folder, system)
    with pytest.raises(TrainingError, match="encoded frames, but this task trains on audio"):
        Trainer(SystemSpec.parse({"codec": SYSTEM["codec"]}), data, out=tmp_path / "run", cpu=True, **QUICK)
