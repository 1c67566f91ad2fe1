"""Checkpoints that are whole, damaged, half written, or refused by the disk."""

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from test_loop import lines
from training_toys import Net, train

from cadenza.core.errors import CheckpointError
from cadenza.training import checkpoints
from cadenza.training.checkpoints import Checkpoint


def make(step: int, numbers: int = 100) -> Checkpoint:
    generator = torch.Generator().manual_seed(step)
    tied = torch.randn(numbers, generator=generator)
    tensors = {"a": tied, "b": tied[:3], "n": torch.tensor(step), "c": torch.zeros(0, 4, dtype=torch.uint8)}
    return Checkpoint(step, tensors, {"note": {"step": [step]}})


@pytest.fixture
def said() -> list[str]:
    return []


def test_what_is_written_is_read_and_the_oldest_go(tmp_path: Path, said: list[str]) -> None:
    assert checkpoints.latest_checkpoint(tmp_path / "none", said.append) is None
    for step in (5, 10, 15):
        checkpoints.save_checkpoint(tmp_path, make(step), keep_last=2)
    assert checkpoints.list_checkpoint_steps(tmp_path) == [10, 15]
    found = checkpoints.latest_checkpoint(tmp_path, said.append)
    assert found is not None and found.step == 15 and found.state == {"note": {"step": [15]}} and said == []
    torch.testing.assert_close(found.tensors, make(15).tensors, rtol=0, atol=0)


def test_a_flipped_bit_a_cut_and_a_missing_file_are_seen(tmp_path: Path, said: list[str]) -> None:
    paths = [checkpoints.save_checkpoint(tmp_path, make(step), keep_last=9) for step in (1, 2, 3, 4)]
    flipped = bytearray((paths[3] / checkpoints.TENSORS).read_bytes())
    flipped[-1] ^= 1
    (paths[3] / checkpoints.TENSORS).write_bytes(flipped)
    os.truncate(paths[2] / checkpoints.STATE, 10)
    (paths[1] / checkpoints.TENSORS).unlink()
    found = checkpoints.latest_checkpoint(tmp_path, said.append)
    assert found is not None and found.step == 1
    assert [path.name in line and "damaged" in line for path, line in zip(reversed(paths), said, strict=False)] == [True] * 3
    (paths[0] / checkpoints.STATE).unlink()
    with pytest.raises(CheckpointError, match="all 4 checkpoints are damaged"):
        checkpoints.latest_checkpoint(tmp_path, said.append)


def test_half_a_checkpoint_is_never_taken_for_one(tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoints.save_checkpoint(tmp_path, make(1), keep_last=2)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(checkpoints.os, "replace", killed)
        patched.setattr(checkpoints.shutil, "rmtree", lambda *_, **__: None)  # a killed process tidies nothing
        checkpoints.save_checkpoint(tmp_path, make(2), keep_last=2)
    assert len(list(tmp_path.iterdir())) == 2
    found = checkpoints.latest_checkpoint(tmp_path, said.append)
    assert found is not None and found.step == 1 and said == []
    checkpoints.remove_unfinished(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file may grow beyond `size` bytes: a full disk that also root meets."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_checkpoint_before_it(tmp_path: Path, said: list[str]) -> None:
    checkpoints.save_checkpoint(tmp_path, make(1), keep_last=1)
    with disk_of(50_000), pytest.raises(CheckpointError, match=r"could not be written.*step 1 is intact.*Free space"):
        checkpoints.save_checkpoint(tmp_path, make(2, numbers=100_000), keep_last=1)
    found = checkpoints.latest_checkpoint(tmp_path, said.append)
    assert found is not None and found.step == 1 and [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_no_permission_is_a_clear_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="no earlier checkpoint"):
        checkpoints.save_checkpoint(tmp_path / "file", make(1), keep_last=1)

    def denied(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(checkpoints.tempfile, "mkdtemp", denied)
    with pytest.raises(CheckpointError, match="Permission denied.*fix the permissions"):
        checkpoints.save_checkpoint(tmp_path, make(1), keep_last=1)


def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(1)
    train(tmp_path / "whole", steps=30)
    torch.manual_seed(1)
    train(tmp_path / "hurt", steps=30, minutes=1e-6)
    train(tmp_path / "hurt", steps=20)
    (tmp_path / "hurt/checkpoints/step-00000020" / checkpoints.TENSORS).write_bytes(b"half")
    train(tmp_path / "hurt", steps=30)
    said = capfd.readouterr().err
    assert "step-00000020 is damaged" in said and "continuing from step 10" in said
    assert sorted(lines(tmp_path / "hurt")) == list(range(1, 31))
    assert lines(tmp_path / "hurt")[10] != lines(tmp_path / "whole")[11]


def test_another_model_is_refused(tmp_path: Path) -> None:
    train(tmp_path, steps=2)
    other = Net()
    other.discriminator.append(torch.nn.Linear(1, 1))
    with pytest.raises(CheckpointError, match=r"group 'discriminator'.*2 missing: 3.bias, 3.weight"):
        train(tmp_path, net=other, steps=4)
