"""Checkpoints: folders `step-00001000` of tensors (safetensors) and the rest (JSON), whole or not there.

A folder is written under a temporary name, synced, then renamed. `state.json` carries the hash of the tensors,
so that a damaged checkpoint is known as such and the one before it is taken.
"""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cadenza.core.errors import CheckpointError

TENSORS = "tensors.safetensors"
STATE = "state.json"
_NAME = re.compile(r"step-(\d{8,})")
_UNFINISHED = ".unfinished-"


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint holds: tensors by name, and plain data."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep_last: int) -> Path:
    """Adds a checkpoint, then removes all but the newest `keep_last`; raises and leaves no trace if it cannot."""
    target = folder / f"step-{checkpoint.step:08d}"
    temporary: Path | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=_UNFINISHED, dir=folder))
        save_file(_alone(checkpoint.tensors), temporary / TENSORS)
        state = {"step": checkpoint.step, "sha256": _digest(temporary / TENSORS), **checkpoint.state}
        (temporary / STATE).write_text(json.dumps(state))
        for path in (temporary / TENSORS, temporary / STATE, temporary):
            _sync(path)
        if target.exists():
            shutil.rmtree(target)
        os.replace(temporary, target)
        _sync(folder)
    except (OSError, SafetensorError) as error:
        older = list_checkpoint_steps(folder)
        kept = f"the checkpoint of step {older[-1]} is intact" if older else "there is no earlier checkpoint"
        raise CheckpointError(
            f"{target}: the checkpoint could not be written: {error}; {kept}. "
            "Free space or allow writing there, then start again to continue"
        ) from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    for step in list_checkpoint_steps(folder)[:-keep_last]:
        shutil.rmtree(folder / f"step-{step:08d}", ignore_errors=True)
    return target


def list_checkpoint_steps(folder: Path) -> list[int]:
    """The steps of the checkpoints in a folder, oldest first."""
    try:
        names = os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(int(match[1]) for match in map(_NAME.fullmatch, names) if match)


def latest_checkpoint(folder: Path, say: Callable[[str], None]) -> Checkpoint | None:
    """The newest checkpoint that is whole, or None where there is none; `say` hears of damaged ones."""
    found = list_checkpoint_steps(folder)
    for step in reversed(found):
        path = folder / f"step-{step:08d}"
        try:
            return _read(path, step)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            say(f"{path} is damaged ({error}); trying the one before it")
    if found:
        raise CheckpointError(f"{folder}: all {len(found)} checkpoints are damaged; remove the folder to start anew")
    return None


def remove_unfinished(folder: Path) -> None:
    """Removes what a killed process left half written."""
    for path in folder.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(path, ignore_errors=True)


def _read(path: Path, step: int) -> Checkpoint:
    state = json.loads((path / STATE).read_text())
    if state.pop("step") != step:
        raise ValueError("its name and content name different steps")
    if state.pop("sha256") != _digest(path / TENSORS):
        raise ValueError(f"{TENSORS} is not what was written")
    return Checkpoint(step, load_file(path / TENSORS), state)


def _alone(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the host: safetensors refuses tensors that share memory."""
    return {name: x.detach().to("cpu", copy=True).contiguous() for name, x in tensors.items()}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
