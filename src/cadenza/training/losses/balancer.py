"""The loss balancer of EnCodec (Défossez et al. 2022, eq. 5)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, distributed, nn


@dataclass(frozen=True)
class BalancedLoss:
    """`loss` has the balanced gradient with respect to the output but no meaning as a number.

    `shares` are those of the norms before balancing.
    """

    loss: Float[Tensor, ""]
    effective: Float[Tensor, ""]  # the weighted sum of the losses with the weights in effect
    shares: dict[str, Tensor]


class Balancer(nn.Module):
    """Makes each loss's share of the gradient at the output its weight's share, whatever the loss's scale.

    Norms are averaged over steps, bias-corrected, with `decay`; they are taken per item of the batch unless
    `per_item` is off. Without `balance` the weights simply multiply the losses.
    """

    norms: Tensor
    mass: Tensor

    def __init__(
        self,
        weights: Mapping[str, float],
        *,
        total_norm: float = 1.0,
        decay: float = 0.999,
        per_item: bool = True,
        balance: bool = True,
    ) -> None:
        super().__init__()
        self.weights = {name: weight for name, weight in weights.items() if weight > 0}
        self.total_norm = total_norm
        self.decay = decay
        self.per_item = per_item
        self.balance = balance
        self.register_buffer("norms", torch.zeros(len(self.weights)))
        self.register_buffer("mass", torch.zeros(len(self.weights)))

    def forward(self, losses: Mapping[str, Tensor], output: Float[Tensor, "b ..."]) -> BalancedLoss:
        """The balance of those losses that have a weight; a loss may be missing at some steps."""
        names = [name for name in self.weights if name in losses]
        places = torch.tensor([list(self.weights).index(name) for name in names], device=self.norms.device)
        grads = [torch.autograd.grad(losses[name], output, retain_graph=True)[0] for name in names]
        average = self._average(torch.stack([self._norm(grad) for grad in grads]), places)
        weights = torch.tensor([self.weights[name] for name in names], device=average.device)
        scales = weights / weights.sum() * self.total_norm / (average + 1e-12) if self.balance else weights
        gradient = sum((grad * scale for grad, scale in zip(grads, scales, strict=True)), torch.zeros_like(output))
        effective = sum(
            (losses[name].detach() * scale for name, scale in zip(names, scales, strict=True)), scales.new_zeros(())
        )
        shares = dict(zip(names, average / average.sum().clamp(min=1e-12), strict=True))
        return BalancedLoss((output * gradient.detach()).sum(), effective, shares)

    def _norm(self, grad: Tensor) -> Tensor:
        return grad.flatten(1).norm(dim=1).mean() if self.per_item else grad.norm()

    def _average(self, norms: Tensor, places: Tensor) -> Tensor:
        if distributed.is_available() and distributed.is_initialized():
            distributed.all_reduce(norms)
            norms = norms / distributed.get_world_size()
        self.norms[places] = self.decay * self.norms[places] + norms
        self.mass[places] = self.decay * self.mass[places] + 1.0
        return self.norms[places] / self.mass[places]
