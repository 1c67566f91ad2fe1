"""Optimizers: AdamW for each group of a task, the learning-rate schedule, and the EMA of weights."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from cadenza.core.errors import TrainingError
from cadenza.training.config import TrainingConfig

_FUSED_DEVICES = {"cpu", "cuda", "mps", "xpu"}


@dataclass
class OptimizerGroup:
    """One module of a task with its optimizer."""

    name: str
    module: nn.Module
    parameters: dict[str, nn.Parameter]  # the trainable ones, by name
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # one for each group, so that an overflow does not affect the others
    lr: float
    grad_clip: float | None


def build_optimizers(modules: Mapping[str, nn.Module], config: TrainingConfig) -> dict[str, OptimizerGroup]:
    """Return an AdamW (Loshchilov & Hutter 2019) for each module; raise TrainingError if modules share a parameter."""
    if unknown := set(config.groups) - set(modules):
        raise TrainingError(f"groups: {sorted(unknown)} are not groups of this task. Available: {', '.join(modules)}")
    owners: dict[int, str] = {}
    groups = {}
    for name, module in modules.items():
        parameters = {key: p for key, p in module.named_parameters() if p.requires_grad}
        if not parameters:
            raise TrainingError(f"group '{name}' has no trainable parameter; remove it from the task or unfreeze it")
        for key, parameter in parameters.items():
            if owners.setdefault(id(parameter), name) != name:
                raise TrainingError(f"'{key}' belongs to two groups, '{owners[id(parameter)]}' and '{name}'; keep one")
        own = config.optimizer_for(name)
        assert own.lr is not None and own.betas is not None and own.weight_decay is not None
        devices = {p.device.type for p in parameters.values()}
        groups_by_decay = weight_decay_groups(module, own.weight_decay)
        optimizer = torch.optim.AdamW(groups_by_decay, lr=own.lr, betas=own.betas, fused=devices <= _FUSED_DEVICES)
        scaler = torch.amp.GradScaler(next(iter(devices)), enabled=config.precision == "fp16")
        groups[name] = OptimizerGroup(name, module, parameters, optimizer, scaler, own.lr, own.grad_clip)
    return groups


def weight_decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Return parameter groups in which only matrices decay: no biases, gains, norms, embeddings or single vectors."""
    embeddings = {id(p) for part in module.modules() if isinstance(part, nn.Embedding) for p in part.parameters()}
    parameters: dict[bool, list[nn.Parameter]] = {True: [], False: []}  # by whether they decay
    for p in module.parameters():
        if p.requires_grad:
            parameters[sum(size > 1 for size in p.shape) > 1 and id(p) not in embeddings].append(p)
    return [{"params": params, "weight_decay": weight_decay * decays} for decays, params in parameters.items() if params]


def lr_multiplier(step: int, config: TrainingConfig) -> float:
    """Return the learning rate of a step (from 0) as a fraction: linear warm-up, then `schedule`.

    Half a cosine ends at `final_lr_ratio`; the inverse square root (Vaswani et al. 2017, eq. 3) starts at 1.
    """
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.schedule == "inverse_sqrt":
        return (max(1, config.warmup) / (step + 1)) ** 0.5
    done = min(1.0, (step - config.warmup) / max(1, config.steps - config.warmup))
    return config.final_lr_ratio + (1 - config.final_lr_ratio) * 0.5 * (1 + math.cos(math.pi * done))


class EMA:
    """Exponential moving average of a module's parameters; buffers are not averaged.

    The decay of update n is min(decay, (1 + n) / (10 + n)), so that early weights are forgotten.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._live = {key: x.detach() for key, x in module.named_parameters() if x.is_floating_point()}  # shared memory
        self.average = {key: x.detach().clone() for key, x in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        get_ema_multi_avg_fn(decay)(list(self.average.values()), list(self._live.values()), None)
        self.updates += 1

    @contextmanager
    @torch.no_grad()
    def swapped_in(self) -> Iterator[None]:
        """Put the averaged weights into the module within a `with` block, and restore its own afterwards."""
        own = {key: x.clone() for key, x in self._live.items()}
        try:
            for key, x in self._live.items():
                x.copy_(self.average[key])
            yield
        finally:
            for key, x in self._live.items():
                x.copy_(own[key])
