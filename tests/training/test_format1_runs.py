"""Runs, stores and configs of release 0.1, in format 1, go on as they did then; made by tests/golden/make_format1.py."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import format1
import pytest
import torch
import yaml
from format1 import PLACE
from safetensors.torch import load_file

from cadenza import System, Trainer
from cadenza.core.errors import DataError
from cadenza.training.config import TrainingConfig

HERE = format1.machine() == json.loads((PLACE / "made.json").read_text())["machine"]
FIELDS = {  # the place of a field in format 1 -> its place now
    "start": "init_from",
    "broken": "on_broken_file",
    "clip": "grad_clip",
    "final": "final_lr_ratio",
    "groups.critic.clip": "groups.discriminator.grad_clip",
    "groups.critic.lr": "groups.discriminator.lr",
    "task.warm_steps": "task.unquantized_steps",
    "task.pool_frames": "task.kmeans_frames",
    "task.level_dropout": "task.quantizer_dropout",
    "task.time": "task.l1",
    "task.mel": "task.mel",
    "task.stft": "task.stft",
    "task.adversarial": "task.adversarial",
    "task.feature": "task.feature",
    "task.commitment": "task.commitment",
    "task.mel_windows": "task.mel_windows",
    "task.stft_resolutions": "task.stft_resolutions",
    "task.critic": "task.gan_loss",
    "task.critic_start": "task.discriminator_start_step",
    "task.critic_filters": "task.discriminator_filters",
    "task.guidance_dropout": "task.cfg_dropout",
    "task.attribute_dropout": "task.attribute_dropout",
    "system.reads": "system.prompt_patterns",
    "system.generator.mlp": "system.generator.mlp_ratio",
    "system.generator.cross_positions": "system.generator.cross_attention_pos_emb_scale",
    "system.conditioners.prompt.empty": "system.conditioners.prompt.empty_text",
    "system.conditioners.prompt.absent": "system.conditioners.prompt.null_embedding",
    "system.conditioners.melody.hide_octave": "system.conditioners.melody.octave_dropout",
    "system.conditioners.melody.frames": "system.conditioners.melody.max_frames",
    "system.defaults.sampling.may_end": "system.defaults.sampling.allow_eos",
}
VALUES: dict[tuple[str, Any], Any] = {  # (place in format 1, value in format 1) -> value now
    ("task.critic", "mse"): "mse",
    ("broken", "raise"): "raise",
    ("system.conditioners.prompt.empty", "read"): "encode",
}
TERMS = {"codec/": "codec/", "critic/": "discriminator/", "generator/": "generator/"}  # how names in a log begin, then -> now
LOGGED = {"codec/time": "codec/l1", "codec/share_time": "codec/share_l1"}  # names in a log, then -> now
RUNS = {"codec": (5, "clips"), "generator": (3, "store")}  # the step of a run's checkpoint, and what it learns from


def at(data: Any, place: str) -> Any:
    for key in place.split("."):
        data = data[key]
    return data


def log(path: Path) -> dict[tuple[str, int], dict[str, float]]:
    """What each step of a run logged, by kind and step."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert len({(row["kind"], row["step"]) for row in rows}) == len(rows)
    return {(row.pop("kind"), row.pop("step")): {k: v for k, v in row.items() if k != "time"} for row in rows}


def now(name: str) -> str:
    """What a value of a log is called now."""
    begin = next((old for old in TERMS if name.startswith(old)), "")
    return LOGGED.get(name, TERMS.get(begin, "") + name.removeprefix(begin))


def command(*arguments: object, cwd: Path) -> None:
    """`cadenza` on one thread, as the goldens were made."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    line = [sys.executable, "-m", "cadenza", *map(str, arguments)]
    done = subprocess.run(line, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A copy of the goldens: configs name files next to them, and runs write into their folders."""
    return Path(shutil.copytree(PLACE, tmp_path / "format1"))


@pytest.mark.parametrize("name", RUNS)
def test_a_run_goes_on_as_it_did(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights, averages, optimisers, the task's memory and chance: every loss, bit for bit, and the weights at the end."""
    monkeypatch.chdir(place)
    step, data = RUNS[name]
    outcome = Trainer(f"{name}.yaml", data, out=f"{name}_run", cpu=True).train()
    assert outcome.reason == "finished"
    found, expected = log(place / f"{name}_run" / "log.jsonl"), log(place / f"{name}_done" / "log.jsonl")
    assert found.keys() == expected.keys() and ("train", step + 2) in expected
    rest = dict[tuple[str, int], Mapping[str, float]](expected) if HERE else {("train", step + 1): expected["train", step + 1]}
    for key, values in rest.items():  # elsewhere roundings add up, and codes flip
        wanted = {now(term): value for term, value in values.items()} if key[1] > step else values  # those lines are old
        assert found[key] == (wanted if HERE else pytest.approx(wanted, rel=1e-3, abs=1e-5)), key
    weights = [System.load(place / folder / "final").state_dict() for folder in (f"{name}_run", f"{name}_done")]
    assert weights[0].keys() == weights[1].keys()
    if HERE:
        assert [key for key, x in weights[1].items() if not torch.equal(weights[0][key], x)] == []


def test_the_command_goes_on_with_a_run(place: Path) -> None:
    command("train", "generator.yaml", "--data", "store", "--out", "generator_run", cwd=place)
    assert log(place / "generator_run" / "log.jsonl").keys() == log(place / "generator_done" / "log.jsonl").keys()
    weights = [System.load(place / folder / "final").state_dict().values() for folder in ("generator_run", "generator_done")]
    assert not HERE or torch.cuda.is_available() or format1.digest(weights[0]) == format1.digest(weights[1])


def test_a_store_belongs_to_its_codec_and_to_no_other(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(place)
    codec = System.load("codec_done/final")
    with torch.no_grad():
        next(codec.codec.parameters()).add_(0.5)
    codec.save("other")
    Trainer("generator.yaml", "store", out="new", cpu=True)
    with pytest.raises(DataError, match=r"encoded by another codec.*weights differ"):
        Trainer("generator.yaml", "store", out="new", cpu=True, start="other")


def test_encoding_again_gives_the_same_and_leaves_a_store_as_it_is(place: Path) -> None:
    command("encode", "clips", "--model", "codec_done/final", "--out", "fresh", cwd=place)
    file = "shard-00000.safetensors"
    fresh, stored = load_file(place / "fresh" / file), load_file(PLACE / "store" / file)
    assert fresh.keys() == stored.keys() and all(torch.equal(fresh[key], x) for key, x in stored.items())
    before = (place / "store" / file).stat().st_mtime_ns
    command("encode", "clips", "--model", "codec_done/final", "--out", "store", cwd=place)
    assert (place / "store" / file).stat().st_mtime_ns == before
    assert all(torch.equal(load_file(place / "store" / file)[key], x) for key, x in stored.items())


def test_a_file_of_codes_is_that_of_its_codec(place: Path) -> None:
    system = System.load(place / "generator_done" / "final")
    path = place / "codes.safetensors"
    start = system.generate_frames(None, continue_from=path, seconds=0.9, seed=1).ids
    known = load_file(path)["ids"]
    assert torch.equal(start[..., : known.shape[-1]], known)
    command("decode", "codes.safetensors", "--model", "codec_done/final", "--out", "sound.wav", cwd=place)
    assert (place / "sound.wav").stat().st_size > 44


@pytest.mark.parametrize("name", ["codec", "generator"])
def test_every_field_of_a_config_arrives(name: str) -> None:
    path = PLACE / f"{name}.yaml"
    written, found = yaml.safe_load(path.read_text()), TrainingConfig.load(path).to_dict()
    there = [place for place in FIELDS if _there(written, place)]
    assert len(there) > 10
    for old in there:
        value = at(written, old)
        wanted = VALUES.get((old, value), value) if isinstance(value, str) else value
        assert at(found, FIELDS[old]) == wanted, old


def test_the_configs_hold_every_field() -> None:
    written = [yaml.safe_load((PLACE / f"{name}.yaml").read_text()) for name in ("codec", "generator")]
    for place in FIELDS:
        assert any(_there(data, place) for data in written), place


def _there(data: Any, place: str) -> bool:
    try:
        at(data, place)
    except KeyError:
        return False
    return True


def test_settings_on_the_command_line_may_have_old_names(place: Path) -> None:
    command(
        "train", "codec.yaml", "--data", "clips", "--out", "codec_run", "--set", "task.critic_filters=1", "--set", "clip=2.0",
        "--set", "task.level_dropout=0.5", cwd=place,
    )  # fmt: skip
    assert (place / "codec_run" / "final" / "system.json").exists()
