"""Chroma equals librosa's filter bank with AudioCraft's normalisation and choice of the strongest, and detects notes."""

import math
from collections.abc import Callable
from pathlib import Path

import librosa
import pytest
import torch
from safetensors.torch import load_file

from cadenza.dsp.spectral import chroma_filters, chroma_frames, chromagram, one_hot_argmax


@pytest.mark.parametrize(("rate", "n_fft"), [(32000, 16384), (44100, 2048), (8000, 1000)])
@pytest.mark.parametrize("bins", [12, 24, 7])
def test_the_filters_are_librosas(rate: int, n_fft: int, bins: int) -> None:
    want = librosa.filters.chroma(sr=rate, n_fft=n_fft, tuning=0, n_chroma=bins)
    torch.testing.assert_close(chroma_filters(rate, n_fft, bins=bins), torch.from_numpy(want), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("midi", [48, 57, 60, 61, 70, 71, 84])
def test_a_note_is_its_pitch_class(midi: int) -> None:
    t = torch.arange(16000) / 16000
    wave = torch.sin(2 * math.pi * 440 * 2 ** ((midi - 69) / 12) * t)
    found = chromagram(wave, chroma_filters(16000, 4096), hop=1024)
    assert found.shape == (1 + 16000 // 1024, 12) and (found.max(-1).values == 1).all()
    assert (one_hot_argmax(found)[2:-2].argmax(-1) == midi % 12).all()


@pytest.mark.parametrize("samples", [1, 999, 4096, 4097, 10240, 11000])
def test_frames_and_silence(samples: int) -> None:
    found = chromagram(torch.zeros(2, samples), chroma_filters(16000, 4096), hop=1024)
    assert found.shape == (2, chroma_frames(samples, 4096, 1024), 12) and not found.any()
    assert (one_hot_argmax(found).argmax(-1) == 0).all() and (one_hot_argmax(found).sum(-1) == 1).all()


def test_loudness_does_not_matter() -> None:
    wave = torch.randn(8000, generator=torch.Generator().manual_seed(0))
    filters = chroma_filters(16000, 2048)
    torch.testing.assert_close(
        chromagram(wave, filters, hop=512), chromagram(wave * 0.01, filters, hop=512), atol=1e-4, rtol=1e-4
    )


def test_audiocrafts_chroma(kit: Callable[[str], Path]) -> None:
    want = load_file(kit("09c") / "expected.safetensors")
    filters = chroma_filters(32000, 16384)
    torch.testing.assert_close(filters[[0, 5]], want["chroma.filterbank_rows"], atol=1e-7, rtol=1e-5)
    for name in ("melody0", "melody1"):
        soft = chromagram(want[f"{name}.waveform"], filters, hop=4096)
        if f"{name}.chroma_soft" in want:
            torch.testing.assert_close(soft, want[f"{name}.chroma_soft"], atol=1e-5, rtol=1e-4)
        assert torch.equal(one_hot_argmax(soft), want[f"{name}.chroma"])
    assert torch.equal(one_hot_argmax(chromagram(torch.zeros(1, 1), filters, hop=4096)), want["null.chroma"])


def test_transformers_features(kit: Callable[[str], Path]) -> None:
    want = load_file(kit("03") / "expected.safetensors")
    filters = chroma_filters(32000, 4096)
    for name in ("melody", "melody2"):
        wave = want[f"{name}.waveform"].mean(0, keepdim=True)
        assert torch.equal(one_hot_argmax(chromagram(wave, filters, hop=1024)), want[f"{name}.input_features"])
