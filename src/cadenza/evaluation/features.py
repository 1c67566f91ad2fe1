"""What the estimators hear: a constant-Q spectrogram for pitch and a faster one in broad bands for rhythm and timbre."""

import math
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cadenza.dsp.audio import Audio
from cadenza.dsp.spectra import mel_filters

SAMPLE_RATE = 24000
PITCH_HOP, BAND_HOP = 1920, 240  # 12.5 and 100 frames per second
LOWEST = 24  # MIDI number of the first semitone
SEMITONES, PARTS = 91, 3  # 33 Hz to 6 kHz in thirds of a semitone
BANDS = 40
_LONG, _SHORT = 16384, 1024
_SHORTEST, _Q = 4096, 34.0
_FAINT = 1e-5  # share of the loudest frame's energy


@dataclass(frozen=True)
class EstimatorFeatures:
    """Features of a batch of clips; `lengths` are true pitch frames, and a pitch frame is eight band frames."""

    pitch: Float[Tensor, "b rows f"]
    bands: Float[Tensor, "b n g"]
    lengths: Int[Tensor, " b"]


def extract_features(audio: Audio) -> EstimatorFeatures:
    """Features of every clip by itself, at 24 kHz in mono and at one loudness, padded with zeros at the end."""
    clips = [_hear(clip.wave[0, 0]) for clip in audio.to_channels(1).resample(SAMPLE_RATE)]
    lengths = torch.tensor([pitch.shape[-1] for pitch, _ in clips])
    longest = int(lengths.max())
    pitch = torch.zeros(len(clips), SEMITONES * PARTS, longest)
    bands = torch.zeros(len(clips), BANDS, longest * PITCH_HOP // BAND_HOP)
    for i, (p, b) in enumerate(clips):
        pitch[i, :, : p.shape[-1]] = p
        bands[i, :, : b.shape[-1]] = b
    return EstimatorFeatures(pitch, bands, lengths)


def dominant_pitch_class(pitch: Float[Tensor, "rows f"]) -> Int[Tensor, " f"]:
    """The pitch class with the most energy in every frame, from 0 for C; 12 where next to nothing sounds."""
    energy = torch.expm1(pitch).square().unflatten(0, (SEMITONES, PARTS)).sum(1)
    folded = energy.new_zeros(12, pitch.shape[-1]).index_add(0, (torch.arange(SEMITONES) + LOWEST) % 12, energy)
    loud = folded.sum(0) > _FAINT * energy.sum(0).amax().clamp(min=1e-6)
    return torch.where(loud, folded.argmax(0), 12)


def _hear(wave: Float[Tensor, " t"]) -> tuple[Float[Tensor, "rows f"], Float[Tensor, "n g"]]:
    wave = torch.nan_to_num(wave.detach().to("cpu", torch.float32))
    wave = wave / wave.square().mean().sqrt().clamp(min=1e-5)  # silence stays silence
    frames = max(1, math.ceil(len(wave) / PITCH_HOP))
    wave = torch.nn.functional.pad(wave, (0, frames * PITCH_HOP - len(wave)))
    long = _framed(wave, _LONG, PITCH_HOP)
    spectrum = torch.fft.rfft(long)
    real, imaginary = _kernels()
    split = torch.cat([spectrum.real, spectrum.imag], -1)
    pitch = torch.hypot(split @ real, split @ imaginary)
    short = torch.fft.rfft(_framed(wave, _SHORT, BAND_HOP) * torch.hann_window(_SHORT)).abs()
    bands = short @ _bands().T
    return torch.log1p(20 * pitch).T, torch.log1p(bands / 4).T


def _framed(wave: Float[Tensor, " t"], size: int, hop: int) -> Float[Tensor, "f n"]:
    """Windows of `size` samples, centred on the middles of consecutive hops."""
    before = (size - hop) // 2
    return torch.nn.functional.pad(wave, (before, size - hop - before)).unfold(-1, size, hop)


@cache
def _kernels() -> tuple[Float[Tensor, "m rows"], Float[Tensor, "m rows"]]:
    """Spectral kernels of the constant-Q transform, real and imaginary part (Brown & Puckette 1992)."""
    rows = SEMITONES * PARTS
    midi = LOWEST + (torch.arange(rows, dtype=torch.float64) - (PARTS - 1) / 2) / PARTS
    frequency = 440 * 2 ** ((midi - 69) / 12)
    length = (_Q * SAMPLE_RATE / frequency).clamp(_SHORTEST, _LONG)[:, None]
    time = torch.arange(_LONG, dtype=torch.float64) - (_LONG - 1) / 2
    window = torch.where(time.abs() < length / 2, 0.5 + 0.5 * torch.cos(2 * math.pi * time / length), 0.0)
    window = window / window.sum(-1, keepdim=True)
    atoms = window * torch.exp(-2j * math.pi * frequency[:, None] * time / SAMPLE_RATE)
    # sum over time of wave * atom = sum over bins of rfft(wave) * conj(fft(conj(atom))) / n, negative bins negligible
    kernels = torch.fft.fft(atoms.conj())[:, : _LONG // 2 + 1].conj() / _LONG
    a, b = kernels.real.T, kernels.imag.T
    return torch.cat([a, -b]).float(), torch.cat([b, a]).float()


@cache
def _bands() -> Float[Tensor, "n m"]:
    """Bands even in mel from 30 Hz to 11.5 kHz; the weights of each sum to one."""
    filters = mel_filters(SAMPLE_RATE, _SHORT, mels=BANDS, f_min=30.0, f_max=11500.0)
    return filters / filters.sum(-1, keepdim=True)
