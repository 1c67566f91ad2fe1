"""Optimisers: AdamW for each group of a task, and its schedule as a function of the step."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from cadenza.core.errors import TrainingError
from cadenza.training.config import TrainingConfig

_FUSED = ("cpu", "cuda", "mps", "xpu")


@dataclass
class OptimizerGroup:
    """One of a task's modules with all that its learning needs."""

    name: str
    module: nn.Module
    parameters: dict[str, nn.Parameter]  # those that learn, by name
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler  # one a group, so that one group's overflow does not disturb another
    lr: float
    clip: float | None


def build_optimizers(modules: Mapping[str, nn.Module], config: TrainingConfig) -> dict[str, OptimizerGroup]:
    """An AdamW (Loshchilov & Hutter 2019) for each module; a parameter may belong to one group only."""
    if unknown := set(config.groups) - set(modules):
        raise TrainingError(f"groups names {sorted(unknown)}, but this task has: {', '.join(modules)}")
    owners: dict[int, str] = {}
    groups = {}
    for name, module in modules.items():
        parameters = {key: p for key, p in module.named_parameters() if p.requires_grad}
        if not parameters:
            raise TrainingError(f"group '{name}' has no parameter that learns; take it out of the task or unfreeze it")
        for key, parameter in parameters.items():
            if owners.setdefault(id(parameter), name) != name:
                raise TrainingError(f"'{key}' belongs to two groups, '{owners[id(parameter)]}' and '{name}'; keep one")
        own = config.optimizer_for(name)
        assert own.lr is not None and own.betas is not None and own.weight_decay is not None
        devices = {p.device.type for p in parameters.values()}
        groups[name] = OptimizerGroup(
            name,
            module,
            parameters,
            torch.optim.AdamW(
                weight_decay_groups(module, own.weight_decay), lr=own.lr, betas=own.betas, fused=devices <= set(_FUSED)
            ),
            torch.amp.GradScaler(next(iter(devices)), enabled=config.precision == "fp16"),
            own.lr,
            own.grad_clip,
        )
    return groups


def weight_decay_groups(module: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Parameter groups in which only matrices decay: no biases, gains, norms, embeddings or single vectors."""
    embeddings = {id(p) for part in module.modules() if isinstance(part, nn.Embedding) for p in part.parameters()}
    decay: list[nn.Parameter] = []
    keep: list[nn.Parameter] = []
    for parameter in module.parameters():
        if parameter.requires_grad:
            matrix = sum(size > 1 for size in parameter.shape) > 1 and id(parameter) not in embeddings
            (decay if matrix else keep).append(parameter)
    both = [{"params": decay, "weight_decay": weight_decay}, {"params": keep, "weight_decay": 0.0}]
    return [group for group in both if group["params"]]


def lr_multiplier(step: int, config: TrainingConfig) -> float:
    """The learning rate of step `step` (from 0) as a fraction: linear warm-up, then by `schedule`.

    Half a cosine goes down to `final`; the inverse square root (Vaswani et al. 2017, eq. 3) falls from 1, and without end.
    """
    if step < config.warmup:
        return (step + 1) / config.warmup
    if config.schedule == "inverse_sqrt":
        return (max(1, config.warmup) / (step + 1)) ** 0.5
    done = min(1.0, (step - config.warmup) / max(1, config.steps - config.warmup))
    return config.final_lr_ratio + (1 - config.final_lr_ratio) * 0.5 * (1 + math.cos(math.pi * done))


class EMA:
    """The average of a module's parameters; its buffers stay what they are.

    The decay of update n is min(decay, (1 + n) / (10 + n)), so that the start is forgotten.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._live = {key: x.detach() for key, x in module.named_parameters() if x.is_floating_point()}  # shares memory
        self.average = {key: x.detach().clone() for key, x in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        get_ema_multi_avg_fn(decay)(list(self.average.values()), list(self._live.values()), None)
        self.updates += 1

    @contextmanager
    @torch.no_grad()
    def swapped_in(self) -> Iterator[None]:
        """The module has the averaged weights inside, its own again afterwards, whatever happens."""
        own = {key: x.clone() for key, x in self._live.items()}
        _copy(self.average, self._live)
        try:
            yield
        finally:
            _copy(own, self._live)


def _copy(source: dict[str, Tensor], target: dict[str, Tensor]) -> None:
    for key, x in target.items():
        x.copy_(source[key])
