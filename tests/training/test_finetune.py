"""What fine-tuning sets by itself, and what it says of the data."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import tiny_system

from cadenza.core.errors import TrainingError
from cadenza.dsp.audio import Audio
from cadenza.system.store import ModelCard
from cadenza.system.system import System
from cadenza.training.config import TrainingConfig
from cadenza.training.finetune import finetune, finetune_config

FOLDER = Path(__file__).parents[2] / "configs" / "training"


def published(name: str) -> System:
    """A published model without weights."""
    with torch.device("meta"):
        return System(TrainingConfig.load(FOLDER / f"{name}.yaml").system, ModelCard(name=f"facebook/{name}: a test"))


class Noise(torch.utils.data.Dataset[Any]):
    """Half a second each, with what is known of it."""

    def __init__(self, clips: int, **metadata: Any) -> None:
        self.clips, self.metadata = clips, metadata

    def __len__(self) -> int:
        return self.clips

    def __getitem__(self, index: int) -> Any:
        wave = 0.1 * torch.randn(1, 1, 4000, generator=torch.Generator().manual_seed(index))
        return Audio(wave, 8000), self.metadata


def test_the_settings_follow_from_the_model() -> None:
    small = finetune_config(published("musicgen_small_32khz"))
    assert (small.seconds, small.lr, small.warmup, small.steps, small.ema) == (30, 1e-4, 100, 1000, 0.99)
    assert small.task.to_dict() == {"type": "generator", "cfg_dropout": 0.1, "attribute_dropout": 0.0}
    assert small.name == "musicgen_small_32khz-a-test-finetuned"
    large = finetune_config(published("musicgen_large_32khz"), steps=20, minutes=5)
    assert (large.lr, large.warmup, large.validate_every, large.minutes) == (3e-5, 2, 2, 5)
    several = finetune_config(tiny_system(), overrides=["task.cfg_dropout=0.2", "lr=1e-5", "batch=1"])
    assert several.task.to_dict() == {"type": "generator", "cfg_dropout": 0.2, "attribute_dropout": 0.1}
    assert (several.lr, several.batch) == (1e-5, 1)


def test_a_codec_or_another_model_is_refused() -> None:
    with pytest.raises(TrainingError, match=r"is a codec.*task\.unquantized_steps=0"):
        finetune_config(published("encodec_32khz"))
    with pytest.raises(TrainingError, match="not its system"):
        finetune_config(tiny_system(), overrides=["system.defaults.seconds=1"])


def tuned(tmp_path: Path, data: Noise, *overrides: str) -> Any:
    system = tiny_system()
    quick = ["workers=0", "trackers=[]", "sample_items=0", "seconds=0.1", "batch=2"]
    return finetune(system, data, finetune_config(system, steps=2, overrides=[*quick, *overrides]), out=tmp_path, cpu=True)


def test_too_few_clips_are_not_held_out(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # every control has values
        done = tuned(tmp_path, Noise(3, prompt="noise", tempo=90, key="A minor"))
    assert (done.before, done.after, done.folder) == (None, None, tmp_path / "final")
    assert done.outcome.reason == "finished"


def test_what_no_clip_says_is_named(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match=r"no clip has a value for prompt, key: .*\"prompt\": .* or only the text"):
        done = tuned(tmp_path, Noise(8, tempo=90))
    assert done.before == pytest.approx(done.after, abs=0.1) and done.folder == tmp_path / "best"
    assert System.load(done.folder).card.name == "tiny-finetuned"
