"""Ema: an exponential moving average of a module's weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


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
