"""Onsets and beats of clicks at known times, and of renders of an unseen seed."""

import json
import math
from pathlib import Path

import mir_eval
import numpy as np
import pytest
import torch

from cadenza.dsp.audio import Audio, load_audio
from cadenza.evaluation.audio_health import last_sound_seconds
from cadenza.evaluation.estimator_net import dominant_pitch_class, extract_features
from cadenza.evaluation.estimators import Estimate, load_estimators
from cadenza.evaluation.music_metrics import onset_strength, pick_onsets, track_beats

GOLDEN = Path(__file__).parents[1] / "golden" / "estimators"
RATE = 24000


def clicks(times: np.ndarray, seconds: float, loud: np.ndarray | None = None) -> Audio:
    """Short noises with a sharp start and a soft end."""
    wave = torch.zeros(round(seconds * RATE))
    burst = torch.randn(1200, generator=torch.Generator().manual_seed(0)) * torch.exp(-torch.arange(1200) / 200)
    for time, level in zip(times, np.ones(len(times)) if loud is None else loud, strict=True):
        at = round(time * RATE)
        wave[at : at + 1200] += 0.3 * float(level) * burst[: len(wave) - at]
    return Audio(wave[None, None], RATE)


def strength(audio: Audio) -> np.ndarray:
    return onset_strength(extract_features(audio).bands[0])


def test_clicks_are_onsets_within_twenty_milliseconds():
    times = np.array([0.0, 0.4, 0.53, 1.2, 1.9, 2.05, 3.0])
    found = pick_onsets(strength(clicks(times, 4.0))).numpy()
    assert len(found) == len(times) and np.abs(found - times).max() < 0.02


@pytest.mark.parametrize(("tempo", "told"), [(60, 60.0), (96, 98.5), (140, 137.0)])
def test_beats_of_a_pulse_with_weaker_ones_between(tempo, told):
    """The given tempo is off by up to 2.6 %, as the estimator may be."""
    period, first = 60 / tempo, 0.3
    pulse = np.arange(first, 11.5, period)
    between = pulse[:-1] + period / 2
    times, loud = np.append(pulse, between), np.append(np.ones(len(pulse)), np.full(len(between), 0.2))
    found = track_beats(strength(clicks(times, 14.0, loud)), told).numpy()
    assert mir_eval.beat.f_measure(pulse, found) == 1, "nor are there beats before the first or after the last"


def test_beats_follow_a_tempo_that_drifts():
    gaps = 0.6 * 1.005 ** np.arange(20)
    times = np.cumsum(gaps)
    found = track_beats(strength(clicks(times, float(times[-1]) + 1)), 60 / float(gaps.mean())).numpy()
    assert mir_eval.beat.f_measure(times, found) == 1


def test_silence_has_neither():
    silent = strength(Audio(torch.zeros(1, 1, 5 * RATE), RATE))
    assert len(pick_onsets(silent)) == len(track_beats(silent, 100.0)) == 0
    short = strength(Audio(torch.zeros(1, 1, 100), RATE))
    assert len(pick_onsets(short)) == len(track_beats(short, 100.0)) == 0


def test_the_loudest_pitch_class():
    time = torch.arange(2 * RATE) / RATE
    wave = torch.cat([torch.sin(2 * math.pi * 440 * 2 ** ((pitch - 69) / 12) * time) for pitch in (60, 69, 78)])
    wave = torch.cat([0.3 * wave, torch.zeros(2 * RATE)]) + 0.05 * torch.sin(2 * math.pi * 200 * torch.arange(8 * RATE) / RATE)
    wave[6 * RATE :] = 0
    found = dominant_pitch_class(extract_features(Audio(wave[None, None], RATE)).pitch[0]).reshape(4, 25)[:, 5:20]
    assert found.mode(1).values.tolist() == [0, 9, 6, 12] and (found == found[:, :1]).all()


@pytest.mark.parametrize(("loud", "until"), [((0.0, 2.0), 2.0), ((0.5, 0.7), 0.7), ((3.97, 4.0), 4.0)])
def test_how_long_it_sounds(loud, until):
    wave = torch.zeros(1, 4 * RATE)
    wave[:, round(loud[0] * RATE) : round(loud[1] * RATE)] = 0.1
    assert abs(last_sound_seconds(wave, RATE) - until) <= 0.05
    assert last_sound_seconds(torch.zeros(1, RATE), RATE) == 0


def test_beats_and_onsets_of_renders_reach_what_the_page_says():
    """On 211 held-out renders: beats .91, onsets .87 (docs/measure.md); one in twenty is counted between the beats."""
    listen, scores = load_estimators(), []
    for path in sorted(GOLDEN.glob("*.ogg")):
        truth, heard = json.loads(path.with_suffix(".json").read_text()), listen(load_audio(path))[0]
        assert isinstance(heard, Estimate)
        starts = np.unique([round(note[0], 2) for note in truth["notes"]])
        starts = starts[np.append(True, np.diff(starts) > 0.03)]
        pulse = np.arange(0, starts[-1] + 0.01, 60 / truth["tempo"])  # every clip begins with a beat
        scores.append(
            (
                mir_eval.beat.f_measure(pulse, heard.beats.numpy()),
                mir_eval.onset.f_measure(starts, heard.onsets.numpy())[0],
            )
        )
        assert abs(heard.seconds - truth["seconds"]) < 0.6
    beat, onset = np.sort(scores, 0).T
    assert beat[1] >= 0.9 and onset[1] >= 0.8 and onset[0] >= 0.7, scores  # in one, the off-beats are taken for beats
