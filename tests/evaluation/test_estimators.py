"""The bundled estimators: intact, small, accurate on renders of an unseen seed."""

import json
import math
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from estimators.train import save_estimators

from cadenza.core.errors import CheckpointError
from cadenza.dsp.audio import Audio, load_audio
from cadenza.evaluation.adherence import adherence, score_matrix
from cadenza.evaluation.estimators import FOLDER, AttributeEstimator, accuracy, load_estimators
from cadenza.evaluation.labels import labels_from_sidecar
from cadenza.evaluation.music_metrics import ChordTimeline
from cadenza.evaluation.targets import ATTRIBUTES, AttributeTargets

GOLDEN = Path(__file__).parents[1] / "golden" / "estimators"
RATE = 24000
CHORDS = ("C:maj", "A:min", "F#:maj", "D:min", "Bb:maj", "G:min")
REACHED = {"tempo": 0.90, "key": 0.80, "family": 0.85, "chords": 0.80}  # what adherence asks of its estimators


@pytest.fixture(scope="module")
def listen() -> AttributeEstimator:
    return load_estimators()


def test_the_weights_are_those_on_record_and_small(listen):
    record = json.loads((FOLDER / "estimators.json").read_text())
    assert record["sha256"] == listen.sha256
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 2_000_000
    assert record["trained_on"]["seed"] != record["validation"]["seed"]


def test_the_record_says_that_they_reach_what_adherence_asks(listen):
    validation = json.loads((FOLDER / "estimators.json").read_text())["validation"]
    for name, least in REACHED.items():
        assert validation[name] >= least, name


def test_a_changed_byte_is_refused(tmp_path):
    shutil.copytree(FOLDER, tmp_path / "weights")
    path = tmp_path / "weights" / "estimators.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="sha256"):
        load_estimators(tmp_path / "weights")
    with pytest.raises(CheckpointError, match="Install the package"):
        load_estimators(tmp_path)


def test_what_is_saved_is_what_is_loaded(listen, tmp_path):
    digest = save_estimators(listen, tmp_path, notes={})
    again = load_estimators(tmp_path)
    assert again.sha256 == digest == listen.sha256
    assert torch.equal(again.thresholds, listen.thresholds) and again.families == listen.families


def test_renders_of_an_unseen_seed_are_estimated_correctly(listen):
    truths, estimates = [], []
    for path in sorted(GOLDEN.glob("*.ogg")):
        heard = listen(load_audio(path))[0]
        truths.append(
            labels_from_sidecar(json.loads(path.with_suffix(".json").read_text()), len(heard.chords), families=listen.families)
        )
        estimates.append(heard)
    assert len(truths) == 4
    found = accuracy(estimates, truths)
    assert found.tempo >= 0.75 and found.key >= 0.75 and found.family >= 0.75 and found.chords >= 0.75 and found.melody >= 0.7


def test_a_clip_is_estimated_the_same_alone_and_in_a_batch(listen):
    paths = sorted(GOLDEN.glob("*.ogg"))[:2]
    clips = [load_audio(path) for path in paths]
    both = listen(Audio.pad_and_stack(clips))
    for one, clip in zip(both, clips, strict=True):
        alone = listen(clip)[0]
        assert (one.tempo, one.key, one.lead) == (alone.tempo, alone.key, alone.lead)
        assert torch.equal(one.families, alone.families) and torch.equal(one.melody, alone.melody)


def silence(_: random.Random) -> torch.Tensor:
    return torch.zeros(5 * RATE)


def noise(chance: random.Random) -> torch.Tensor:
    return 0.1 * torch.randn(5 * RATE, generator=torch.Generator().manual_seed(chance.randrange(10**6)))


def held_note(chance: random.Random) -> torch.Tensor:
    hertz = 440 * 2 ** ((chance.randrange(48, 84) - 69) / 12)
    return 0.2 * torch.sin(2 * math.pi * hertz * torch.arange(5 * RATE) / RATE)


@pytest.mark.parametrize("sound", [silence, noise, held_note])
def test_what_is_no_music_obeys_nobody(listen, sound):
    chance = random.Random(5)
    count, families = 24, len(listen.families)
    wishes = []
    for _ in range(count):
        wanted = torch.zeros(families, dtype=torch.bool)
        wanted[chance.sample(range(families), 2)] = True
        pace = chance.choice([(40.0, 84.0), (86.0, 115.0), (116.0, 152.0)])
        tempo = float(chance.randrange(55, 180))
        timed = {
            "chords": ChordTimeline.of([(2 * k, 2 * k + 2, chance.choice(CHORDS)) for k in range(3)]),
            "melody": np.array([chance.randrange(12) for _ in range(8)]).repeat(8),
            "chroma": np.array([chance.randrange(12) for _ in range(16)]).repeat(4),
            "beats": np.arange(chance.random() / 2, 5, 60 / tempo),
            "onsets": np.array(sorted(chance.uniform(0, 5) for _ in range(12))),
            "seconds": chance.uniform(3, 8),
        }
        wishes.append(AttributeTargets(tempo, pace, chance.randrange(24), wanted, torch.zeros_like(wanted), **timed))
    heard = [listen(Audio(sound(chance)[None, None], RATE))[0] for _ in range(count)]
    for name, met in ATTRIBUTES.items():
        found = adherence(
            score_matrix([heard], wishes, met), torch.ones(count), rng=torch.Generator().manual_seed(0), draws=300
        )
        assert abs(found.value.value) < 0.2 and found.value.low < 0.05, name
