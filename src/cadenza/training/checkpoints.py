"""Checkpoints of a run: folders `step-00001000` of tensors (safetensors) and other state (JSON), written atomically.

A folder is written under a temporary name, synced, then renamed. `state.json` has the hash of the tensors; if a
checkpoint is damaged, the one before it is used. Checkpoints of format 1 are migrated when they are read.
"""

import hashlib
import json
import os
import random
import re
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from cadenza.core.checkpoint import check_state_dict, strip_prefix
from cadenza.core.errors import CheckpointError
from cadenza.core.migrations import FORMAT, migrate_groups, migrate_weight_name
from cadenza.training.optim import EMA, OptimizerGroup

TENSORS = "tensors.safetensors"
STATE = "state.json"
_NAME = re.compile(r"step-(\d{8,})")
_TEMPORARY = ".unfinished-"


@dataclass(frozen=True)
class Checkpoint:
    """Training state after a step: tensors by name, and plain data."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]


def save_checkpoint(folder: Path, checkpoint: Checkpoint, keep_last: int) -> Path:
    """Write a checkpoint, then remove all but the newest `keep_last`; raise CheckpointError and remove it on failure."""
    target = folder / f"step-{checkpoint.step:08d}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=_TEMPORARY, dir=folder, ignore_cleanup_errors=True) as name:
            temporary = Path(name)
            tensors = {name: x.detach().to("cpu", copy=True).contiguous() for name, x in checkpoint.tensors.items()}
            save_file(tensors, temporary / TENSORS)  # copies, because safetensors refuses shared memory
            digest = _file_sha256(temporary / TENSORS)
            state = {"format": FORMAT, "step": checkpoint.step, "sha256": digest, **checkpoint.state}
            (temporary / STATE).write_text(json.dumps(state))
            for path in (temporary / TENSORS, temporary / STATE, temporary):
                _fsync(path)
            if target.exists():
                shutil.rmtree(target)
            os.replace(temporary, target)
        _fsync(folder)
    except (OSError, SafetensorError) as error:
        steps = list_checkpoint_steps(folder)
        previous = f"the checkpoint of step {steps[-1]} is intact" if steps else "no earlier checkpoint exists"
        raise CheckpointError(
            f"{target}: the checkpoint could not be written: {error}; {previous}. "
            "Free space or fix the permissions, then start again to continue"
        ) from None
    for step in list_checkpoint_steps(folder)[:-keep_last]:
        shutil.rmtree(folder / f"step-{step:08d}", ignore_errors=True)
    return target


def list_checkpoint_steps(folder: Path) -> list[int]:
    """Return the steps of the checkpoints in a folder, oldest first."""
    names = os.listdir(folder) if folder.is_dir() else []
    return sorted(int(match[1]) for match in map(_NAME.fullmatch, names) if match)


def latest_checkpoint(folder: Path, warn: Callable[[str], None]) -> Checkpoint | None:
    """Return the newest undamaged checkpoint, or None if the folder has none; `warn` is called for damaged ones."""
    steps = list_checkpoint_steps(folder)
    for step in reversed(steps):
        path = folder / f"step-{step:08d}"
        try:
            return _load_checkpoint(path, step)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            warn(f"{path} is damaged ({error}); trying the previous one")
    if steps:
        raise CheckpointError(f"{folder}: all {len(steps)} checkpoints are damaged; remove the folder to start from step 0")
    return None


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary folders of a killed process."""
    for path in folder.glob(f"{_TEMPORARY}*"):
        shutil.rmtree(path, ignore_errors=True)


def _load_checkpoint(path: Path, step: int) -> Checkpoint:
    state = json.loads((path / STATE).read_text())
    if state.pop("step") != step:
        raise ValueError("its name and content have different steps")
    if state.pop("sha256") != _file_sha256(path / TENSORS):
        raise ValueError(f"the hash of {TENSORS} differs from the recorded one")
    version, tensors = state.pop("format", 1), load_file(path / TENSORS)
    if version not in range(1, FORMAT + 1):
        raise CheckpointError(f"{path}: checkpoint format {version} is not known to this release; upgrade cadenza")
    if version == 1:
        tensors = {migrate_weight_name(name): x for name, x in tensors.items()}
        state |= {key: migrate_groups(state[key]) for key in ("optimizers", "scalers") if key in state}
        for group in [group for groups in state.get("optimizers", {}).values() for group in groups]:
            group["parameters"] = [migrate_weight_name(name) for name in group["parameters"]]
    return Checkpoint(step, tensors, state)


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def capture_state(
    groups: Mapping[str, OptimizerGroup], extra: nn.Module, ema: EMA | None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and plain data of groups (weights, optimizers, scalers), the task's extra state and the EMA."""
    tensors = {f"memory/{key}": x for key, x in extra.state_dict().items()}
    state: dict[str, Any] = {"scalers": {}, "optimizers": {}}
    for name, group in groups.items():
        tensors |= {f"model/{name}/{key}": x for key, x in group.module.state_dict().items()}
        names = {id(p): key for key, p in group.parameters.items()}
        for parameter, values in group.optimizer.state.items():
            tensors |= {f"optimizer/{name}/{names[id(parameter)]}/{key}": x for key, x in values.items()}
        state["optimizers"][name] = _parameter_names(group)
        state["scalers"][name] = group.scaler.state_dict()
    if ema is not None:
        tensors |= {f"average/{key}": x for key, x in ema.average.items()}
        state["ema_updates"] = ema.updates
    return tensors, state


@torch.no_grad()
def restore_state(groups: Mapping[str, OptimizerGroup], extra: nn.Module, ema: EMA | None, checkpoint: Checkpoint) -> None:
    """Restore what `capture_state` returned; raise CheckpointError if names or shapes differ in either direction."""
    tensors, state = checkpoint.tensors, checkpoint.state
    unused = set(tensors) - _load_module("the task's extra state", "memory/", extra, tensors)
    for name, group in groups.items():
        unused -= _load_module(f"group '{name}'", f"model/{name}/", group.module, tensors)
        if state["optimizers"].get(name) != _parameter_names(group):
            raise CheckpointError(f"group '{name}' trains other parameters than when the checkpoint was written")
        unused -= _load_optimizer(group, tensors)
        if state["scalers"][name]:
            group.scaler.load_state_dict(state["scalers"][name])
    if ema is not None and "ema_updates" in state:
        average = strip_prefix(tensors, "average/")
        _check("the averaged weights", average, ema.average)
        for key, x in average.items():
            ema.average[key].copy_(x)
        ema.updates = state["ema_updates"]
    if unknown := sorted(key for key in unused if not key.startswith("average/")):
        raise CheckpointError(f"the checkpoint has tensors that this task does not have: {', '.join(unknown[:5])}")


def random_state(rng: torch.Generator) -> dict[str, Any]:
    """Return the state of all random generators of this process as plain data."""
    kind, keys, *rest = np.random.get_state()
    cuda = [x.tolist() for x in torch.cuda.get_rng_state_all()] if torch.cuda.is_available() else []
    return {
        "task": rng.get_state().tolist(),
        "torch": torch.get_rng_state().tolist(),
        "cuda": cuda,
        "python": random.getstate(),
        "numpy": [kind, keys.tolist(), *rest],  # type: ignore[union-attr]
    }


def set_random_state(state: Mapping[str, Any], rng: torch.Generator) -> None:
    """Restore what `random_state` returned."""
    rng.set_state(torch.tensor(state["task"], dtype=torch.uint8))
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([torch.tensor(x, dtype=torch.uint8) for x in state["cuda"]])
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))


def _parameter_names(group: OptimizerGroup) -> list[dict[str, list[str]]]:
    """Return the names of the parameters of each parameter group of an optimizer."""
    names = {id(p): key for key, p in group.parameters.items()}
    return [{"parameters": [names[id(p)] for p in options["params"]]} for options in group.optimizer.param_groups]


def _load_module(name: str, prefix: str, module: nn.Module, tensors: Mapping[str, Tensor]) -> set[str]:
    """Load the tensors under a prefix into a module; return their names."""
    state_dict = strip_prefix(tensors, prefix)
    _check(name, state_dict, module.state_dict())
    module.load_state_dict(state_dict)
    return {prefix + key for key in state_dict}


def _load_optimizer(group: OptimizerGroup, tensors: Mapping[str, Tensor]) -> set[str]:
    """Load the state of an optimizer; return the names of the tensors used."""
    used: set[str] = set()
    states: dict[int, dict[str, Tensor]] = {}
    index = {id(p): i for i, p in enumerate(p for g in group.optimizer.param_groups for p in g["params"])}
    for key, parameter in group.parameters.items():
        for field in ("step", "exp_avg", "exp_avg_sq"):
            if (name := f"optimizer/{group.name}/{key}/{field}") in tensors:
                states.setdefault(index[id(parameter)], {})[field] = tensors[name]
                used.add(name)
    param_groups = group.optimizer.state_dict()["param_groups"]
    group.optimizer.load_state_dict({"state": states, "param_groups": param_groups})
    return used


def _check(name: str, state_dict: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    fix = "train the system that the checkpoint is of, or choose another folder"
    check_state_dict(state_dict, expected, f"the checkpoint's state of {name}", fix=fix)
