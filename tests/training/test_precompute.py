"""Features made before training: what is there is not made again, what cannot be is named."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from tiny import TINY
from tunes import save, tune

from cadenza.apps.api import load
from cadenza.apps.cli.main import main
from cadenza.conditioners.t5 import T5Spec
from cadenza.core.errors import DataError
from cadenza.system.feature_cache import FeatureCache
from cadenza.system.spec import SystemSpec
from cadenza.system.system import System
from cadenza.training.precompute import precompute_features
from cadenza.training.trainer import Trainer


def system(**prompt: Any) -> System:
    """A tiny one whose prompts go through a frozen T5."""
    t5 = T5Spec.example()[0].model_copy(update={"output_dim": 16, "word_dropout": 0.0}).to_dict()
    spec = {**TINY, "conditioners": {**TINY["conditioners"], "prompt": {**t5, **prompt}}}
    torch.manual_seed(0)
    return System(SystemSpec.parse(spec)).eval()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Four clips: three prompts, of which one clip has two, and one clip without any."""
    said: list[dict[str, Any]] = [
        {"prompt": "slow piano"},
        {"prompt": ["drums", "fast drums"]},
        {"prompt": "drums"},
        {"tempo": 90},
    ]
    for i, metadata in enumerate(said):
        save(tmp_path / "data" / f"{i}.wav", tune(i), None)
        (tmp_path / "data" / f"{i}.json").write_text(json.dumps(metadata))
    return tmp_path / "data"


def test_every_value_of_the_data_is_made_once(data: Path, tmp_path: Path) -> None:
    cache, heard = FeatureCache(tmp_path / "cache"), list[tuple[int, int]]()
    made = precompute_features(system(), data, cache, batch=3, progress=lambda done, total: heard.append((done, total)))
    assert len(cache) == 4 and (made.made, made.broken) == (4, {}), "three texts and what stands for none"
    assert heard == [(3, 4), (4, 4)] and made.parts == ["prompt"]
    again = precompute_features(system(), data, FeatureCache(tmp_path / "cache"))
    assert (again.made, again.found) == (0, 5)
    (data / "0.json").write_text('{"prompt": 3}')
    (data / "3.json").write_text('{"prompt": "flute"}')
    more = precompute_features(system(), data, cache)
    assert more.made == 1 and list(more.broken) == ["0"] and "a text is needed, got 3" in more.broken["0"]
    with pytest.raises(DataError, match="has a frozen encoder"):
        precompute_features(system(train=True), data, cache)


def test_the_command_and_what_uses_it(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["cadenza", *map(str, words)])
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code
        return capsys.readouterr().out

    made, place = system(), tmp_path / "cache"
    made.save(tmp_path / "model")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"system": made.spec.to_dict(), "task": {"type": "generator"}}))
    config = tmp_path / "config.yaml"
    assert "4 values encoded, 0 already cached, for prompt" in run("data", "cache", data, "--model", config, "--folder", place)
    monkeypatch.setenv("CADENZA_CACHE", str(place))
    assert "0 values encoded, 5 already cached" in run("data", "cache", data, "--model", tmp_path / "model")
    there = load(tmp_path / "model", device="cpu")
    assert there.cache is not None
    with_it = there.generate_frames([{"prompt": "drums"}, {"prompt": "slow piano", "tempo": 90}, {}], seconds=0.02).ids
    assert there.cache.made == 0 and there.cache.found >= 3
    there.cache = None
    assert torch.equal(
        there.generate_frames([{"prompt": "drums"}, {"prompt": "slow piano", "tempo": 90}, {}], seconds=0.02).ids, with_it
    )
    monkeypatch.setenv("CADENZA_CACHE", "off")
    assert load(tmp_path / "model", device="cpu").cache is None


def test_training_takes_what_was_made(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CADENZA_CACHE", str(tmp_path / "cache"))
    made = system()
    precompute_features(made, data, FeatureCache())
    fields: dict[str, Any] = {"steps": 1, "batch": 4, "seconds": 0.1, "workers": 0, "validation_items": 0, "samples_every": 9}
    trainer = Trainer(made, data, out=tmp_path / "run", cpu=True, cache=True, trackers=[], **fields)
    trainer.train()
    assert trainer.system.cache is not None
    assert trainer.system.cache.made == 0 and trainer.system.cache.found >= 4
    monkeypatch.setenv("CADENZA_CACHE", "off")
    assert Trainer(made, data, out=tmp_path / "other", cpu=True, cache=True, **fields).system.cache is None
