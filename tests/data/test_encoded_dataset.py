"""Folders of arrays: windows that know where they are, of latents or codes, refused where they do not fit."""

import numpy as np
import pytest
import torch
from arrays import LATENTS, encoded

from cadenza.core.errors import DataError
from cadenza.core.types import FrameFormat
from cadenza.data.encoded_dataset import PreEncodedDataset, PreEncodedFolder, is_pre_encoded, scan_pre_encoded
from cadenza.data.items import SampleIndex
from cadenza.data.loader import collate

CODES = FrameFormat("codes", 25.0, 2, 16)


@pytest.fixture
def folder(tmp_path):
    encoded(tmp_path / "0/000.npy", 100, start=10, prompt=["one", "two"])
    encoded(tmp_path / "0/001.npy", 30, real=18, prompt="short")
    encoded(tmp_path / "1/ü.npy", 50, prompt="third")
    (tmp_path / "details.json").write_text("{}")
    return tmp_path


def test_windows_say_where_they_are(folder):
    data = PreEncodedDataset(scan_pre_encoded(folder), frames=25, frame_format=LATENTS)
    assert [data.item_id(i) for i in range(len(data))] == ["0/000"] * 4 + ["0/001"] + ["1/ü"] * 2 and data.frame_rate == 25
    starts, prompts = set(), set()
    for epoch in range(1000):
        item = data[SampleIndex(0, epoch)]
        z = item["latents"].z[0]
        first = int(z[0, 0])
        assert torch.equal(z, torch.arange(25.0) + first + 1000 * torch.arange(4.0)[:, None])
        assert item["seconds_start"] == 10 + first / 25 and item["seconds_total"] == 60
        starts.add(first)
        prompts.add(item["prompt"])
        assert set(item) == {"id", "prompt", "latents", "seconds_start", "seconds_total"}
    assert starts == set(range(76)) and prompts == {"one", "two"}
    short = data[SampleIndex(4)]
    assert short["latents"].lengths.tolist() == [18] and not short["latents"].z[..., 18:].any()
    assert collate([short, data[SampleIndex(0)]], frame_rate=25).seconds == pytest.approx((18 + 25) / 25)


def test_fixed_split_and_described(folder):
    data = PreEncodedDataset(scan_pre_encoded(folder), frames=25, frame_format=LATENTS, ids={"prompt"})
    rest, held = data.split(1)
    names = [{part.item_id(i) for i in range(len(part))} for part in (rest, held)]
    assert len(names[0]) == 2 and len(names[1]) == 1 and not names[0] & names[1]
    assert [held[SampleIndex(i, 3)]["latents"].z[0, 0, 0] for i in range(len(held))] == [25.0 * i for i in range(len(held))]
    assert {item["id"] for item in data.metadata_items()} == {"0/000", "0/001", "1/ü"} and not rest.fixed
    with pytest.raises(DataError, match="cannot hold out 3 of 3"):
        data.split(3)


def test_functions_and_crops_at_the_start(folder):
    arrays = PreEncodedFolder(scan_pre_encoded(folder).clips, random_crop=False, frames=10)
    data = PreEncodedDataset(
        arrays.with_transform(lambda item, segment: {**item, "where": segment.start}), frames=99, frame_format=LATENTS
    )
    assert len(data) == 3 and data.frames == 10
    assert {
        (data[SampleIndex(0, epoch)]["where"], float(data[SampleIndex(0, epoch)]["latents"].z[0, 0, 0])) for epoch in range(20)
    } == {(10, 0)}
    with pytest.raises(DataError, match="no audio"):
        PreEncodedDataset(arrays.with_transform(lambda item, segment: {"x": segment.audio}), frames=9, frame_format=LATENTS)[0]
    with pytest.raises(DataError, match="cannot be rejected"):
        PreEncodedDataset(arrays.with_transform(lambda item, segment: None), frames=9, frame_format=LATENTS)[0]


def test_codes(tmp_path):
    encoded(tmp_path / "a.npy", 40, codes=True)
    item = PreEncodedDataset(scan_pre_encoded(tmp_path), frames=8, frame_format=CODES)[SampleIndex(2)]
    assert item["codes"].ids.dtype == torch.long and item["codes"].ids.shape == (1, 2, 8)
    assert ((item["codes"].ids[0, 0].diff()) % 16 == 1).all()
    for frame_format, message in (
        (LATENTS, "contains codes of 2 rows, but the codec has latents of 4"),
        (FrameFormat("codes", 25.0, 4, 16), "codes of 2 rows, .* codes of 4"),
        (FrameFormat("codes", 25.0, 2, 8), "codes outside 0 to 7"),
    ):
        with pytest.raises(DataError, match=message):
            PreEncodedDataset(scan_pre_encoded(tmp_path), frames=8, frame_format=frame_format)[0]


def test_filelist_and_damage(folder, tmp_path):
    (folder / "filelist.txt").write_text("1/ü.npy\n0/001.npy\n")
    assert [clip.id for clip in scan_pre_encoded(folder, prefix="x/").clips] == ["x/1/ü", "x/0/001"]
    (folder / "filelist.txt").write_text("gone.npy\n")
    with pytest.raises(DataError, match="1 files not found, the first is .*gone.npy"):
        scan_pre_encoded(folder)
    (folder / "filelist.txt").unlink()
    for data, message in (
        (b"junk", "not a complete .npy"),
        ((folder / "1/ü.npy").read_bytes()[:300], "not a complete .npy"),
        (None, "object|pickle"),
    ):
        if data is None:
            np.save(folder / "0/000.npy", np.array([{}], dtype=object), allow_pickle=True)
        else:
            (folder / "0/000.npy").write_bytes(data)
        with pytest.raises(DataError, match=message):
            scan_pre_encoded(folder)
    np.save(folder / "0/000.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"contains float64 \[3\]"):
        scan_pre_encoded(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no .npy"):
        scan_pre_encoded(tmp_path / "empty")
    assert is_pre_encoded(folder) and not is_pre_encoded(tmp_path / "empty")
