"""Pictures of codes are read back: what is equal looks equal."""

from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.image import imread

from cadenza.core.errors import AudioError
from cadenza.core.types import Codes
from cadenza.dsp.plots import code_colors, plot_codes


def test_equal_codes_look_equal_and_neighbours_do_not() -> None:
    painted = code_colors(np.arange(2048)[None])[0]
    assert ((painted >= 0) & (painted <= 1)).all()
    assert np.array_equal(code_colors(np.array([[7, 7]]))[0, 0], painted[7])
    assert (np.abs(np.diff(painted, axis=0)).max(1) > 0.1).all()
    brightness = painted @ np.array([0.2126, 0.7152, 0.0722])
    assert brightness.std() < 0.06


def seen(path: Path, ids: np.ndarray) -> list[bool]:
    """For each code, whether its colour is in the picture."""
    pixels = np.unique(imread(path)[:, :, :3].reshape(-1, 3), axis=0)
    return [bool((np.abs(pixels - colour).max(1) < 1 / 250).any()) for colour in code_colors(ids[None])[0]]


@pytest.mark.parametrize(("length", "seconds", "shown"), [(60, 1.0, 50), (60, 0.5, 25), (30, 1.0, 30), (1, 1.0, 1)])
def test_a_cell_is_a_frame(tmp_path: Path, length: int, seconds: float, shown: int) -> None:
    ids = torch.arange(60).repeat(2, 2, 1)
    plot_codes(Codes(ids, torch.tensor([length, 60])), tmp_path / "codes.png", frame_rate=50.0, seconds=seconds)
    assert seen(tmp_path / "codes.png", np.arange(60)) == [frame < shown for frame in range(60)]


def test_a_picture_that_cannot_be_written_says_so(tmp_path: Path) -> None:
    with pytest.raises(AudioError, match="nowhere"):
        plot_codes(Codes(torch.zeros(1, 2, 5, dtype=torch.long)), tmp_path / "nowhere" / "a.png", frame_rate=50.0)
    with pytest.raises(AudioError, match="png"):
        plot_codes(Codes(torch.zeros(1, 2, 5, dtype=torch.long)), tmp_path / "a.xyz", frame_rate=50.0)
