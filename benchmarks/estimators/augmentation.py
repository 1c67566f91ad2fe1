"""Changes of features that leave the truth alone or move it by a known amount: what makes estimators robust."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from cadenza.evaluation.estimator_net import BINS_PER_SEMITONE, LOWEST_PITCH, SEMITONES

_FLOORS = (20.0, 0.25)  # what the logarithms of `features` multiply magnitudes by


@dataclass(frozen=True)
class FeatureAugmentation:
    """One drawn change of a clip: shifted by semitones, played `speed` times as fast, cut out, discoloured."""

    semitones: int
    speed: float
    first: int  # pitch frames of the original
    frames: int


def sample_augmentation(frames: int, rng: torch.Generator) -> FeatureAugmentation:
    """A change of a clip of this many frames: mostly whole clips, else at least six seconds of them."""
    uniform = torch.rand(5, generator=rng).tolist()
    semitones = int(uniform[0] * 9) - 4 if uniform[1] < 0.6 else 0
    speed = 2 ** ((uniform[2] - 0.5) * 0.4) if uniform[3] < 0.7 else 1.0
    shortest = min(75, frames)
    length = frames if uniform[4] < 0.6 else shortest + int((uniform[4] - 0.6) / 0.4 * (frames - shortest + 1))
    first = int(torch.rand(1, generator=rng) * (frames - length + 1))
    return FeatureAugmentation(semitones, speed, first, length)


def augment_features(
    pitch: Float[Tensor, "rows f"], bands: Float[Tensor, "n g"], change: FeatureAugmentation, rng: torch.Generator
) -> tuple[Float[Tensor, "rows u"], Float[Tensor, "n v"]]:
    """Features of the changed clip, with random colour, noise and gain on top."""
    ratio = bands.shape[-1] // pitch.shape[-1]
    last = change.first + change.frames
    pitch, bands = pitch[:, change.first : last].float(), bands[:, change.first * ratio : last * ratio].float()
    if change.semitones:
        rows = change.semitones * BINS_PER_SEMITONE
        pitch = torch.roll(pitch, rows, 0)
        pitch[slice(0, rows) if rows > 0 else slice(rows, None)] = 0
    if change.speed != 1.0:
        frames = max(1, round(change.frames / change.speed))
        pitch = F.interpolate(pitch[None], size=frames, mode="linear")[0]
        bands = F.interpolate(bands[None], size=frames * ratio, mode="linear")[0]
    return _coloured(pitch, bands, rng)


def augment_labels(wanted: Tensor, change: FeatureAugmentation) -> Tensor:
    """Frame-wise classes of the changed clip, pitch not yet moved."""
    wanted = wanted[change.first : change.first + change.frames]
    frames = max(1, round(change.frames / change.speed))
    return wanted[((torch.arange(frames) + 0.5) * len(wanted) / frames).long()]


def _coloured(pitch: Tensor, bands: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Equaliser, low pass, gain and noise that follows the spectrum as a codec's does."""
    knots = torch.randn(7, generator=rng) * 0.35
    gain = float(torch.randn(1, generator=rng)) * 0.25
    cut = float(torch.rand(1, generator=rng))
    grain = max(0.0, float(torch.rand(1, generator=rng)) - 0.4) * 0.9
    top = 12000 * (0.2 + cut) if cut < 0.3 else 1e9
    made = []
    for x, scale, hertz in ((pitch, _FLOORS[0], _pitch_hertz()), (bands, _FLOORS[1], _band_hertz(len(bands)))):
        octave = (torch.log2(hertz / 30) / 8.7).clamp(0, 1) * 6
        low = octave.floor().clamp(max=5).long()
        curve = knots[low] + (octave - low) * (knots[low + 1] - knots[low]) + gain
        curve = curve - 4 * torch.log2((hertz / top).clamp(min=1))
        magnitude = torch.expm1(x) / scale
        if grain:
            near = F.avg_pool1d(magnitude.T[None], 9, 1, 4)[0].T
            magnitude = magnitude * (1 - grain / 2) + grain * near * torch.rand(x.shape, generator=rng)
        made.append(torch.log1p(scale * magnitude * torch.exp(curve)[:, None]))
    return made[0], made[1]


def _pitch_hertz() -> Float[Tensor, " rows"]:
    return 440 * 2 ** ((LOWEST_PITCH - 69 + torch.arange(SEMITONES * BINS_PER_SEMITONE) / BINS_PER_SEMITONE) / 12)


def _band_hertz(bands: int) -> Float[Tensor, " n"]:
    mel = torch.linspace(47.0, 3220.0, bands + 2)[1:-1]
    return 700 * (10 ** (mel / 2595) - 1)
