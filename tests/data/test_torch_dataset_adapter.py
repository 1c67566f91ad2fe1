"""Adapted: a user's own torch dataset, in whatever order it returns things."""

import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset, TensorDataset

from cadenza.core.errors import DataError
from cadenza.data.audio_dataset import TorchDatasetAdapter
from cadenza.data.items import SampleIndex
from cadenza.dsp import audio_io
from cadenza.dsp.audio import Audio

RATE = 8000
WAVE = torch.arange(4000, dtype=torch.float32) / 8000


def item(raw, **options):
    return TorchDatasetAdapter([raw], seconds=1.0, sample_rate=RATE, **{"data_rate": RATE, **options})[SampleIndex(0)]


@pytest.mark.parametrize(
    "raw",
    [
        {"audio": WAVE, "prompt": "hum", "tempo": 80},
        (WAVE, "hum", {"tempo": 80}),
        ({"tempo": 80}, "hum", WAVE[None]),
        ("hum", None, WAVE.numpy(), {"tempo": 80}),
        {"audio": WAVE.double(), "prompt": ["hum"], "tempo": 80},
        {"audio": Audio(WAVE[None, None], RATE), "prompt": "hum", "tempo": 80},
    ],
)
def test_every_order_gives_the_same_item(raw):
    found = item(raw)
    assert (found["prompt"], found["tempo"], found["id"]) == ("hum", 80, "0")
    assert found["audio"].lengths.tolist() == [4000] and torch.equal(found["audio"].wave[0, 0, :4000], WAVE)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ((WAVE, WAVE, "x"), r"several entries could be the audio \(0: float32 \[4000\], 1: float32 \[4000\]\).*'audio'"),
        ((WAVE, "x", "y"), r"several entries could be the prompt \(1: 'x', 2: 'y'\)"),
        (("x", torch.zeros(5, dtype=torch.int16)), r"no entry is a float tensor.*1: int16 \[5\]"),
        ((WAVE, 44_100), "entry 1: 44100 is not audio, text or a mapping"),
        ({"wave": WAVE, "text": "x"}, "key 'audio' not found. Keys: wave, text"),
        ("just text", "is a str"),
        ({"audio": torch.zeros(5, dtype=torch.int16)}, "return floats in -1 to 1"),
        ({"audio": torch.zeros(400, 2)}, r"shape \[400, 2\]; return \[samples\] or \[channels, samples\]"),
        ({"audio": torch.zeros(0)}, r"shape \[0\]"),
        ({"audio": torch.tensor([0.0, float("nan")])}, "NaN"),
        ({"audio": Audio(torch.zeros(2, 1, 5), RATE)}, "a batch of 2"),
    ],
)
def test_what_would_be_a_guess_is_an_error_that_names_the_choices(raw, message):
    with pytest.raises(DataError, match=message):
        item(raw)


def test_a_bare_tensor_needs_a_rate():
    with pytest.raises(DataError, match="declare the sample rate with data_rate="):
        item(WAVE, data_rate=None)
    assert item({"audio": WAVE, "sample_rate": 16_000}, data_rate=None)["audio"].lengths.tolist() == [2000]


def test_datasets_that_cannot_be_indexed():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([])

    for dataset, message in {Stream(): "no __len__ and __getitem__", (): "is empty"}.items():
        with pytest.raises(DataError, match=message):
            TorchDatasetAdapter(dataset, seconds=1.0, sample_rate=RATE)


def test_a_torch_dataset_random_segments_and_a_split():
    ramp = torch.arange(RATE * 3, dtype=torch.float32)[None] / 2**15
    data = TorchDatasetAdapter(TensorDataset(ramp.expand(10, -1)), seconds=1.0, sample_rate=RATE, data_rate=RATE)
    starts = {int(data[SampleIndex(0, epoch)]["audio"].wave[0, 0, 0] * 2**15) for epoch in range(20)}
    assert len(starts) > 15 and all(0 <= start <= 2 * RATE for start in starts)
    assert torch.equal(data[SampleIndex(4, 2)]["audio"].wave, data[SampleIndex(4, 2)]["audio"].wave)
    rest, held = data.split(3)
    names = sorted([rest.item_id(i) for i in range(7)] + [held.item_id(i) for i in range(3)])
    assert names == [str(i) for i in range(10)] and held[SampleIndex(0, 5)]["seconds_start"] == 0


def test_a_path_as_audio(tmp_path):
    audio_io.write_samples(tmp_path / "a.wav", np.full((400, 1), 0.5, np.float32), RATE)
    assert item({"audio": str(tmp_path / "a.wav")}, data_rate=None)["audio"].lengths.tolist() == [400]
