"""Files that are whole or not there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cadenza.core.atomic import atomic_write, remove_stale_temp_files
from cadenza.core.errors import CadenzaError, DataError


def test_what_was_there_stays_until_all_is_written(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("before")
    with atomic_write(path) as file:
        file.write(b"after")
        assert path.read_text() == "before"
    assert path.read_text() == "after" and os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("wrong", [RuntimeError, KeyboardInterrupt])
def test_what_goes_wrong_leaves_nothing(tmp_path: Path, wrong: type[BaseException]) -> None:
    with pytest.raises(wrong), atomic_write(tmp_path / "a.txt") as file:
        file.write(b"half")
        raise wrong
    assert not list(tmp_path.iterdir())


def test_a_place_that_cannot_be_written_is_the_error_of_the_caller(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="make the folder"), atomic_write(tmp_path / "none/a.txt", DataError) as file:
        file.write(b"x")
    (tmp_path / "folder").mkdir()
    with pytest.raises(CadenzaError, match="it is a folder"), atomic_write(tmp_path / "folder") as file:
        file.write(b"x")
    assert os.listdir(tmp_path) == ["folder"]


def test_only_drafts_of_processes_that_are_gone_are_swept(tmp_path: Path) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    kept = {f".a.txt.{os.getpid()}-00c0ffee.part", "a.part", f".a.txt.{gone.pid}.part", ".part"}
    for name in [*kept, f".a.txt.{gone.pid}-00c0ffee.part"]:
        (tmp_path / name).write_text("")
    remove_stale_temp_files(tmp_path)
    assert set(os.listdir(tmp_path)) == kept
