"""Validation: every planted issue is reported for its file, and none for a clean folder; histograms count every value."""

import json
import math
import shutil

import numpy as np
import pytest
import soundfile
from tunes import RATE, caption, clean_folder, save, tune

from cadenza.core.errors import DataError
from cadenza.data.manifest import scan_folder
from cadenza.data.validation import DURATION_EDGES, LOUDNESS_EDGES, Histogram, validate_dataset
from cadenza.data.webdataset import write_shards
from cadenza.dsp.audio import resample


def issues(report):
    return {(issue.clip, issue.kind) for issue in report.issues}


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return clean_folder(tmp_path_factory.mktemp("clean"))


@pytest.fixture
def folder(clean, tmp_path):
    return shutil.copytree(clean, tmp_path / "müsic")


def cut(path, share):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])


def test_a_clean_folder_has_no_issues(clean):
    report = validate_dataset(clean)
    assert issues(report) == set() and report.clips == 22 and not report.notes
    assert report.seconds == pytest.approx(44, abs=0.1) and "no issues" in str(report)
    assert report.sample_rates == {RATE: 22} and report.channels == {1: 22}
    assert sum(report.lengths.counts) == sum(report.loudness.counts) == 22


def plant(folder):
    """Add issues of twelve kinds; return the set of (file, kind)."""
    (folder / "unreadable.mp3").write_bytes(b"this was never audio" * 50)
    (folder / "unreadable.txt").write_text("a promise")
    cut(save(folder / "truncated.flac", tune(101), caption(101)), 0.5)
    save(folder / "silent.wav", 1e-4 * np.random.default_rng(0).standard_normal((2 * RATE, 1)), caption(102))
    save(folder / "clipped.wav", np.clip(5 * tune(103), -1, 1), caption(103))
    shutil.copy(folder / "03.wav", folder / "sub copy.wav")
    (folder / "sub copy.txt").write_text("another name for it")
    again, _ = soundfile.read(folder / "04.flac", dtype="float32")
    save(folder / "zz again.mp3", 0.6 * again[:, None], "the same thing from elsewhere")
    save(folder / "no caption.wav", tune(104), None)
    for name in ("same 1", "same 2", "same 3"):
        save(folder / f"{name}.wav", tune(105 + int(name[-1])), "music")
    save(folder / "rate.wav", tune(110, rate=22_050), caption(110), 22_050)
    save(folder / "channels.wav", np.concatenate([tune(111), 0.8 * tune(111) + 0.1 * tune(112)], 1), caption(111))
    save(folder / "short.wav", tune(113)[:400], caption(113))
    save(folder / "offset.wav", 0.5 * tune(114) + 0.05, caption(114))
    return {
        ("unreadable.mp3", "unreadable"), ("truncated.flac", "truncated"), ("silent.wav", "silent"),
        ("clipped.wav", "clipped"), ("sub copy.wav", "duplicate"), ("zz again.mp3", "near duplicate"),
        ("no caption.wav", "caption missing"), ("same 1.wav", "caption constant"), ("same 2.wav", "caption constant"),
        ("same 3.wav", "caption constant"), ("rate.wav", "sample rate"), ("channels.wav", "channels"),
        ("short.wav", "too short"), ("offset.wav", "dc offset"),
    }  # fmt: skip


def test_all_twelve_planted_issues_are_found_and_nothing_else(folder):
    planted = plant(folder)
    assert len({kind for _, kind in planted}) == 12
    report = validate_dataset(folder)
    assert issues(report) == planted
    assert "04.flac" in next(f.message for f in report.issues if f.kind == "near duplicate")
    assert "03.wav" in next(f.message for f in report.issues if f.kind == "duplicate")
    report.write(folder / "report.json")
    data = json.loads((folder / "report.json").read_text(), parse_constant=pytest.fail)
    assert data["kinds"] == report.counts_by_kind and len(data["issues"]) == 14 and data["clips"] == 36
    assert data["sample_rates"] == {"16000": 33, "22050": 1} and sum(data["loudness"]["counts"]) == 34


def test_more_ways_to_be_broken(folder):
    bad = tune(120)
    bad[5000] = np.nan
    soundfile.write(folder / "nan.wav", bad, RATE, subtype="FLOAT")
    (folder / "nan.txt").write_text("not a number")
    (folder / "empty.wav").write_bytes(b"")
    (folder / "empty.txt").write_text("an empty file")
    (folder / "12.json").write_text("{broken")
    for ending in ("wav", "ogg", "mp3", "opus", "aiff"):
        cut(save(folder / f"cut {ending}.{ending}", tune(121), f"cut in the middle, {ending}"), 0.6)
    save(folder / "mostly.wav", np.concatenate([tune(122, 0.15), np.zeros((3 * RATE, 1))]), "a hit, and then a long nothing")
    report = validate_dataset(folder)
    assert issues(report) == {
        ("nan.wav", "not finite"), ("empty.wav", "unreadable"), ("12.wav", "caption unreadable"), ("mostly.wav", "silent"),
        *((f"cut {ending}.{ending}", "truncated") for ending in ("wav", "ogg", "mp3", "opus", "aiff")),
    }  # fmt: skip


def test_stereo_issues(tmp_path):
    for i in range(4):
        both = np.concatenate([tune(i), 0.7 * tune(i) + 0.2 * tune(50 + i)], 1)
        save(tmp_path / f"{i}.wav", 0.9 * both, caption(i))
    assert issues(validate_dataset(tmp_path)) == set()
    save(tmp_path / "dead.wav", np.concatenate([tune(10), 0 * tune(10)], 1), caption(10))
    save(tmp_path / "phase.wav", np.concatenate([tune(11), -0.9 * tune(11)], 1), caption(11))
    assert issues(validate_dataset(tmp_path)) == {("dead.wav", "dead channel"), ("phase.wav", "out of phase")}


@pytest.mark.parametrize("drive", [1.5, 2.0, 8.0])
@pytest.mark.parametrize("level", [1.0, 0.5])
def test_clipping_at_any_level(tmp_path, drive, level):
    for i in range(3):
        save(tmp_path / f"{i}.wav", tune(i), caption(i))
    loud = tune(30) / np.abs(tune(30)).max()
    save(tmp_path / "x.wav", level * np.clip(drive * loud, -1, 1), caption(30))
    assert issues(validate_dataset(tmp_path)) == {("x.wav", "clipped")}


@pytest.mark.parametrize("how", ["mp3", "ogg", "opus", "louder", "8 kHz", "later", "upside down", "stereo"])
def test_the_same_recording_in_another_form(tmp_path, how):
    for i in range(6):
        save(tmp_path / f"{i}.wav", tune(i), caption(i))
    wave, rate = tune(2) / np.abs(tune(2)).max() * 0.5, RATE
    changed = {
        "louder": wave * 1.9, "later": np.concatenate([np.zeros((RATE // 3, 1)), wave]), "upside down": -wave,
        "stereo": np.concatenate([wave, wave * 0.8], 1),
    }  # fmt: skip
    if how == "8 kHz":
        import torch

        wave, rate = resample(torch.from_numpy(wave.T), RATE, 8000).numpy().T, 8000
    ending = how if how in ("mp3", "ogg", "opus") else "wav"
    save(tmp_path / f"again.{ending}", changed.get(how, wave).astype(np.float32), "found elsewhere", rate)
    pairs = {(f.clip, f.kind) for f in validate_dataset(tmp_path).issues} - {
        ("again.wav", "sample rate"),
        ("again.wav", "channels"),
    }
    assert pairs == {("again." + ending, "near duplicate")} or pairs == {("2.wav", "near duplicate")}


def test_other_music_in_the_same_style_is_no_duplicate(tmp_path):
    """The same notes on another instrument, and other notes on the same."""
    t = np.arange(2 * RATE) / RATE
    for i, pitches in enumerate([(220, 330), (220, 330), (220, 247), (165, 330)]):
        steps = [np.sin(2 * math.pi * pitch * t[:RATE]) for pitch in pitches]
        wave = np.concatenate(steps)[: len(t)]
        wave = np.sign(wave) * np.abs(wave) ** (0.5 if i == 1 else 1)
        save(tmp_path / f"{i}.wav", 0.5 * wave[:, None], caption(i))
    assert issues(validate_dataset(tmp_path)) == set()


def test_captions_without_audio_and_without_any(tmp_path):
    for i in range(3):
        save(tmp_path / f"{i}.wav", tune(i), None)
    report = validate_dataset(tmp_path)
    assert issues(report) == set() and "no clip has a caption" in report.notes[0]
    for i in range(3):
        (tmp_path / f"{i}.json").write_text(json.dumps({"prompt": "music", "tempo": i}))
    assert {kind for _, kind in issues(validate_dataset(tmp_path))} == {"caption constant"}
    (tmp_path / "1.json").write_text(json.dumps({"description": ["one of", "two"]}))
    (tmp_path / "2.json").write_text(json.dumps({"prompt": "None"}))
    (tmp_path / "lost.txt").write_text("where is my audio?")
    report = validate_dataset(tmp_path)
    assert issues(report) == {("2.wav", "caption missing")} and report.notes == ["lost.txt has no audio of the same name"]


def test_few_words_for_many_clips_are_labels_and_no_issue(tmp_path):
    for i in range(8):
        save(tmp_path / f"{i}.wav", tune(i), ("low", "high")[i % 2])
    assert issues(validate_dataset(tmp_path)) == set()


def test_expectations_override_the_most_frequent_values(tmp_path):
    for i in range(3):
        save(tmp_path / f"{i}.wav", tune(i), caption(i))
    report = validate_dataset(tmp_path, sample_rate=32_000, channels=2, min_seconds=3)
    assert report.counts_by_kind == {"sample rate": 3, "channels": 3, "too short": 3}
    assert "16000 Hz, unlike expected (32000 Hz)" in str(report)
    save(tmp_path / "x.wav", tune(5, rate=8000), caption(5), 8000)
    save(tmp_path / "y.wav", tune(6, rate=8000), caption(6), 8000)
    save(tmp_path / "z.wav", tune(7, rate=8000), caption(7), 8000)
    assert issues(validate_dataset(tmp_path)) == {(None, "sample rate")}


def test_manifests_and_shards_are_checked_too(folder, tmp_path):
    manifest, _ = scan_folder(folder)
    write_shards(manifest, tmp_path / "shards", clips=8)
    seen = []
    report = validate_dataset(tmp_path / "shards", progress=lambda doing, done, total: seen.append((doing, done, total)))
    assert issues(report) == set() and report.clips == 22 and ("reading", 22, 22) in seen
    manifest.write(folder / "manifest.jsonl")
    (folder / "01.flac").unlink()
    lines = (
        (folder / "manifest.jsonl")
        .read_text()
        .replace('"audio": "05.ogg", "seconds": 2.0', '"audio": "05.ogg", "seconds": 9.0')
    )
    (folder / "manifest.jsonl").write_text(lines)
    assert issues(validate_dataset(folder)) == {("01", "missing"), ("05", "truncated")}
    (folder / "manifest.jsonl").write_text(lines + "{broken\n")
    with pytest.raises(DataError, match="manifest.jsonl:23: not JSON"):
        validate_dataset(folder)


def test_nothing_to_check(tmp_path):
    with pytest.raises(DataError, match="no audio found"):
        validate_dataset(tmp_path)
    with pytest.raises(DataError, match="no such file or folder"):
        validate_dataset(tmp_path / "gone")


def test_values_are_where_the_edges_say():
    made = Histogram.from_values([1, 2, 2, 5, 9.9], [0, 1, 2, 5, 10, 20])
    assert made == Histogram((1, 2, 5, 10), (1, 2, 2)) and Histogram.from_values([], [0, 1]) == Histogram()
    assert made.lines("title") == [
        "title",
        " 1 to 2 " + 20 * "#" + " 1",
        " 2 to 5 " + 40 * "#" + " 2",
        "5 to 10 " + 40 * "#" + " 2",
    ]


def test_open_ends():
    levels = Histogram.from_values([-math.inf, -80, -20.5, 3], LOUDNESS_EDGES)
    assert sum(levels.counts) == 4 and levels.counts[0] == 2 and levels.counts[-1] == 1
    assert "under -69" in levels.lines("LUFS")[1] and "0 or more" in levels.lines("LUFS")[-1]
    data = json.loads(json.dumps(levels.to_dict(), allow_nan=False))
    assert data["edges"][0] is None and data["edges"][-1] is None and len(data["edges"]) == len(data["counts"]) + 1
    durations = Histogram.from_values([0.05, 4000], DURATION_EDGES)
    assert durations.counts[0] == durations.counts[-1] == 1
