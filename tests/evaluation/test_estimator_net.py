"""The network's logits shift with the pitch and do not depend on the batch of a clip."""

import pytest
import torch
from estimators.augmentation import FeatureAugmentation, augment_features, augment_labels, sample_augmentation
from estimators.train import EstimatorTargets, loss_terms

from cadenza.evaluation.estimator_net import (
    BANDS,
    BINS_PER_SEMITONE,
    MIN_TEMPO,
    NUM_TEMPI,
    SEMITONES,
    TEMPI_PER_OCTAVE,
    EstimatorFeatures,
    EstimatorNet,
    EstimatorOutputs,
)
from cadenza.evaluation.labels import UNKNOWN


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def net() -> EstimatorNet:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return EstimatorNet(5, width=4, folded=8).eval()


def features(frames: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    pitch = torch.rand(SEMITONES * BINS_PER_SEMITONE, frames, generator=rng(seed))
    return pitch, torch.rand(BANDS, frames * 8, generator=rng(seed + 1))


def test_shapes(net):
    pitch, bands = features(41)
    guesses = net(EstimatorFeatures(pitch[None], bands[None], torch.tensor([41])))
    shapes = {name: tuple(value.shape) for name, value in vars(guesses).items()}
    assert shapes == {
        "tempo": (1, NUM_TEMPI), "key": (1, 24), "families": (1, 5), "playing": (1, 5, 21), "lead": (1, 5),
        "chords": (1, 25, 41), "melody": (1, 92, 41),
    }  # fmt: skip


def test_a_transposed_melody_shifts_the_logits(net):
    pitch, bands = features(30)
    pitch[:90] = pitch[180:] = 0  # room to move in
    up = torch.roll(pitch, 4 * BINS_PER_SEMITONE, 0)
    one, other = (net(EstimatorFeatures(p[None], bands[None], torch.tensor([30]))).melody[0] for p in (pitch, up))
    assert torch.allclose(one[30:60], other[34:64], atol=1e-4)


def test_short_clips_of_a_batch_are_estimated_as_alone(net):
    short, long = features(24), features(60, seed=5)
    pitch, bands = torch.zeros(2, SEMITONES * BINS_PER_SEMITONE, 60), torch.zeros(2, BANDS, 480)
    pitch[0, :, :24], bands[0, :, :192] = short
    pitch[1], bands[1] = long
    both = net(EstimatorFeatures(pitch, bands, torch.tensor([24, 60])))
    alone = net(EstimatorFeatures(short[0][None], short[1][None], torch.tensor([24])))
    for name in ("key", "chords", "melody"):
        a, b = getattr(alone, name)[0], getattr(both, name)[0]
        assert torch.allclose(a, b[..., : a.shape[-1]] if a.dim() > 1 else b, atol=1e-4), name


def test_changes_do_to_features_what_they_say():
    pitch, bands = torch.zeros(SEMITONES * BINS_PER_SEMITONE, 100), torch.zeros(BANDS, 800)
    pitch[60 * BINS_PER_SEMITONE, 50] = 1.0
    moved_pitch, moved_bands = augment_features(
        pitch, bands, FeatureAugmentation(semitones=3, speed=2.0, first=20, frames=60), rng()
    )
    assert moved_pitch.shape[-1] == 30 and moved_bands.shape[-1] == 240
    row, frame = divmod(int(moved_pitch.argmax()), 30)
    assert abs(row - 63 * BINS_PER_SEMITONE) <= 4  # noise may spread it to a neighbour
    assert abs(frame - 15) <= 1


def test_truths_change_with_the_clip():
    wanted = torch.arange(100)
    found = augment_labels(wanted, FeatureAugmentation(semitones=0, speed=2.0, first=20, frames=60))
    assert len(found) == 30 and found[0] in (20, 21) and found[-1] in (78, 79)
    assert augment_labels(wanted, FeatureAugmentation(0, 1.0, 10, 5)).tolist() == [10, 11, 12, 13, 14]


def test_drawn_changes_stay_within_the_clip():
    chance = rng()
    for _ in range(300):
        change = sample_augmentation(120, chance)
        assert 0 <= change.first and change.first + change.frames <= 120 and change.frames >= 75
        assert -4 <= change.semitones <= 4 and 0.85 < change.speed < 1.16


def test_losses_of_right_answers_are_small_and_of_unknown_truths_nothing():
    def sure(shape: tuple[int, ...], classes: torch.Tensor) -> torch.Tensor:
        return torch.full(shape, -30.0).scatter(1, classes[:, None], 30.0)

    classes = torch.tensor([3, 7])
    frames = torch.tensor([[1, 2, 3], [4, 5, 6]])
    step = torch.tensor([10.0, 50.0])
    tempo = -0.5 * ((torch.arange(NUM_TEMPI) - step[:, None]) / 1.2).square()
    present = torch.tensor([[1.0, 0.0, 1.0, 0.0, 0.0]] * 2)
    playing = present[:, :, None].expand(-1, -1, 2)
    right = EstimatorOutputs(
        tempo,
        sure((2, 24), classes),
        60 * (present - 0.5),
        60 * (playing - 0.5),
        sure((2, 5), classes % 5),
        sure((2, 25, 3), frames),
        sure((2, 92, 3), frames),
    )
    tempo_targets = MIN_TEMPO * 2 ** (step / TEMPI_PER_OCTAVE)
    wanted = EstimatorTargets(tempo_targets, classes, present, playing, classes % 5, frames, frames)
    losses = loss_terms(right, wanted)
    entropy = float(torch.distributions.Categorical(logits=tempo).entropy().mean())
    assert float(losses.pop("tempo")) == pytest.approx(entropy, abs=1e-3)
    assert all(float(loss) < 1e-6 for loss in losses.values())
    nothing = torch.full((2,), UNKNOWN)
    blank = EstimatorTargets(
        torch.zeros(2), nothing, present, playing - 10, nothing, torch.full((2, 3), UNKNOWN), torch.full((2, 3), UNKNOWN)
    )
    assert all(float(loss) == 0 for name, loss in loss_terms(right, blank).items() if name != "families")
