"""Spectra against numpy and against tones whose spectrum is known."""

import math

import numpy as np
import torch

from cadenza.dsp.spectral import mel_filters, mel_spectrogram, stft


def test_stft_is_the_windowed_transform_of_each_frame() -> None:
    wave = torch.randn(2, 3, 500, dtype=torch.float64)
    spectrum = stft(wave, 64, hop=16, window=48, center=False)
    taper = np.zeros(64)
    taper[8:56] = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(48) / 48)
    frame = np.fft.rfft(wave[1, 2, 32:96].numpy() * taper)
    np.testing.assert_allclose(spectrum[1, 2, :, 2].numpy(), frame, atol=1e-10)
    assert spectrum.shape == (2, 3, 33, (500 - 64) // 16 + 1)
    scaled = stft(wave, 64, hop=16, window=48, center=False, normalized=True)
    torch.testing.assert_close(scaled * float(np.linalg.norm(taper)), spectrum)


def test_centred_frames_lie_around_their_sample() -> None:
    wave = torch.zeros(1, 512)
    wave[0, 256] = 1.0
    energy = stft(wave, 64, hop=16).abs().square().sum(1)[0]
    assert energy.argmax() == 256 // 16


def test_mel_filters_are_triangles_between_neighbours_on_the_htk_scale() -> None:
    filters = mel_filters(16000, 4096, mels=10, f_min=100.0, f_max=6000.0)

    def mel(hertz: float) -> float:
        return 2595.0 * math.log10(1.0 + hertz / 700.0)

    hertz = np.linspace(0, 8000, 2049)
    steps = np.linspace(mel(100.0), mel(6000.0), 12)
    edges = 700.0 * (10.0 ** (steps / 2595.0) - 1.0)
    for j in range(10):
        expected = np.interp(hertz, edges[j : j + 3], [0.0, 1.0, 0.0], left=0.0, right=0.0)
        np.testing.assert_allclose(filters[j].numpy(), expected, atol=1e-6)


def test_a_tone_is_in_its_band() -> None:
    filters = mel_filters(16000, 1024, mels=40)
    for hertz in (300.0, 1000.0, 5000.0):
        tone = torch.sin(2 * math.pi * hertz * torch.arange(8000) / 16000)[None, None]
        loudest = mel_spectrogram(tone, filters, hop=256).mean(-1)[0, 0].argmax()
        assert filters[:, round(hertz * 1024 / 16000)].argmax() == loudest


def test_mel_frames_cover_any_length() -> None:
    filters = mel_filters(8000, 256, mels=8)
    for samples in (1, 63, 64, 65, 1000):
        mels = mel_spectrogram(torch.randn(1, 1, samples), filters, hop=64)
        assert mels.shape[-1] == math.ceil(samples / 64) and torch.isfinite(mels).all()
