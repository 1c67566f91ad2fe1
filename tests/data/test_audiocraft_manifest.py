"""AudioCraft manifests: the same clips, cleaned metadata, weights; every wrong line by its number."""

import gzip
import json
import zipfile
from collections import Counter

import numpy as np
import pytest

from cadenza.core.errors import AudioError, DataError
from cadenza.data.audio_dataset import AudioDataset
from cadenza.data.audiocraft_manifest import load_audiocraft_manifest
from cadenza.data.items import SampleIndex
from cadenza.data.manifest import Manifest
from cadenza.data.music_metadata import PromptMixer
from cadenza.data.sources import load_manifest
from cadenza.dsp import audio_io

RATE = 8000


def tone(path, seconds=1.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    audio_io.write_samples(path, np.full((round(seconds * RATE), 1), 0.25, np.float32), RATE)
    return path


def line(path, duration=1.0, **more):
    return json.dumps({"path": str(path), "duration": duration, "sample_rate": RATE, "amplitude": None, "weight": None, **more})


@pytest.fixture
def folder(tmp_path):
    """Three clips with metadata next to them, elsewhere and in a zip."""
    for name in ("a.wav", "sub/b.mp3", "sub/ü c.flac"):
        tone(tmp_path / name)
    info = {"title": "T", "artist": "", "key": "A minor, C", "bpm": "90.5", "genre": "Rock", "description": "Loud."}
    (tmp_path / "a.json").write_text(json.dumps(info))
    (tmp_path / "elsewhere.json").write_text(json.dumps({"description": "Elsewhere", "moods": ["Sad"]}))
    with zipfile.ZipFile(tmp_path / "infos.zip", "w") as archive:
        archive.writestr("in/c.json", json.dumps({"description": "Zipped", "bpm": None}))
    lines = [
        line("a.wav", info_path=None),
        line("sub/b.mp3", info_path="elsewhere.json"),
        line("sub/ü c.flac", info_path="infos.zip:in/c.json", amplitude=0.9),
    ]
    with gzip.open(tmp_path / "data.jsonl.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(lines) + "\n")
    return tmp_path


def test_a_gzipped_manifest_in_a_folder(folder):
    manifest, report = load_manifest(folder)
    assert [clip.id for clip in manifest.clips] == ["a.wav", "sub/b.mp3", "sub/ü c.flac"] and report.read == 3
    assert manifest.clips[0].metadata() == {
        "title": "T", "bpm": 90.5, "genre": "rock", "description": "Loud.", "prompt": "Loud."
    }  # fmt: skip
    assert manifest.clips[1].metadata() == {"description": "Elsewhere", "moods": ["sad"], "prompt": "Elsewhere"}
    assert manifest.clips[2].metadata() == {"description": "Zipped", "prompt": "Zipped"}
    assert manifest.clips[0].info() == audio_io.AudioFileInfo(RATE, 1, RATE)
    item = AudioDataset(manifest, seconds=0.5, sample_rate=RATE)[SampleIndex(4)]
    assert item["id"] == "sub/ü c.flac" and item["prompt"] == "Zipped" and item["audio"].lengths.tolist() == [RATE // 2]


def test_plain_absolute_and_found_from_where_one_is(folder, tmp_path, monkeypatch):
    (tmp_path / "lists").mkdir()
    plain = tmp_path / "lists/mine.jsonl"
    plain.write_text(line("a.wav") + "\n\n" + line(tmp_path / "sub/b.mp3"))
    monkeypatch.chdir(tmp_path)
    manifest, _ = load_manifest(plain)
    assert [clip.audio for clip in manifest.clips] == [tmp_path / "a.wav", tmp_path / "sub/b.mp3"]
    monkeypatch.chdir(tmp_path / "lists")
    plain.write_text(line("a.wav"))
    with pytest.raises(DataError, match=r"none of the first 1 clips was found. Tried .*lists.a.wav and .*run from the folder"):
        load_audiocraft_manifest(plain)
    with pytest.raises(DataError, match="AudioCraft"):
        Manifest.load(plain)


def test_a_missing_file_is_named_when_it_is_read(folder):
    (folder / "a.wav").unlink()
    clips = AudioDataset(load_manifest(folder)[0], seconds=1.0, sample_rate=RATE)
    with pytest.raises(AudioError, match="a.wav: no such file"):
        clips[SampleIndex(0)]


def test_weights_say_how_often(folder):
    (folder / "data.jsonl.gz").unlink()
    weights = {"a.wav": 1, "sub/b.mp3": 0.25, "sub/ü c.flac": 0}
    (folder / "data.jsonl").write_text("\n".join(line(name, weight=weight) for name, weight in weights.items()))
    clips = AudioDataset(load_manifest(folder)[0], seconds=0.25, sample_rate=RATE)
    counts = Counter(clips.item_id(i) for i in range(len(clips)))
    assert counts["a.wav"] == 4 * counts["sub/b.mp3"] > 0 and set(counts) == {"a.wav", "sub/b.mp3"}
    held = AudioDataset(load_manifest(folder)[0], seconds=0.25, sample_rate=RATE, fixed=True)
    assert sorted(held[SampleIndex(i)]["seconds_start"] for i in range(len(held))) == [0, 0, 0.25, 0.25, 0.5, 0.5, 0.75, 0.75]


def test_texts_are_mixed_by_the_draw(folder):
    def prompts(clips):
        return [clips[SampleIndex(i, epoch)].get("prompt") for epoch in range(20) for i in range(3)]

    manifest = load_manifest(folder)[0]
    one = AudioDataset(manifest, seconds=1.0, sample_rate=RATE, ids={"prompt"}, to_item=PromptMixer(merge=1, keep_field=1))
    other = AudioDataset(manifest.with_transform(PromptMixer(merge=1, keep_field=1)), seconds=1.0, sample_rate=RATE)
    assert prompts(one) == prompts(other) and len(set(prompts(one))) == 8
    assert "moods" in other[SampleIndex(1)] and "moods" not in one[SampleIndex(1)]
    assert [item["prompt"] for item in other.metadata_items()] == ["Loud.", "Elsewhere", "Zipped"]
    rest, held = one.split(1)
    assert rest.to_item is one.to_item and held[SampleIndex(0)]["prompt"] in ("Loud.", "Elsewhere", "Zipped")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("{no json", ":2: not JSON"),
        ("[1]", ':2: .*"path"'),
        ('{"duration": 1}', ':2: .*"path"'),
        ('{"path": "b.wav", "duration": "long"}', ":2: 'duration' must be a positive number, got 'long'"),
        ('{"path": "b.wav", "sample_rate": 0}', ":2: 'sample_rate' must be"),
        ('{"path": "b.wav", "weight": -1}', ":2: 'weight' must be a number of at least 0"),
        ('{"path": "b.wav", "weight": NaN}', ":2: 'weight' must be a number"),
        ('{"path": "b.wav", "info_path": {}}', ":2: 'info_path' must be a path"),
        ('{"path": "a.wav"}', "two clips have the id 'a.wav'"),
    ],
)
def test_wrong_lines_are_numbered(folder, wrong, message):
    (folder / "data.jsonl").write_text(f"{line('a.wav')}\n{wrong}\n")
    with pytest.raises(DataError, match=message):
        load_audiocraft_manifest(folder / "data.jsonl")


def test_damaged_and_empty_files(folder):
    path = folder / "data.jsonl.gz"
    many = gzip.compress("".join(line(f"{i}.wav", noise=i * 7919 % 104729) + "\n" for i in range(500)).encode())
    path.write_bytes(many[: len(many) // 2])
    with pytest.raises(DataError, match=r"data.jsonl.gz: cut short after line [1-9]\d*; download"):
        load_audiocraft_manifest(path)
    path.write_bytes(b"not gzip")
    with pytest.raises(DataError, match="not a readable manifest"):
        load_audiocraft_manifest(path)
    path.write_bytes(gzip.compress(b"\n"))
    with pytest.raises(DataError, match="lists no clip"):
        load_audiocraft_manifest(path)


@pytest.mark.parametrize("info", ["gone.json", "infos.zip:in/gone.json", "a.wav", "gone.zip:c.json"])
def test_info_that_cannot_be_read(folder, info):
    (folder / "data.jsonl").write_text(line("a.wav", info_path=info))
    clip = load_audiocraft_manifest(folder / "data.jsonl").clips[0]
    with pytest.raises(DataError, match=r"the clip's info cannot be read"):
        clip.metadata()
