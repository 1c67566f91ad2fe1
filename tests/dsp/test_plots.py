"""Pictures of sound are read back: what is loud shines where it should."""

import math
from pathlib import Path

import torch
from matplotlib.image import imread

from cadenza.dsp.audio import Audio
from cadenza.dsp.plots import save_spectrogram


def test_a_note_shines_at_its_pitch(tmp_path: Path) -> None:
    """A higher note lies higher, as the mel scale says: 2595 log10(1 + f / 700)."""
    heights = []
    for hertz in (500.0, 4000.0):
        wave = torch.sin(2 * math.pi * hertz * torch.arange(24000) / 24000)
        save_spectrogram(Audio(wave[None, None], 24000), tmp_path / "note.png")
        picture = imread(tmp_path / "note.png")[:, :, :3]
        column = picture[:, picture.shape[1] // 2].sum(1)
        column[column > 2.99] = 0  # the paper
        heights.append(int(column.argmax()))
    rows = len(picture)
    mel = [2595 * math.log10(1 + f / 700) for f in (30.0, 500.0, 4000.0, 12000.0)]
    share = (heights[0] - heights[1]) / rows
    inside = (mel[2] - mel[1]) / (mel[3] - mel[0])
    assert 0.7 * inside < share < inside  # the axes take most of the height


def test_silence_and_one_sample_can_be_drawn(tmp_path: Path) -> None:
    for wave in (torch.zeros(1, 2, 8000), torch.ones(1, 1, 1)):
        save_spectrogram(Audio(wave, 8000), tmp_path / "quiet.png")
        assert imread(tmp_path / "quiet.png").size
