from pathlib import Path

import pytest
import torch

from cadenza.core.errors import RequestError
from cadenza.dsp.audio import Audio, load_condition_audio, silence


def test_sounds_of_every_kind_become_one_batch_with_true_lengths(tmp_path: Path) -> None:
    wave = torch.rand(1, 2, 800) - 0.5
    path = tmp_path / "a.wav"
    Audio(wave, 16000).save(path)
    found = load_condition_audio([Audio(wave[..., :300], 16000), str(path), silence(16000)], 8000)
    assert found.wave.shape == (3, 1, 400) and found.sample_rate == 8000
    assert found.lengths.tolist() == [150, 400, 1]
    assert not found.wave[0, :, 150:].any() and not found.wave[2].any()


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (3, "not int"),
        ("nowhere.wav", "nowhere.wav"),
        (Audio(torch.zeros(2, 1, 8), 8000), "holds 2"),
        (Audio(torch.zeros(1, 1, 0), 8000), "no samples"),
        (Audio(torch.full((1, 1, 4), torch.nan), 8000), "NaN or infinite"),
    ],
)
def test_what_is_no_sound_is_named(value: object, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        load_condition_audio([value], 8000)
