"""`cadenza finetune`: somebody's model learns one's own sound, says so truly, and stays what it was otherwise."""

import json
import math
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile
import torch
from foreign import musicgen_folder
from tiny import tiny_system

import cadenza
from cadenza.apps.cli.main import main
from cadenza.data.encoded_store import encode_dataset
from cadenza.data.sources import load_manifest
from cadenza.system.spec import SystemSpec
from cadenza.system.store import ModelCard
from cadenza.system.system import System

QUICK = ["--set", "workers=0", "--set", "trackers=[]", "--set", "sample_items=0"]


class Run(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def finetune(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Run]:
    """The program, run in this process and in an empty folder."""

    def run(*arguments: object) -> Run:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["cadenza", "finetune", *map(str, arguments), *QUICK])
        with pytest.raises(SystemExit) as end, warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = lambda message, *_: print(message, file=sys.stderr)
            main()
        return Run(int(end.value.code or 0), *capsys.readouterr())

    return run


def refused(run: Run, *words: str) -> None:
    assert run.status == 2 and "Traceback" not in run.err, run.err
    for word in words:
        assert word in run.err


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixteen clips of 0.6 s at 8000 Hz, tones and noise, with captions."""
    folder, rng = tmp_path_factory.mktemp("sound"), np.random.default_rng(0)
    for i in range(16):
        tone = np.sin(2 * math.pi * (200 * np.arange(4800) / 8000 + rng.random()))
        soundfile.write(folder / f"{i}.wav", 0.3 * (tone if i % 2 else rng.standard_normal(4800).clip(-3, 3)), 8000)
        (folder / f"{i}.txt").write_text("sad piano" if i % 2 else "drums")
    return folder


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_system().save(folder)
    return folder


def musicgen_that_hears(folder: Path, sound: Path) -> Path:
    """A random MusicGen of transformers, but for codebooks that tell the sounds of a folder apart."""
    theirs = musicgen_folder(folder, text__num_layers=1)
    codec = cadenza.load(folder, device="cpu").codec
    waves = torch.cat([cadenza.load_audio(path).wave for path in sorted(sound.glob("*.wav"))])
    latents = codec.forward_train(waves, num_codebooks=0).frames.z.detach()
    codec.init_codebooks(latents.transpose(1, 2).flatten(0, 1), torch.Generator().manual_seed(0))
    for layer, book in zip(theirs.audio_encoder.quantizer.layers, codec.quantizer.levels, strict=True):
        layer.codebook.embed.copy_(book.embed)
        layer.codebook.embed_avg.copy_(book.embed)
    theirs.save_pretrained(folder)
    return folder


def loss(model: Path, folder: Path, *, frames: int | None = None, swapped: bool = False) -> float:
    """The loss of a model on all clips of a folder, each from its beginning, computed without the trainer.

    `swapped` tells it of each clip what another is.
    """
    system, losses = cadenza.load(model, device="cpu"), []
    paths = sorted(folder.glob("*.wav"), key=lambda path: int(path.stem))
    for i, path in enumerate(paths):
        text = paths[(i + swapped) % len(paths)].with_suffix(".txt").read_text()
        audio = cadenza.load_audio(path)
        samples = (frames or system.spec.generator.max_frames) * system.spec.codec.hop_length
        codes = system.codec.encode(cadenza.Audio(audio.wave[..., :samples], 8000))
        fused = system.fuse(system.encode_conditions(system.prepare([{"prompt": text}])), frames=codes.ids.shape[2])
        with torch.no_grad():
            losses.append(float(system.generator.losses(codes, fused, torch.Generator())["loss"]))
    return sum(losses) / len(losses)


def test_a_model_of_transformers_learns_and_stays_what_it_was(finetune, sound: Path, tmp_path: Path) -> None:
    musicgen_that_hears(tmp_path / "theirs", sound)
    run = finetune("theirs", sound, "--out", "run", "--steps", 40, "--set", "lr=2e-2", "--set", "ema=0.9")
    assert run.status == 0, run.err
    before, after = loss(tmp_path / "theirs", sound), loss(tmp_path / "run/best", sound)
    assert after < 0.7 * before
    right, wrong = (loss(tmp_path / "run/best", sound, frames=10, swapped=swapped) for swapped in (False, True))
    assert right < wrong - 0.04  # the text conditions the result
    said = [float(word) for word in run.out.partition("loss on held-out clips: ")[2].split() if "." in word][:2]
    assert said[0] == pytest.approx(before, rel=0.1) and said[1] == pytest.approx(after, rel=0.15)
    records = [json.loads(line) for line in (tmp_path / "run/log.jsonl").read_text().splitlines()]
    valid = [record["loss"] for record in records if record["kind"] == "valid"]
    assert len(valid) == 10 and min(valid) == pytest.approx(said[1], abs=1e-4)

    start, tuned = cadenza.load(tmp_path / "theirs", device="cpu"), cadenza.load(tmp_path / "run/final", device="cpu")
    assert tuned.card.license == start.card.license and start.card.name in tuned.card.notice
    assert tuned.card.name == f"{start.card.name}-finetuned" and tuned.card.license in run.out
    moved = {name.split(".")[0] for name, x in tuned.state_dict().items() if not torch.equal(x, start.state_dict()[name])}
    assert moved == {"generator", "conditioners"}
    audio = tuned.generate(["sad piano", "drums"], seconds=0.3)
    assert audio.wave.shape == (2, 1, 2400) and bool(audio.wave.isfinite().all())


def test_a_system_of_ours_from_codes(finetune, sound: Path, ours: Path, tmp_path: Path) -> None:
    encode_dataset(load_manifest(sound)[0], System.load(ours).codec, tmp_path / "codes")
    run = finetune(ours, "codes", "--steps", 20, "--set", "lr=1e-2", "--set", "seconds=0.2")
    assert run.status == 0, run.err
    assert "20 steps of 4 pieces of up to 0.2 s, lr 0.01 after 2 steps" in run.out and "licence MIT" in run.out
    assert "no clip has a value for tempo, key: the model" in run.err  # of the prompt they do
    folder = tmp_path / "runs/tiny-finetuned"
    assert loss(folder / "final", sound) < loss(ours, sound) - 0.2
    card = ModelCard.from_folder(folder / "best")
    assert (card.name, card.license) == ("tiny-finetuned", "MIT") and "Random weights." in card.notice
    again = finetune(ours, "codes", "--steps", 20, "--set", "lr=1e-2", "--set", "seconds=0.2")
    assert again.status == 0 and "continuing from step 20" in again.err


def test_what_did_not_help_is_said(finetune, sound: Path, ours: Path) -> None:
    run = finetune(ours, sound, "--steps", 2, "--set", "lr=1e-12", "--set", "seconds=0.1", "--set", "ema=null")
    assert run.status == 0 and "has not fallen" in run.out


def test_out_of_time_leaves_a_model(finetune, sound: Path, ours: Path, tmp_path: Path) -> None:
    run = finetune(ours, sound, "--out", "run", "--minutes", 1e-6, "--set", "seconds=0.1")
    assert run.status == 0 and "out of time at step 1 of 1000" in run.err
    assert "not measured since" in run.out and "run/last" in run.out
    assert cadenza.load(tmp_path / "run/last", device="cpu").card.license == "MIT"


def test_mistakes_are_named(finetune, sound: Path, ours: Path, tmp_path: Path) -> None:
    System(SystemSpec.parse({"codec": tiny_system().spec.codec.to_dict()})).save(tmp_path / "codec")
    (tmp_path / "empty").mkdir()
    (tmp_path / "words").mkdir()
    (tmp_path / "words/a.wav").write_text("not audio")
    refused(finetune(tmp_path / "codec", sound), "is a codec", "cadenza train CONFIG", "init_from=MODEL")
    refused(finetune(ours, "nowhere"), "nowhere: no such file or folder")
    refused(finetune(ours, "empty"), "empty: no usable audio")
    refused(finetune(ours, "words"), "a.wav")
    refused(finetune("startr", sound), "startr")
    refused(finetune(ours, sound, "--set", "lr"), "'lr' is not an override")
    refused(finetune(ours, sound, "--set", "stepz=3"), "stepz", "Did you mean 'steps'")
    refused(finetune(ours, sound, "--set", "system.generator.dropout=0.1"), "not its system")
    refused(finetune(ours, sound, "--steps", 1, "--set", "seconds=9"), "longer than the model's context", "at most 2")
    refused(finetune(ours, sound, "--steps", 0), "--steps")
    encode_dataset(load_manifest(sound)[0], tiny_system(seed=1).codec, tmp_path / "other")
    refused(finetune(ours, "other"), "other")
