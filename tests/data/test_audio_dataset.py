"""AudioDataset: segments and lengths agree with the files, and equal indices give equal items."""

import json

import numpy as np
import pytest
import soxr
import torch

from cadenza.core.errors import AudioError, DataError
from cadenza.data.audio_dataset import AudioDataset
from cadenza.data.items import SampleIndex, pick_alternatives
from cadenza.data.manifest import Manifest, scan_folder
from cadenza.dsp import audio_io

RATE = 8000


@pytest.fixture
def folder(tmp_path):
    """A ramp that says in each sample where it is, a clip of a tenth of a second, and a stereo one."""
    audio_io.write_samples(tmp_path / "ramp.wav", np.arange(RATE * 5, dtype=np.float32)[:, None] / 2**16, RATE, subtype="FLOAT")
    audio_io.write_samples(tmp_path / "short.wav", np.full((800, 1), 0.5, np.float32), RATE)
    stereo = np.stack([np.full(RATE * 2, 0.5), np.full(RATE * 2, -0.25)], 1).astype(np.float32)
    audio_io.write_samples(tmp_path / "stereo.wav", stereo, RATE)
    (tmp_path / "ramp.json").write_text(json.dumps({"prompt": ["one", "two", "three"], "tempo": 90.0, "notes": [[0, 1]]}))
    return scan_folder(tmp_path)[0]


def where(item):
    return int(item["audio"].wave[0, 0, 0] * 2**16)


def test_segments_are_where_they_say(folder):
    clips = AudioDataset(folder, seconds=1.0, sample_rate=RATE)
    assert [clips.item_id(i) for i in range(len(clips))] == ["ramp"] * 5 + ["short"] + ["stereo"] * 2
    starts = set()
    for epoch in range(50):
        item = clips[SampleIndex(0, epoch)]
        wave = item["audio"].wave[0, 0] * 2**16
        assert torch.equal(wave, torch.arange(RATE) + wave[0])
        assert item["seconds_start"] == where(item) / RATE and item["seconds_total"] == 5.0
        starts.add(where(item))
    assert len(starts) > 45 and max(starts) > 3 * RATE and min(starts) < RATE and max(starts) <= 4 * RATE


def test_short_clips_are_padded_and_say_so(folder):
    item = AudioDataset(folder, seconds=1.0, sample_rate=RATE)[SampleIndex(5)]
    assert item["audio"].wave.shape == (1, 1, RATE) and item["audio"].lengths.tolist() == [800]
    assert (item["audio"].wave[0, 0, :800] == 0.5).all() and not item["audio"].wave[0, 0, 800:].any()
    assert item["seconds_total"] == 0.1


def test_a_draw_depends_on_seed_epoch_and_index_alone(folder):
    one, other = AudioDataset(folder, seconds=1.0, sample_rate=RATE), AudioDataset(folder, seconds=1.0, sample_rate=RATE)
    assert where(one[SampleIndex(3, 7)]) == where(other[SampleIndex(3, 7)])
    assert len({where(one[SampleIndex(i, e)]) for i in range(5) for e in range(3)}) == 15
    assert where(AudioDataset(folder, seconds=1.0, sample_rate=RATE, seed=1)[SampleIndex(3, 7)]) != where(
        one[SampleIndex(3, 7)]
    )


def test_fixed_segments_cover_the_clip_in_order(folder):
    clips = AudioDataset(folder, seconds=1.0, sample_rate=RATE, fixed=True)
    assert [where(clips[SampleIndex(i, epoch)]) for epoch, i in enumerate(range(5))] == [i * RATE for i in range(5)]
    assert clips[SampleIndex(0, 3)]["prompt"] == "one"


def test_channels_and_rate_are_converted(folder):
    item = AudioDataset(folder, seconds=1.0, sample_rate=RATE)[SampleIndex(6)]
    torch.testing.assert_close(item["audio"].wave, torch.full((1, 1, RATE), 0.125), atol=1e-4, rtol=0)
    clips = AudioDataset(folder, seconds=1.0, sample_rate=16_000, channels=2, fixed=True)
    item = clips[SampleIndex(1)]
    assert item["audio"].wave.shape == (1, 2, 16_000) and item["audio"].sample_rate == 16_000
    expected = soxr.resample(np.arange(RATE, 2 * RATE, dtype=np.float32) / 2**16, RATE, 16_000)
    np.testing.assert_allclose(item["audio"].wave[0, 1].numpy(), expected, atol=1e-5)
    assert clips[SampleIndex(5)]["audio"].lengths.tolist() == [1600]


def test_one_of_several_captions_a_draw(folder):
    clips = AudioDataset(folder, seconds=1.0, sample_rate=RATE)
    drawn = [clips[SampleIndex(0, epoch)]["prompt"] for epoch in range(60)]
    assert set(drawn) == {"one", "two", "three"} and drawn[0] == clips[SampleIndex(0, 0)]["prompt"]
    assert pick_alternatives({"a": [], "b": [[1]], "c": [1, 2]}, None) == {"a": None, "b": [[1]], "c": [1, 2]}


def test_only_the_wanted_metadata_travels(folder):
    assert "notes" in AudioDataset(folder, seconds=1.0, sample_rate=RATE)[SampleIndex(0)]
    item = AudioDataset(folder, seconds=1.0, sample_rate=RATE, ids={"tempo"})[SampleIndex(0)]
    assert set(item) == {"id", "audio", "tempo", "seconds_start", "seconds_total"}


def test_a_file_that_breaks_later_is_named(folder):
    clips = AudioDataset(folder, seconds=1.0, sample_rate=RATE)
    path = folder.clips[0].audio
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(AudioError, match="ramp.wav: cut short"):
        clips[SampleIndex(0)]
    path.unlink()
    with pytest.raises(AudioError, match="ramp.wav: no such file"):
        clips[SampleIndex(0)]
    audio_io.write_samples(path, np.zeros((RATE * 10, 1), np.float32), 2 * RATE)
    with pytest.raises(AudioError, match="sample rate is 16000 Hz, but the manifest has 8000"):
        clips[SampleIndex(0)]


def test_no_segment(folder):
    with pytest.raises(DataError, match="shorter than one sample"):
        AudioDataset(folder, seconds=0, sample_rate=RATE)


def test_split(folder):
    rest, held = AudioDataset(folder, seconds=1.0, sample_rate=RATE).split(1)
    names = {rest.item_id(i) for i in range(len(rest))}, {held.item_id(i) for i in range(len(held))}
    assert held.fixed and not rest.fixed and len(names[0]) == 2 and len(names[1]) == 1 and not names[0] & names[1]


def test_a_holdout_is_kept_when_data_is_added(tmp_path):
    lines = [f'{{"audio": "{i}.wav"}}\n' for i in range(200)]

    def load(lines):
        (tmp_path / "m.jsonl").write_text("".join(lines))
        return AudioDataset(Manifest.load(tmp_path / "m.jsonl"), seconds=1.0, sample_rate=RATE)

    def ids(data):
        return {data.item_id(i) for i in range(len(data))}

    train, holdout = load(lines).split(20)
    assert len(train) == 180 and len(holdout) == 20 and ids(train) | ids(holdout) == {str(i) for i in range(200)}
    smaller, smaller_holdout = load(lines[::-1][:-100]).split(10)
    assert len(ids(holdout) & ids(smaller_holdout)) >= 5 and len(smaller) == 90
    assert ids(train.split(5)[1]).isdisjoint(ids(holdout)) and len(train.split(5)[0]) == 175
    with pytest.raises(DataError, match="cannot hold out 200 of 200"):
        load(lines).split(200)
