"""What a critic and what it judges minimise."""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

Adversarial = Literal["hinge", "hinge2", "mse"]
Logits = Sequence[Float[Tensor, "b ..."]]


def discriminator_loss(real: Logits, fake: Logits, kind: Adversarial = "hinge") -> Float[Tensor, " scales"]:
    """For each sub-discriminator, how badly it tells real from fake."""
    if kind == "mse":
        return torch.stack([(1.0 - r).square().mean() + f.square().mean() for r, f in zip(real, fake, strict=True)])
    return torch.stack([F.relu(1.0 - r).mean() + F.relu(1.0 + f).mean() for r, f in zip(real, fake, strict=True)])


def generator_loss(fake: Logits, kind: Adversarial = "hinge") -> Float[Tensor, ""]:
    """How far from real the sub-discriminators find a fake, on average."""
    match kind:
        case "hinge":
            losses = [-f.mean() for f in fake]
        case "hinge2":
            losses = [F.relu(1.0 - f).mean() for f in fake]
        case "mse":
            losses = [(1.0 - f).square().mean() for f in fake]
    return torch.stack(losses).mean()


def feature_matching_loss(real: Sequence[Sequence[Tensor]], fake: Sequence[Sequence[Tensor]]) -> Float[Tensor, ""]:
    """L1 between a critic's features of real and fake: the mean over layers, then over sub-discriminators."""
    scales = [
        torch.stack([F.l1_loss(f, r.detach()) for r, f in zip(reals, fakes, strict=True)]).mean()
        for reals, fakes in zip(real, fake, strict=True)
    ]
    return torch.stack(scales).mean()
