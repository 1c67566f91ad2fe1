"""Reconstruction losses against AudioCraft's numbers (a part of conformance case 12 is committed) and closed forms."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cadenza.training.losses import LogMelLoss, MultiScaleMelLoss, multi_resolution_stft_loss, stft_loss

SCALES = (64, 128, 256, 512, 1024)


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(Path(__file__).parents[2] / "golden" / "losses.safetensors")


def equal(value: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(value.reshape(1), expected, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("weighted", [False, True])
def test_multi_scale_mel_normalised(golden: dict[str, Tensor], weighted: bool) -> None:
    loss = MultiScaleMelLoss(24000, windows=SCALES, weighted=weighted, normalized=True)
    equal(loss(golden["x"], golden["y"]), golden[f"msspec.alphas{int(weighted)}_norm1"])


@pytest.mark.parametrize("weighted", [False, True])
def test_multi_scale_mel_plain(golden: dict[str, Tensor], weighted: bool) -> None:
    loss = MultiScaleMelLoss(24000, windows=SCALES, weighted=weighted, normalized=False)
    equal(loss(golden["x"], golden["y"]), golden[f"msspec.alphas{int(weighted)}_norm0"])


def test_log_mel(golden: dict[str, Tensor]) -> None:
    equal(LogMelLoss(24000)(golden["x"], golden["y"]), golden["mel_l1"])


def test_stft_losses(golden: dict[str, Tensor]) -> None:
    """The reference weighs both terms with 0.1."""
    equal(0.1 * sum(stft_loss(golden["x"], golden["y"]), torch.zeros(())), golden["stft"])
    equal(0.1 * multi_resolution_stft_loss(golden["x"], golden["y"]), golden["mrstft"])


def test_log_mel_spectrum_of_the_kit(kit) -> None:  # noqa: ANN001
    expected = load_file(kit("12") / "expected.safetensors")
    spectrum = LogMelLoss(24000).log_mel(expected["x"])[:, 0]
    torch.testing.assert_close(spectrum, expected["mel_l1.melspec_x"], atol=1e-3, rtol=1e-3)


def test_losses_of_equal_waves_are_zero() -> None:
    x = torch.randn(2, 1, 3000)
    for loss in (MultiScaleMelLoss(16000), LogMelLoss(16000), multi_resolution_stft_loss):
        assert float(loss(x, x)) == 0.0
        assert float(loss(x, 0.5 * x)) > 0.0
