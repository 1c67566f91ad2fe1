"""Shards: read at any place, written so that they come back the same, damage named with its place."""

import io
import json
import tarfile
from itertools import islice

import numpy as np
import pytest
import torch

from cadenza.core.errors import DataError
from cadenza.data.audio_dataset import AudioDataset
from cadenza.data.items import SampleIndex
from cadenza.data.loader import BatchLoader, BatchSampler
from cadenza.data.manifest import scan_folder
from cadenza.data.sources import load_manifest
from cadenza.data.webdataset import index_shard, load_shards, write_shards
from cadenza.dsp import audio_io
from cadenza.dsp.audio import load_audio as hear

RATE = 8000


def tar(path, members):
    with tarfile.open(path, "w") as out:
        for name, data in members.items():
            header = tarfile.TarInfo(name)
            header.size = len(data)
            out.addfile(header, io.BytesIO(data))
    return path


def ramp(path, seconds=1.0, first=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    audio_io.write_samples(path, (np.arange(first, first + round(seconds * RATE), dtype=np.float32) / 2**16)[:, None], RATE)
    return path


@pytest.fixture
def folder(tmp_path):
    """Seven clips of several formats whose ids have dots, slashes, percent signs and letters beyond ASCII."""
    names = ["a.wav", "b.1.flac", "sub/ü%2E c.ogg", "sub/d.mp3", "e.wav", "f.wav", "g.opus"]
    for i, name in enumerate(names):
        ramp(tmp_path / "loose" / name, 0.5 + i / 10, 1000 * i)
        (tmp_path / "loose" / name).with_suffix(".json").write_text(json.dumps({"prompt": f"clip ü {i}", "tempo": 60 + i}))
    (tmp_path / "loose/e.json").unlink()
    return tmp_path


def test_what_is_written_comes_back(folder):
    manifest, _ = scan_folder(folder / "loose")
    said = []
    report = write_shards(manifest, folder / "shards", clips=3, progress=lambda done, total: said.append((done, total)))
    assert report.read == 7 and said == [(3, 7), (6, 7), (7, 7)]
    assert [path.name for path in sorted((folder / "shards").iterdir())] == [f"shard-0000{i}.tar" for i in range(3)]
    again, report = load_manifest(folder / "shards")
    assert [clip.id for clip in again.clips] == [clip.id for clip in manifest.clips] and report.read == 7
    assert again.digest() == manifest.digest()
    for mine, theirs in zip(again.clips, manifest.clips, strict=True):
        assert mine.metadata() == theirs.metadata() and mine.info() == theirs.info()
        assert hear(mine.audio).wave.equal(hear(theirs.audio).wave)
        assert hear(mine.audio, 700, 900).wave.equal(hear(theirs.audio, 700, 900).wave)


def test_other_programs_read_them(folder):
    """A WebDataset reader groups consecutive members by their name up to the first dot of the base name."""
    write_shards(scan_folder(folder / "loose")[0], folder / "shards", clips=10)
    with tarfile.open(folder / "shards/shard-00000.tar") as shard:
        names = shard.getnames()
        assert shard.extractfile("a.wav").read() == (folder / "loose/a.wav").read_bytes()
    keys = [name.rpartition("/")[0] + "/" + name.rpartition("/")[2].partition(".")[0] for name in names]
    assert len(set(keys)) == 7 and all(keys[i] == keys[i - 1] or keys[i] not in keys[:i] for i in range(1, len(keys)))
    assert not any(name.startswith("/") or ".." in name.split("/") for name in names)


def test_segments_batches_and_going_on_are_as_for_loose_files(folder):
    manifest, _ = scan_folder(folder / "loose")
    write_shards(manifest, folder / "shards", clips=2)
    packed, _ = load_manifest(folder / "shards")

    def batches(source, workers, start, count):
        clips = AudioDataset(source, seconds=0.25, sample_rate=RATE)
        loader = BatchLoader(clips, BatchSampler(len(clips), 4, seed=2), workers=workers, pin=False)
        return [(b.ids, [m.get("prompt") for m in b.metadata], b.audio.wave) for b in islice(loader.iter_from(start), count)]

    whole = batches(manifest, 0, 0, 8)
    for one, other in zip(batches(packed, 2, 3, 5), whole[3:], strict=True):
        assert one[:2] == other[:2] and torch.equal(one[2], other[2])


def wav(folder, name="x.wav"):
    return ramp(folder / name).read_bytes()


def test_shards_of_others(tmp_path):
    sound = wav(tmp_path)
    (tmp_path / "x.wav").unlink()
    tar(tmp_path / "one.tar", {
        "./0.wav": sound, "./0.txt": b"from  txt\n", "./0.cls": b"7", "./0.jpg": b"picture", "readme": b"-",
        "1.FLAC.json": b"{}", "1.wav": sound, "1.json": '{"text": "für", "id": 9}'.encode(),
    })  # fmt: skip
    tar(tmp_path / "two.tar", {"0.wav": sound, "0.json": b'{"prompt": "mine", "text": "theirs"}'})
    manifest, report = load_manifest(tmp_path)
    assert [clip.id for clip in manifest.clips] == ["one/0", "one/1", "two/0"] and not report.broken
    assert [clip.metadata() for clip in manifest.clips] == [
        {"prompt": "from txt", "class": 7}, {"text": "für", "prompt": "für"}, {"prompt": "mine", "text": "theirs"},
    ]  # fmt: skip
    assert [clip.id for clip in load_manifest(tmp_path / "one.tar")[0].clips] == ["0", "1"]
    item = AudioDataset(manifest, seconds=0.5, sample_rate=RATE, fixed=True)[SampleIndex(1)]
    assert item["seconds_start"] == 0.5 and item["audio"].wave[0, 0, 0] * 2**16 == pytest.approx(RATE / 2, abs=2)


def test_samples_that_cannot_be_used_are_named(tmp_path):
    sound = wav(tmp_path)
    tar(tmp_path / "s.tar", {"a.wav": sound, "b.txt": b"no sound", "c.wav": sound, "c.flac": sound, "d.wav": b"junk" * 99})
    manifest, report = load_shards([tmp_path / "s.tar"])
    assert [clip.id for clip in manifest.clips] == ["a"] and set(report.broken) == {"b", "c", "d"}
    assert "s.tar:b: no audio" in report.broken["b"] and "s.tar:d.wav: not audio" in report.broken["d"]
    assert "more than one audio" in report.broken["c"]
    with pytest.raises(DataError, match="cannot read item 'b'"):
        load_shards([tmp_path / "s.tar"], on_broken_file="raise")
    tar(tmp_path / "j.tar", {"a.wav": sound, "a.json": b"{broken"})
    with pytest.raises(DataError, match=r"j.tar:a.json: cannot be read"):
        load_shards([tmp_path / "j.tar"])[0].clips[0].metadata()


def test_a_cut_or_damaged_shard_names_itself_and_the_place(tmp_path):
    sound = wav(tmp_path)
    whole = tar(tmp_path / "s.tar", {"a.wav": sound, "b.wav": sound, "b.json": b"{}"}).read_bytes()
    second = 512 + len(sound) + -len(sound) % 512  # where the header of b.wav is
    cut = tmp_path / "cut.tar"
    for size, message in {
        second
        + 512
        + 100: rf"cut.tar: cut short: 'b.wav' ends at byte {second + 512 + len(sound)}, but the file at {second + 612}",
        512 + 7: "cut.tar: cut short: 'a.wav' ends at",
        second: f"cut.tar: cut short after 'a.wav', at byte {second}",
        second + 100: f"cut.tar: (cut short|damaged) after 'a.wav', at byte {second}",
        100: "cut.tar: not a plain tar",
        0: "cut.tar: not a plain tar|cut.tar: an empty tar",
    }.items():
        cut.write_bytes(whole[:size])
        with pytest.raises(DataError, match=message):
            index_shard(cut)
    cut.write_bytes(whole[:second] + b"x" * 512 + whole[second + 512 :])
    with pytest.raises(DataError, match=f"cut.tar: damaged after 'a.wav', at byte {second}"):
        index_shard(cut)
    with tarfile.open(tmp_path / "z.tar", "w:gz") as out:
        out.add(tmp_path / "x.wav", "x.wav")
    with pytest.raises(DataError, match="compressed"):
        index_shard(tmp_path / "z.tar")


def test_members_that_are_no_files_are_refused(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as out:
        header = tarfile.TarInfo("a.wav")
        header.type, header.linkname = tarfile.SYMTYPE, "/etc/passwd"
        out.addfile(header)
    with pytest.raises(DataError, match="'a.wav' is a link"):
        index_shard(tmp_path / "s.tar")
    with tarfile.open(tmp_path / "t.tar", "w") as out:
        for _ in range(2):
            out.addfile(tarfile.TarInfo("a.wav"))
    with pytest.raises(DataError, match="'a.wav' occurs twice"):
        index_shard(tmp_path / "t.tar")


def test_what_cannot_be_written(folder):
    manifest, _ = scan_folder(folder / "loose")
    (folder / "loose/f.wav").write_bytes(b"gone")
    with pytest.raises(DataError, match="cannot read item 'f'"):
        write_shards(manifest, folder / "shards")
    assert not list((folder / "shards").iterdir())
    report = write_shards(manifest, folder / "shards", on_broken_file="skip")
    assert report.read == 6 and list(report.broken) == ["f"] and len(load_manifest(folder / "shards")[0]) == 6
    with pytest.raises(DataError, match="already contains 1 shards"):
        write_shards(manifest, folder / "shards")
    ramp(folder / "shards/loose.wav")
    with pytest.raises(DataError, match="1 shards and 1 audio files"):
        load_manifest(folder / "shards")
    with pytest.raises(DataError, match="which a manifest cannot list"):
        load_manifest(folder / "shards/shard-00000.tar")[0].write(folder / "m.jsonl")
