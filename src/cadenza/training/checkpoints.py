"""Checkpoints: folders `step-00001000` of tensors (safetensors) and the rest (JSON), whole or not there.

A folder is written under a temporary name, synced, then renamed. `state.json` carries the hash of the tensors,
so that a damaged checkpoint is known as such and the one before it is taken.
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

from cadenza.core.errors import CheckpointError
from cadenza.training.optim import EMA, OptimizerGroup

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


def capture_state(
    groups: Mapping[str, OptimizerGroup], memory: nn.Module, ema: EMA | None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Weights, buffers, optimiser states, scalers and averages of every group, and the task's memory."""
    tensors = {f"memory/{key}": x for key, x in memory.state_dict().items()}
    plain: dict[str, Any] = {"scalers": {}, "optimizers": {}}
    for name, group in groups.items():
        tensors |= {f"model/{name}/{key}": x for key, x in group.module.state_dict().items()}
        names = {id(p): key for key, p in group.parameters.items()}
        for parameter, values in group.optimizer.state.items():
            for key, value in values.items():
                tensors[f"optimizer/{name}/{names[id(parameter)]}/{key}"] = value
        plain["optimizers"][name] = [
            {"parameters": [names[id(p)] for p in options["params"]]} for options in group.optimizer.param_groups
        ]
        plain["scalers"][name] = group.scaler.state_dict()
    if ema is not None:
        tensors |= {f"average/{key}": x for key, x in ema.average.items()}
        plain["ema_updates"] = ema.updates
    return tensors, plain


@torch.no_grad()
def restore_state(groups: Mapping[str, OptimizerGroup], memory: nn.Module, ema: EMA | None, checkpoint: Checkpoint) -> None:
    """The reverse of `capture`, strict in both directions: CheckpointError names what differs."""
    tensors, plain = checkpoint.tensors, checkpoint.state
    left = set(tensors) - _load("the task's memory", "memory/", memory, tensors)
    for name, group in groups.items():
        left -= _load(f"group '{name}'", f"model/{name}/", group.module, tensors)
        ours = {id(p): key for key, p in group.parameters.items()}
        if plain["optimizers"].get(name) != [
            {"parameters": [ours[id(p)] for p in options["params"]]} for options in group.optimizer.param_groups
        ]:
            raise CheckpointError(f"group '{name}' learns other parameters than when the checkpoint was written")
        left -= _restore_optimizer(group, tensors)
        if plain["scalers"][name]:
            group.scaler.load_state_dict(plain["scalers"][name])
    if ema is not None and "ema_updates" in plain:
        average = {key.removeprefix("average/"): x for key, x in tensors.items() if key.startswith("average/")}
        _match("the averaged weights", average, ema.average)
        for key, x in average.items():
            ema.average[key].copy_(x)
        ema.updates = plain["ema_updates"]
    if unknown := sorted(key for key in left if not key.startswith("average/")):
        raise CheckpointError(f"the checkpoint holds what this task does not have: {', '.join(unknown[:5])}")


def rng_state(rng: torch.Generator) -> dict[str, Any]:
    """Where every source of chance of this process stands; plain data."""
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
    rng.set_state(torch.tensor(state["task"], dtype=torch.uint8))
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if torch.cuda.is_available() and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([torch.tensor(x, dtype=torch.uint8) for x in state["cuda"]])
    version, keys, gauss = state["python"]
    random.setstate((version, tuple(keys), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, np.array(keys, dtype=np.uint32), *rest))


def _load(what: str, prefix: str, module: nn.Module, tensors: Mapping[str, Tensor]) -> set[str]:
    """Fills a module with the tensors under a prefix; their names."""
    weights = {key.removeprefix(prefix): x for key, x in tensors.items() if key.startswith(prefix)}
    _match(what, weights, module.state_dict())
    module.load_state_dict(weights)
    return {prefix + key for key in weights}


def _restore_optimizer(group: OptimizerGroup, tensors: Mapping[str, Tensor]) -> set[str]:
    """Fills an optimiser; the names of the tensors that went there."""
    known = group.optimizer.state_dict()
    taken: set[str] = set()
    states: dict[int, dict[str, Tensor]] = {}
    index = {id(p): i for i, p in enumerate(p for g in group.optimizer.param_groups for p in g["params"])}
    for key, parameter in group.parameters.items():
        for field in ("step", "exp_avg", "exp_avg_sq"):
            if (name := f"optimizer/{group.name}/{key}/{field}") in tensors:
                states.setdefault(index[id(parameter)], {})[field] = tensors[name]
                taken.add(name)
    group.optimizer.load_state_dict({"state": states, "param_groups": known["param_groups"]})
    return taken


def _match(what: str, found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    missing, unknown = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    shapes = [
        f"{key} is {tuple(found[key].shape)} instead of {tuple(wanted[key].shape)}"
        for key in sorted(found.keys() & wanted.keys())
        if found[key].shape != wanted[key].shape
    ]
    if missing or unknown or shapes:
        raise CheckpointError(
            f"{what} is not what the checkpoint holds: {len(missing)} missing {missing[:3]}, "
            f"{len(unknown)} unknown {unknown[:3]}, {len(shapes)} misshapen {shapes[:3]}; "
            "train the system that was checkpointed, or choose another folder"
        )
