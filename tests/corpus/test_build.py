"""Corpora on disk are equal for any number of processes and after any interruption; needs FluidSynth."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import soundfile

from cadenza.core.errors import DataError
from cadenza.corpus import build_corpus, rewrite_captions
from cadenza.data.manifest import Manifest

SEED, HOURS = 77, 0.011


def contents(out: Path) -> dict[str, bytes]:
    return {str(p.relative_to(out)): p.read_bytes() for p in sorted(out.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    out = tmp_path_factory.mktemp("reference")
    report = build_corpus(out, hours=HOURS, seed=SEED, workers=1)
    return out, report


@pytest.mark.needs("fluidsynth")
def test_a_build_writes_the_clips_that_it_reports(reference):
    out, report = reference
    lines = [json.loads(line) for line in (out / "manifest.jsonl").read_text().splitlines()]
    assert report.clips == report.rendered == len(lines)
    assert report.seconds >= HOURS * 3600 > report.seconds - 17
    for line in lines:
        info = soundfile.info(out / line["audio"])
        assert (info.samplerate, info.channels, info.subtype) == (24_000, 1, "PCM_16")
        assert info.frames == round(line["seconds"] * 24_000)
        record = json.loads((out / line["audio"]).with_suffix(".json").read_text())
        assert record["id"] == line["id"]
        assert record["seconds"] == line["seconds"]
        assert len(record["prompt"]) == len(record["prompt_mentions"]) == 6


@pytest.mark.needs("fluidsynth")
def test_the_corpus_names_its_soundfont_and_licence(reference):
    record = json.loads((reference[0] / "corpus.json").read_text())
    assert (record["format"], record["seed"], record["split"], record["sample_rate"]) == (1, SEED, "train", 24_000)
    assert record["soundfont"]["file"] == "FluidR3_GM.sf2"
    assert len(record["soundfont"]["sha256"]) == 64
    assert record["soundfont"]["licence"] == "MIT"
    assert record["fluidsynth"][0].isdigit()


@pytest.mark.needs("fluidsynth")
def test_the_manifest_can_be_loaded_as_data(reference):
    out, report = reference
    manifest = Manifest.load(out / "manifest.jsonl")
    assert len(manifest) == report.clips
    metadata = manifest.clips[0].metadata()
    assert isinstance(metadata["tempo"], float)
    assert metadata["key"].split()[1] in ("major", "minor")


@pytest.mark.needs("fluidsynth")
def test_two_processes_make_the_same_files_as_one(reference, tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules["cadenza.corpus.build"], "BATCH", 2)
    alone = tmp_path / "alone"
    pair = tmp_path / "pair"
    build_corpus(alone, hours=HOURS, seed=SEED, workers=1)
    build_corpus(pair, hours=HOURS, seed=SEED, workers=2)
    assert contents(pair) == contents(alone)
    assert list(contents(pair)) == list(contents(reference[0]))


@pytest.mark.needs("fluidsynth")
def test_only_missing_and_incomplete_clips_are_rendered_again(reference, tmp_path):
    out, full = tmp_path / "out", contents(reference[0])
    for name, data in full.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_bytes(data)
    (out / "0000/000001.json").unlink()
    (out / "0000/000001.flac").write_bytes(b"half a file")
    kept = (out / "0000/000000.flac").stat().st_mtime_ns
    report = build_corpus(out, hours=HOURS, seed=SEED, workers=1)
    assert report.rendered == 1
    assert contents(out) == full
    assert (out / "0000/000000.flac").stat().st_mtime_ns == kept


@pytest.mark.needs("fluidsynth")
def test_a_killed_build_can_be_resumed(reference, tmp_path):
    out, full = tmp_path / "out", contents(reference[0])
    call = f"build_corpus(Path({str(out)!r}), hours={HOURS}, seed={SEED}, workers=1)"
    code = f"from pathlib import Path; from cadenza.corpus import build_corpus; {call}"
    source = str(Path(__file__).parents[2] / "src")
    process = subprocess.Popen([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": source})
    deadline = time.monotonic() + 120
    while process.poll() is None and not list(out.glob("0000/*.flac")) and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (out / "0000").mkdir(exist_ok=True)
    (out / f"0000/.000002.flac.{process.pid}-0badcafe.part").write_bytes(b"a draft of the killed process")
    complete = [n for n in contents(out) if n.endswith(".json") and n != "corpus.json"]
    report = build_corpus(out, hours=HOURS, seed=SEED, workers=1)
    assert report.rendered == report.clips - len(complete)
    assert contents(out) == full


@pytest.mark.needs("fluidsynth")
def test_more_hours_only_add_clips(reference, tmp_path):
    out, full = tmp_path / "out", contents(reference[0])
    build_corpus(out, hours=HOURS / 3, seed=SEED, workers=1)
    before = {n: d for n, d in contents(out).items() if n.startswith("0000/")}
    assert 0 < len(before) < len(full) - 2
    build_corpus(out, hours=HOURS, seed=SEED, workers=1)
    assert contents(out) == full
    assert {n: full[n] for n in before} == before


@pytest.mark.needs("fluidsynth")
def test_rewriting_captions_does_not_change_audio(reference, tmp_path):
    out, full = tmp_path / "out", contents(reference[0])
    build_corpus(out, hours=HOURS / 3, seed=SEED, workers=1)
    (out / "0000/000000.json").write_text("{}\n")
    kept = (out / "0000/000000.flac").stat().st_mtime_ns
    assert rewrite_captions(out) > 0
    assert (out / "0000/000000.json").read_bytes() == full["0000/000000.json"]
    assert (out / "0000/000000.flac").stat().st_mtime_ns == kept


@pytest.mark.needs("fluidsynth")
@pytest.mark.parametrize(("change", "message"), [({"seed": 78}, "seed"), ({"split": "held_out"}, "split")])
def test_a_folder_holds_one_corpus(reference, change, message):
    with pytest.raises(DataError, match=f"has {message}"):
        build_corpus(reference[0], **{"hours": HOURS, "seed": SEED, "workers": 1, **change})


@pytest.mark.parametrize("change", [{"hours": 0}, {"hours": -1}, {"hours": float("nan")}, {"seed": -1}, {"split": "test"}])
def test_invalid_arguments_are_refused_before_anything_is_written(tmp_path, change):
    out = tmp_path / "out"
    with pytest.raises(DataError):
        build_corpus(out, **{"hours": HOURS, "seed": SEED, "workers": 1, **change})
    assert not out.exists()


@pytest.mark.needs("fluidsynth")
def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        build_corpus(tmp_path / "file" / "out", hours=HOURS, seed=SEED, workers=1)
