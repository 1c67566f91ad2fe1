"""State: all that a run must remember to go on exactly, as tensors and plain data, and back."""

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cadenza.core.errors import CheckpointError
from cadenza.training.checkpoints import Checkpoint
from cadenza.training.ema import EMA
from cadenza.training.optim import OptimizerGroup


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
