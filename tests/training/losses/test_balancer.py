"""The balancer against AudioCraft's numbers and its own promise: a loss's weight is its share of the gradient."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

from cadenza.training.losses import Balancer

OPTIONS: dict[str, dict[str, Any]] = {
    "default": {},
    "nobatch": {"per_item": False, "decay": 0.9, "total_norm": 2.0},
    "nobalance": {"balance": False},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_reference_balancer(kit: Callable[[str], Path], name: str) -> None:
    expected = load_file(kit("12") / "expected.safetensors")
    balancer, shares = Balancer({"a": 1.0, "b": 4.0}, **OPTIONS[name]), torch.zeros(0)
    for step in range(4):
        x = (expected["x"] * (1.0 + 0.1 * step)).requires_grad_()
        losses = {"a": F.l1_loss(x, expected["y"]), "b": F.mse_loss(x, expected["y"]) * 10.0**step}
        balanced = balancer(losses, x)
        balanced.loss.backward()
        assert x.grad is not None
        torch.testing.assert_close(balanced.effective, expected[f"balancer.{name}.effective_loss"][step], atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(x.grad.norm(), expected[f"balancer.{name}.grad_norm"][step], atol=1e-4, rtol=1e-3)
        torch.testing.assert_close(x.grad[:, 0, :16], expected[f"balancer.{name}.grad_head"][step], atol=1e-6, rtol=1e-3)
        shares = torch.stack(list(balanced.shares.values()))
    torch.testing.assert_close(shares, expected[f"balancer.{name}.ratios"], atol=1e-4, rtol=1e-3)


def test_scale_of_a_loss_does_not_matter() -> None:
    y = torch.randn(3, 1, 50)
    grads = []
    for scale in (1.0, 1e6):
        x = torch.zeros(3, 1, 50, requires_grad=True)
        Balancer({"a": 1.0, "b": 3.0})({"a": (x - y).abs().mean(), "b": scale * (x - 2 * y).square().mean()}, x).loss.backward()
        grads.append(x.grad)
    torch.testing.assert_close(grads[0], grads[1])


def test_shares_of_orthogonal_losses_are_their_weights() -> None:
    x = torch.zeros(1, 2, requires_grad=True)
    Balancer({"a": 1.0, "b": 3.0})({"a": 100.0 * x[0, 0], "b": 0.01 * x[0, 1]}, x).loss.backward()
    torch.testing.assert_close(x.grad, torch.tensor([[0.25, 0.75]]))


def test_averages_are_restored_with_the_state() -> None:
    def run(balancer: Balancer, steps: range) -> torch.Tensor:
        grad = torch.zeros(0)
        for step in steps:
            x = torch.zeros(1, 2, requires_grad=True)
            balancer({"a": (step + 1.0) * x[0, 0], "b": x[0, 1] / (step + 1.0)}, x).loss.backward()
            assert x.grad is not None
            grad = x.grad
        return grad

    whole, first, second = (Balancer({"a": 1.0, "b": 1.0}, decay=0.9) for _ in range(3))
    expected = run(whole, range(6))
    run(first, range(3))
    second.load_state_dict(first.state_dict())
    assert torch.equal(run(second, range(3, 6)), expected)


def test_a_loss_may_join_later() -> None:
    balancer, x = Balancer({"a": 1.0, "late": 1.0}), torch.zeros(0)
    for step in range(3):
        x = torch.zeros(1, 2, requires_grad=True)
        losses = {"a": x[0, 0]} | ({"late": 5.0 * x[0, 1]} if step == 2 else {})
        balancer(losses, x).loss.backward()
    torch.testing.assert_close(x.grad, torch.tensor([[0.5, 0.5]]))
