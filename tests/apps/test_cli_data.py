"""`cadenza data` as a user meets it: 0 when all is well, 1 with issues, 2 for a mistake of theirs."""

import json
import shutil
import sys
from pathlib import Path

import pytest
from tunes import caption, clean_folder, save, tune

from cadenza.apps.cli.main import main


@pytest.fixture
def cadenza(capsys, monkeypatch, tmp_path):
    """The program, run in this process in an empty folder: (exit status, output, errors)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", ["cadenza", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def clean(tmp_path_factory) -> Path:
    return clean_folder(tmp_path_factory.mktemp("clean"), 6)


def test_a_clean_folder(cadenza, clean, tmp_path):
    status, out, errors = cadenza("data", "check", clean)
    assert status == 0 and errors == ""
    for word in ("12 clips, 24.0 s", "12 at 16000 Hz", "seconds", "LUFS", "####", "no issues"):
        assert word in out
    assert list(tmp_path.iterdir()) == []


def test_issues_are_listed_and_written(cadenza, clean, tmp_path):
    folder = shutil.copytree(clean, tmp_path / "bad")
    (folder / "00.wav").write_bytes(b"")
    shutil.copy(folder / "03.wav", folder / "x.wav")
    (folder / "x.txt").write_text("the same again")
    status, out, _ = cadenza("data", "check", folder, "--json", "report.json")
    assert status == 1 and "unreadable: 00.wav:" in out and "duplicate: x.wav: identical to 03.wav; keep one" in out
    assert "2 issues: 1 unreadable, 1 duplicate" in out
    report = json.loads((tmp_path / "report.json").read_text())
    assert [issue["clip"] for issue in report["issues"]] == ["00.wav", "x.wav"]


def test_expectations(cadenza, tmp_path):
    for i in range(2):
        save(tmp_path / f"in/{i}.wav", tune(i), caption(i))
    assert cadenza("data", "check", "in")[0] == 0
    status, out, _ = cadenza("data", "check", "in", "--sample-rate", 44100, "--channels", 2, "--min-seconds", 5)
    assert status == 1 and "6 issues: 2 sample rate, 2 channels, 2 too short" in out


def test_mistakes_are_one_line(cadenza, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "m.jsonl").write_text('{"audio": "a.wav"}\n{broken\n')
    for what, message in {
        "gone": "no such file or folder",
        "empty": "no audio found",
        "m.jsonl": "m.jsonl:2: not JSON",
    }.items():
        status, _, errors = cadenza("data", "check", what)
        assert status == 2 and message in errors and "Traceback" not in errors and errors.count("\n") == 1
    assert cadenza("data", "check", "empty", "--no-such-option")[0] == 2


@pytest.mark.parametrize("option", ["--sample-rate=-1", "--channels=0", "--min-seconds=nan", "--min-seconds=-1"])
def test_what_cannot_be_wanted(cadenza, clean, option):
    status, _, errors = cadenza("data", "check", clean, option)
    assert status == 2 and option.partition("=")[0] in errors


def test_pack_and_check_the_shards(cadenza, clean, tmp_path):
    status, out, _ = cadenza("data", "pack", clean, "shards", "--clips", 5)
    assert status == 0 and "12 items, none broken" in out and len(list((tmp_path / "shards").glob("*.tar"))) == 3
    status, out, _ = cadenza("data", "check", "shards")
    assert status == 0 and "12 clips" in out
    status, _, errors = cadenza("data", "pack", clean, "shards")
    assert status == 2 and "already contains 3 shards" in errors
    shard = tmp_path / "shards/shard-00001.tar"
    shard.write_bytes(shard.read_bytes()[:70_000])
    status, _, errors = cadenza("data", "check", "shards")
    assert status == 2 and "shard-00001.tar: cut short: '" in errors
