"""Manifests: from folders with sidecars, in a fixed order, with every broken file named."""

import json

import numpy as np
import pytest

from cadenza.core.errors import DataError
from cadenza.data.manifest import Manifest, scan_folder
from cadenza.data.sources import is_encoded_store, load_manifest
from cadenza.dsp import audio_io


def tone(path, seconds=0.1, rate=8000, channels=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    audio_io.write_samples(path, np.full((round(seconds * rate), channels), 0.25, np.float32), rate)
    return path


def test_a_folder_with_sidecars(tmp_path):
    tone(tmp_path / "b.wav", 0.5)
    tone(tmp_path / "a/z.flac", 0.25, 16_000, 2).with_suffix(".txt").write_text("slow\n piano ")
    tone(tmp_path / "a/y.ogg").with_suffix(".json").write_text(json.dumps({"prompt": ["x", "y"], "tempo": 80.0, "id": "other"}))
    tone(tmp_path / ".hidden/q.wav")
    (tmp_path / "readme.md").write_text("not audio")
    manifest, report = scan_folder(tmp_path)
    assert [clip.id for clip in manifest.clips] == ["a/y", "a/z", "b"]
    assert report.read == 3 and not report.broken and str(report) == "3 items, none broken"
    assert manifest.clips[0].metadata() == {"prompt": ["x", "y"], "tempo": 80.0}
    assert manifest.clips[1].metadata() == {"prompt": "slow piano"}
    assert manifest.clips[1].info() == audio_io.AudioFileInfo(16_000, 2, 4000)
    assert manifest.clips[2].seconds == 0.5 and manifest.clips[2].metadata() == {}


def test_json_counts_more_than_txt_and_the_manifest_more_than_both(tmp_path):
    audio = tone(tmp_path / "a.wav")
    audio.with_suffix(".txt").write_text("from txt")
    audio.with_suffix(".json").write_text('{"prompt": "from json", "key": "A minor"}')
    (tmp_path / "manifest.jsonl").write_text('{"audio": "a.wav", "key": "C major"}\n')
    assert Manifest.load(tmp_path / "manifest.jsonl").clips[0].metadata() == {"prompt": "from json", "key": "C major"}


def test_written_and_read_again_from_elsewhere(tmp_path):
    tone(tmp_path / "music/ä.wav")
    tone(tmp_path / "music/b.wav", 1 / 3, 44_100)
    manifest, _ = scan_folder(tmp_path / "music")
    (tmp_path / "lists").mkdir()
    manifest.write(tmp_path / "lists/all.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "lists/all.jsonl").read_text().splitlines()]
    assert lines[1] == {"id": "ä", "audio": "../music/ä.wav", "seconds": 0.1, "sample_rate": 8000, "channels": 1}
    again = Manifest.load(tmp_path / "lists/all.jsonl")
    assert [clip.id for clip in again.clips] == ["b", "ä"] and again.digest() == manifest.digest()
    assert again.clips[0].info() == audio_io.probe(tmp_path / "music/b.wav")


def test_broken_files_are_counted_and_named(tmp_path):
    tone(tmp_path / "good.wav")
    data = tone(tmp_path / "cut.wav", 1.0).read_bytes()
    (tmp_path / "cut.wav").write_bytes(data[:5000])
    (tmp_path / "junk.mp3").write_bytes(b"no music" * 100)
    tone(tmp_path / "sidecar.wav").with_suffix(".json").write_text("{broken")
    tone(tmp_path / "list.wav").with_suffix(".json").write_text("[1]")
    manifest, report = scan_folder(tmp_path)
    assert [clip.id for clip in manifest.clips] == ["good"]
    assert set(report.broken) == {"cut.wav", "junk.mp3", "sidecar.wav", "list.wav"}
    assert "cut short" in report.broken["cut.wav"] and "mapping" in report.broken["list.wav"]
    assert "1 items, 4 broken:\n  cut.wav: " in str(report)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{no json", ":2: not JSON"),
        ("[1, 2]", ":2: a line must be a mapping"),
        ('{"prompt": "x"}', ':2: .*"audio"'),
        ('{"audio": "b.wav", "seconds": "ten"}', "'seconds' must be a positive number, got 'ten'"),
        ('{"audio": "b.wav", "sample_rate": -1}', "'sample_rate' must be a positive number"),
        ('{"audio": "a.flac"}', "two clips have the id 'a': .*a.wav and .*a.flac"),
    ],
)
def test_bad_lines_are_named(tmp_path, line, message):
    (tmp_path / "m.jsonl").write_text(f'{{"audio": "a.wav"}}\n{line}\n')
    with pytest.raises(DataError, match=message):
        Manifest.load(tmp_path / "m.jsonl")


def test_the_same_stem_twice_in_a_folder(tmp_path):
    tone(tmp_path / "a.wav")
    tone(tmp_path / "a.flac")
    with pytest.raises(DataError, match="two clips have the id 'a'"):
        scan_folder(tmp_path)


def test_nothing_there(tmp_path):
    (tmp_path / "m.jsonl").write_text("\n")
    for path, message in {"m.jsonl": "lists no clip", "missing": "no such file or folder", ".": "no usable audio"}.items():
        with pytest.raises(DataError, match=message):
            load_manifest(tmp_path / path)


def test_source_takes_folder_manifest_or_folder_with_manifest(tmp_path):
    for name in "ab":
        tone(tmp_path / f"{name}.wav")
    assert len(load_manifest(tmp_path)[0]) == 2 and not is_encoded_store(tmp_path)
    (tmp_path / "manifest.jsonl").write_text('{"audio": "b.wav"}\n')
    assert [clip.id for clip in load_manifest(tmp_path)[0].clips] == ["b"]
    assert [clip.id for clip in load_manifest(tmp_path / "manifest.jsonl")[0].clips] == ["b"]
    with pytest.raises(DataError, match="one audio file"):
        load_manifest(tmp_path / "a.wav")
