"""Features against closed forms: tones at their semitone, clicks at their tempo, blind to level."""

import math

import pytest
import torch

from cadenza.dsp.audio import Audio
from cadenza.evaluation.estimator_net import (
    _AXIS_MIN_TEMPO,
    BAND_HOP,
    BINS_PER_SEMITONE,
    LOWEST_PITCH,
    PITCH_HOP,
    SAMPLE_RATE,
    TEMPI_PER_OCTAVE,
    extract_features,
    tempogram,
)


def tone(midi: float, seconds: float = 2.0, rate: int = SAMPLE_RATE) -> torch.Tensor:
    time = torch.arange(round(seconds * rate)) / rate
    return 0.3 * torch.sin(2 * math.pi * 440 * 2 ** ((midi - 69) / 12) * time)


def clicks(bpm: float, seconds: float = 10.0) -> Audio:
    wave = torch.zeros(round(seconds * SAMPLE_RATE))
    noise = torch.randn(600, generator=torch.Generator().manual_seed(0)) * torch.linspace(1, 0, 600)
    for beat in range(int(seconds * bpm / 60)):
        start = round(beat * 60 / bpm * SAMPLE_RATE)
        wave[start : start + 600] += noise[: len(wave) - start]
    return Audio(wave[None, None], SAMPLE_RATE)


@pytest.mark.parametrize("midi", [36, 48, 60, 69, 81, 96, 108])
def test_a_tone_is_strongest_at_its_semitone(midi):
    pitch = extract_features(Audio(tone(midi)[None, None], SAMPLE_RATE)).pitch[0]
    row = int(pitch[:, pitch.shape[1] // 2].argmax())
    assert LOWEST_PITCH + (row - (BINS_PER_SEMITONE - 1) / 2) / BINS_PER_SEMITONE == pytest.approx(midi, abs=0.34)


def test_a_chord_shows_its_notes_apart():
    wave = sum(tone(midi) for midi in (48, 52, 55, 59))
    pitch = (
        extract_features(Audio(torch.as_tensor(wave)[None, None], SAMPLE_RATE))
        .pitch[0, :, 12]
        .unflatten(0, (-1, BINS_PER_SEMITONE))
        .amax(1)
    )
    assert sorted(LOWEST_PITCH + i for i in pitch.topk(4).indices.tolist()) == [48, 52, 55, 59]


def test_level_does_not_count_and_silence_stays_silent():
    wave = tone(60)[None, None]
    loud, quiet = extract_features(Audio(wave, SAMPLE_RATE)), extract_features(Audio(0.01 * wave, SAMPLE_RATE))
    assert torch.allclose(loud.pitch, quiet.pitch, atol=1e-4) and torch.allclose(loud.bands, quiet.bands, atol=1e-4)
    assert not extract_features(Audio(torch.zeros(1, 1, 5000), SAMPLE_RATE)).pitch.any()


def test_the_sample_rate_and_the_channels_do_not_count():
    one = extract_features(Audio(tone(60)[None, None], SAMPLE_RATE)).pitch
    other = extract_features(Audio(tone(60, rate=44100).expand(1, 2, -1), 44100)).pitch
    assert one.shape == other.shape
    assert (one - other)[..., 3:-3].abs().max() < 0.02


def test_frames_match_lengths_and_a_clip_does_not_depend_on_its_batch():
    waves = [tone(60, 1.0), tone(67, 3.21)]
    batch = extract_features(Audio.pad_and_stack([Audio(wave[None, None], SAMPLE_RATE) for wave in waves]))
    assert batch.lengths.tolist() == [math.ceil(len(wave) / PITCH_HOP) for wave in waves]
    assert batch.bands.shape[-1] == batch.pitch.shape[-1] * PITCH_HOP // BAND_HOP
    alone = extract_features(Audio(waves[0][None, None], SAMPLE_RATE))
    assert torch.equal(batch.pitch[0, :, : alone.lengths[0]], alone.pitch[0])
    assert not batch.pitch[0, :, alone.lengths[0] :].any()


@pytest.mark.parametrize("samples", [1, 2, 500])
def test_any_length_will_do(samples):
    heard = extract_features(Audio(torch.full((1, 1, samples), 0.1), SAMPLE_RATE))
    assert heard.lengths.tolist() == [1] and torch.isfinite(heard.pitch).all()


@pytest.mark.parametrize("bpm", [60, 97, 150])
def test_clicks_repeat_at_their_tempo(bpm):
    heard = extract_features(clicks(bpm))
    axis = tempogram(heard.bands, torch.ones(1, 1, heard.bands.shape[-1], dtype=torch.bool))[0]
    repeats = axis[axis.shape[0] // 2 - 1]  # autocorrelation over all bands
    place = round(TEMPI_PER_OCTAVE * math.log2(bpm / _AXIS_MIN_TEMPO))
    window = repeats[place - 15 : place + 16]  # a third of an octave to both sides
    assert abs(int(window.argmax()) - 15) <= 1
    assert window.max() > 0.5
