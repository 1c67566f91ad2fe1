"""What decays, how the rate goes, and what the average is."""

import math

import pytest
import torch
from torch import nn
from training_toys import config

from cadenza.core.errors import TrainingError
from cadenza.training.optim import EMA, build_optimizers, lr_multiplier, weight_decay_groups


def test_only_matrices_decay() -> None:
    module = nn.ModuleDict(
        {
            "linear": nn.Linear(3, 4),
            "norm": nn.LayerNorm(4),
            "conv": nn.utils.parametrizations.weight_norm(nn.Conv1d(2, 3, 5)),
            "table": nn.Embedding(7, 4),
        }
    )
    module.register_parameter("null", nn.Parameter(torch.zeros(1, 4)))
    module["linear"].bias.requires_grad_(False)
    names = {id(p): name for name, p in module.named_parameters()}
    groups = [({names[id(p)] for p in group["params"]}, group["weight_decay"]) for group in weight_decay_groups(module, 0.1)]  # type: ignore[attr-defined]
    assert groups == [
        ({"linear.weight", "conv.parametrizations.weight.original1"}, 0.1),
        ({"norm.weight", "norm.bias", "conv.bias", "conv.parametrizations.weight.original0", "table.weight", "null"}, 0.0),
    ]


def test_the_rate_rises_then_falls_along_half_a_cosine() -> None:
    settings = config(steps=110, warmup=10, final_lr_ratio=0.1)
    assert [lr_multiplier(step, settings) for step in (0, 4, 9)] == pytest.approx([0.1, 0.5, 1.0])
    assert [lr_multiplier(step, settings) for step in (10, 60, 110, 500)] == pytest.approx([1.0, 0.55, 0.1, 0.1])
    assert lr_multiplier(35, settings) == pytest.approx(0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2)
    assert lr_multiplier(0, config(steps=10, warmup=0)) == 1.0


def test_the_rate_may_fall_as_the_inverse_square_root() -> None:
    settings = config(steps=10_000, warmup=100, schedule="inverse_sqrt")
    assert [lr_multiplier(step, settings) for step in (49, 99, 399, 9_999)] == pytest.approx([0.5, 1.0, 0.5, 0.1])
    assert [lr_multiplier(step, config(warmup=0, schedule="inverse_sqrt")) for step in (0, 3)] == pytest.approx([1.0, 0.5])


def test_groups_have_their_own_rates_and_no_parameter_in_common() -> None:
    a, b = nn.Linear(2, 2), nn.Linear(2, 2)
    groups = build_optimizers({"a": a, "b": b}, config(groups={"b": {"lr": 1.0, "betas": [0.5, 0.6], "grad_clip": 7.0}}))
    assert (groups["a"].lr, groups["a"].grad_clip) == (1e-2, 1.0)
    assert (groups["b"].lr, groups["b"].grad_clip) == (1.0, 7.0)
    assert groups["b"].optimizer.param_groups[0]["betas"] == (0.5, 0.6)
    with pytest.raises(TrainingError, match="'0.weight' belongs to two groups, 'a' and 'b'"):
        build_optimizers({"a": a, "b": nn.Sequential(a)}, config())
    with pytest.raises(TrainingError, match="no trainable parameter"):
        build_optimizers({"a": nn.Linear(2, 2).requires_grad_(False)}, config())


def test_the_average_is_the_closed_form() -> None:
    module = nn.Linear(1, 1, bias=False)
    module.register_buffer("table", torch.zeros(2))
    values = torch.randn(30, dtype=torch.float64).tolist()
    ema = EMA(module, 0.9)
    expected = module.weight.item()
    for n, value in enumerate(values):
        module.weight.data.fill_(value)
        module.table.fill_(n)  # type: ignore[operator,union-attr]
        ema.update()
        decay = min(0.9, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
    with ema.swapped_in():
        assert module.weight.item() == pytest.approx(expected, rel=1e-5)
        assert module.table.tolist() == [29, 29]
    assert module.weight.item() == pytest.approx(values[-1])


def test_an_error_inside_gives_the_weights_back() -> None:
    module = nn.Linear(2, 2)
    ema = EMA(module, 0.5)
    module.weight.data += 1
    own = module.weight.clone()
    with pytest.raises(RuntimeError), ema.swapped_in():
        assert not torch.equal(module.weight, own)
        raise RuntimeError
    assert torch.equal(module.weight, own)
