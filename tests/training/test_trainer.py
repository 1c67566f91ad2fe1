"""From a folder of sound to a codec, from its codes to a generator: the parts that users hold."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from test_loop import lines

from cadenza.core.errors import SpecError, TrainingError
from cadenza.data.encoded_store import encode_dataset
from cadenza.data.sources import load_manifest
from cadenza.system.spec import SystemSpec
from cadenza.system.store import ModelCard
from cadenza.system.system import System
from cadenza.training.config import TrainingConfig, resolve_config
from cadenza.training.trainer import Trainer

CODEC = {"type": "encodec", "sample_rate": 8000, "strides": [4, 4, 4], "codebooks": 2, "bins": 16, "filters": 2, "dimension": 8}
SYSTEM = {
    "codec": CODEC,
    "conditioners": {
        "prompt": {"type": "text", "output_dim": 16, "vocabulary": 270, "max_tokens": 8, "dim": 8, "depth": 1, "heads": 1},
        "pitch": {"type": "number", "output_dim": 16, "min": 100, "max": 1000, "log": True, "bands": 4},
    },
    "fusion": {"cross": ["prompt", "pitch"]},
    "generator": {"type": "codec_lm", "width": 16, "depth": 1, "heads": 1, "max_frames": 80, "end_of_sequence": False},
}
QUICK: dict[str, Any] = {
    "batch": 4, "seconds": 0.5, "workers": 0, "lr": 5e-3, "warmup": 2, "log_every": 1, "validate_every": 10,
    "samples_every": 1000, "validation_items": 3, "sample_items": 1, "trackers": [], "ema": 0.8,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen tones of 0.6 s with sidecars."""
    folder = tmp_path_factory.mktemp("tones")
    for i in range(16):
        pitch = 150 * 2 ** (i / 8)
        t = np.arange(4800) / 8000
        soundfile.write(folder / f"tone{i}.wav", 0.3 * np.sin(2 * math.pi * pitch * t) * np.exp(-3 * t), 8000)
        (folder / f"tone{i}.json").write_text(json.dumps({"pitch": pitch, "prompt": ["high tone" if i > 7 else "low tone"]}))
    return folder


@pytest.fixture(scope="module")
def codec(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a short codec run; seeded, as it must not depend on the tests before it."""
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("codec")
    spec = SystemSpec.parse({"codec": CODEC})
    trainer = Trainer(spec, folder, out=out, cpu=True, steps=20, overrides=["task.unquantized_steps=10"], **QUICK)
    assert trainer.train().reason == "finished"
    return out


def test_a_codec_from_a_folder(folder: Path, codec: Path) -> None:
    curve = [record["log_mel_l1"] for record in lines(codec, "valid").values()]
    assert len(curve) == 2 and curve[-1] < curve[0]
    for name in ("best", "final"):
        assert System.load(codec / name).spec.codec.to_dict().items() >= CODEC.items()
    heard = codec / "samples/step-00000020"
    assert sorted(path.name for path in heard.iterdir()) == [
        f"{name}-1.{kind}" for name in ("original", "reconstruction") for kind in ("png", "wav")
    ]
    original, rate = soundfile.read(heard / "original-1.wav")
    sources = [soundfile.read(path)[0][: len(original)] for path in sorted(folder.glob("*.wav"))]
    assert rate == 8000 and min(float(abs(original - source).max()) for source in sources) < 1e-3


def test_a_generator_from_codes_that_goes_on_exactly(folder: Path, codec: Path, tmp_path: Path) -> None:
    trained = System.load(codec / "best")
    encode_dataset(load_manifest(folder)[0], trained.codec, tmp_path / "codes")
    with pytest.raises(TrainingError, match="contains encoded frames, but this task trains on audio"):
        Trainer(SystemSpec.parse({"codec": CODEC}), tmp_path / "codes", out=tmp_path / "codec", cpu=True, **QUICK)
    config = {"system": SYSTEM, "task": {"type": "generator"}, "init_from": str(codec / "best"), **QUICK}
    torch.manual_seed(0)
    whole = Trainer(config, tmp_path / "codes", out=tmp_path / "whole", cpu=True, steps=40)
    whole.train()
    torch.manual_seed(0)
    begun = Trainer(config, tmp_path / "codes", out=tmp_path / "parts", cpu=True, steps=40, minutes=1e-6)
    assert begun.train().reason == "out of time"
    Trainer(config, tmp_path / "codes", out=tmp_path / "parts", cpu=True, steps=40, workers=1).train()
    assert lines(tmp_path / "parts") == lines(tmp_path / "whole")
    assert lines(tmp_path / "parts", "valid") == lines(tmp_path / "whole", "valid")

    losses = [record["generator/loss"] for record in lines(tmp_path / "whole").values()]
    assert abs(losses[0] - math.log(16)) < 0.5 and losses[-1] < losses[0] - 0.3
    assert lines(tmp_path / "whole", "valid")[40]["unconditioned"] > 0
    system = System.load(tmp_path / "whole/best")
    for name, x in trained.codec.state_dict().items():
        assert torch.equal(system.codec.state_dict()[name], x)
    assert system.conditioners["prompt"].prepare(["low tone"]).tensors["ids"].shape[1] < len("low tone")  # type: ignore[operator]
    audio = system.generate({"prompt": "high tone", "pitch": 400}, seconds=0.3)
    assert audio.wave.shape[-1] == 2400
    assert (tmp_path / "whole/samples/step-00000040/generated-1.wav").exists()


def test_fine_tuning_starts_from_the_system_and_leaves_it_alone(folder: Path, codec: Path, tmp_path: Path) -> None:
    spec = SystemSpec.parse(SYSTEM)
    torch.manual_seed(0)
    system = System(spec)
    system.conditioners["prompt"].prepare_training(["low", "lower"])  # type: ignore[operator]
    system.requires_grad_(False)
    before = {name: x.clone() for name, x in system.state_dict().items()}
    trainer = Trainer(system, folder, out=tmp_path, cpu=True, steps=2, **QUICK)
    trainer.train()
    assert all(torch.equal(x, before[name]) for name, x in system.state_dict().items())
    after = trainer.system.state_dict()
    assert torch.equal(after["conditioners.prompt.merges"], before["conditioners.prompt.merges"])
    moved = {name.split(".")[0] for name, x in after.items() if not torch.equal(x, before[name])}
    assert moved == {"generator", "conditioners"}
    same = max(float((x - before[name]).abs().max()) for name, x in after.items() if x.is_floating_point())
    assert same < 0.05


def test_any_dataset_and_what_is_held_out(codec: Path, tmp_path: Path) -> None:
    class Mine(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 9

        def __getitem__(self, index: int) -> Any:
            return torch.randn(1, 4000, generator=torch.Generator().manual_seed(index)) * 0.1, "noise"

    trainer = Trainer(SystemSpec.parse({"codec": CODEC}), Mine(), out=tmp_path, cpu=True, data_rate=8000, steps=1, **QUICK)
    assert trainer.train().step == 1
    assert trainer._holdout is not None and (len(trainer._train_set), len(trainer._holdout)) == (7, 2)


def test_what_would_stay_noise_is_refused(folder: Path, codec: Path, tmp_path: Path) -> None:
    spec = SystemSpec.parse(SYSTEM)
    with pytest.raises(TrainingError, match="'codec' would stay untrained.*Set init_from to a saved system"):
        Trainer(spec, folder, out=tmp_path, cpu=True, **QUICK)
    with pytest.raises(TrainingError, match="'conditioners.prompt' would stay untrained"):
        Trainer(spec, folder, out=tmp_path, cpu=True, task={"type": "codec"}, **QUICK)
    other = SystemSpec.parse({**SYSTEM, "codec": {**CODEC, "bins": 8}})
    with pytest.raises(TrainingError, match="no part of .* has the same spec"):
        Trainer(other, folder, out=tmp_path, cpu=True, init_from=str(codec / "best"), **QUICK)
    with pytest.raises(TrainingError, match="only a codec; add a generator"):
        Trainer(SystemSpec.parse({"codec": CODEC}), folder, out=tmp_path, cpu=True, task={"type": "generator"}, **QUICK)


def test_the_licence_of_the_start_is_kept(folder: Path, codec: Path, tmp_path: Path) -> None:
    start = System.load(codec / "best")
    start.card = ModelCard(name="theirs", license="CC-BY-NC-4.0", notice="Not for sale.")
    start.save(tmp_path / "start")
    trainer = Trainer(SystemSpec.parse(SYSTEM), folder, out=tmp_path, cpu=True, init_from=str(tmp_path / "start"), **QUICK)
    assert (trainer.system.card.license, trainer.system.card.notice) == ("CC-BY-NC-4.0", "Not for sale.")
    assert trainer.system.card.name == trainer.config.name
    held = Trainer(
        SystemSpec.parse(SYSTEM), folder, out=tmp_path, cpu=True, init_from=start, **QUICK
    ).system  # one that is loaded
    assert held.card.license == "CC-BY-NC-4.0"
    assert all(torch.equal(x, start.codec.state_dict()[name]) for name, x in held.codec.state_dict().items())


def test_configs_are_read_and_overridden(tmp_path: Path) -> None:
    (tmp_path / "system.yaml").write_text(json.dumps({"codec": CODEC}))
    (tmp_path / "run.yaml").write_text("system: system.yaml\ntask: {type: codec, mel: 1.5}\nsteps: 7\nseconds: 0.5\n")
    config = TrainingConfig.load(tmp_path / "run.yaml")
    assert config.system == SystemSpec.parse({"codec": CODEC}) and config.steps == 7
    assert TrainingConfig.parse(config.to_dict()) == config
    changed = resolve_config(
        tmp_path / "run.yaml", ["lr=1e-4", "task.l1=0.5", "groups.discriminator.lr=2e-4", "trackers=[]"], {"steps": 9}
    )
    assert (changed.lr, changed.steps, changed.trackers) == (1e-4, 9, ())
    assert changed.task.to_dict()["mel"] == 1.5 and changed.task.to_dict()["l1"] == 0.5
    assert changed.optimizer_for("discriminator").lr == 2e-4 and changed.optimizer_for("codec").lr == 1e-4
    with pytest.raises(SpecError, match="'steps' is not an override"):
        resolve_config(config, ["steps"], {})
    with pytest.raises(SpecError, match="step: unknown field"):
        resolve_config(config, ["step=3"], {})
    with pytest.raises(SpecError, match="int is not a training config"):
        resolve_config(3, [], {})
