"""Critic and adversarial losses: constants, and AudioCraft's numbers where the kit is present."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cadenza.nn.discriminators import MultiScaleSTFTDiscriminator
from cadenza.training.losses import Adversarial, discriminator_loss, feature_matching_loss, generator_loss


def test_constants() -> None:
    real, fake = [torch.full((2, 1, 3), 3.0)], [torch.full((2, 1, 3), -0.5)]
    assert discriminator_loss(real, fake).tolist() == [0.5]  # real beyond the margin, fake within it
    assert discriminator_loss(fake, real).tolist() == [1.5 + 4.0]
    assert discriminator_loss(real, fake, "mse").tolist() == [4.0 + 0.25]
    values = [float(generator_loss(fake, kind)) for kind in ("hinge", "hinge2", "mse")]
    assert values == [0.5, 1.5, 2.25]


def test_sub_discriminators_weigh_the_same_whatever_their_size() -> None:
    one, other = torch.full((1, 1, 1000), 2.0), torch.full((1, 1, 2), 4.0)
    assert float(generator_loss([one, other])) == -3.0
    zeros = [[torch.zeros(10)], [torch.zeros(2), torch.zeros(2)]]
    ones = [[torch.ones(10)], [torch.ones(2), 3 * torch.ones(2)]]
    assert float(feature_matching_loss(zeros, ones)) == (1.0 + 2.0) / 2


def test_feature_matching_teaches_only_the_fake() -> None:
    real, fake = torch.ones(3, requires_grad=True), torch.zeros(3, requires_grad=True)
    feature_matching_loss([[real]], [[fake]]).backward()
    assert real.grad is None and fake.grad is not None


def critic_of(case: Path) -> MultiScaleSTFTDiscriminator:
    """AudioCraft's discriminator under our names."""
    state = {}
    for name, value in load_file(case / "discriminator.safetensors").items():
        if not name.endswith("window"):
            ours = name.replace("discriminators.", "scales.").replace(".conv_post.conv", ".last").replace(".conv.", ".")
            ours = ours.replace("weight_g", "parametrizations.weight.original0")
            state[ours.replace("weight_v", "parametrizations.weight.original1")] = value
    critic = MultiScaleSTFTDiscriminator(1, n_ffts=(512, 256, 128), filters=4)
    critic.load_state_dict(state)
    return critic.eval()


@torch.no_grad()
def test_reference_critic(kit: Callable[[str], Path]) -> None:
    case = kit("12")
    expected = load_file(case / "expected.safetensors")
    critic = critic_of(case)
    fake, real = critic(expected["x"]), critic(expected["y"])

    def close(value: Tensor, name: str) -> None:
        torch.testing.assert_close(value, expected[name].reshape(value.shape), atol=1e-4, rtol=1e-3)

    for i in range(3):
        close(fake[i].logits, f"disc.logits_x{i}")
        close(real[i].logits, f"disc.logits_y{i}")
        close(torch.stack([feature.abs().mean() for feature in fake[i].features]), f"disc.feature_means_x{i}")
    kinds: list[Adversarial] = ["hinge", "hinge2", "mse"]
    for kind in kinds:
        close(generator_loss([o.logits for o in fake], kind), f"{kind}.generator")
        close(discriminator_loss([o.logits for o in real], [o.logits for o in fake], kind).mean(), f"{kind}.discriminator")
    close(feature_matching_loss([o.features for o in real], [o.features for o in fake]), "hinge.feature")


@pytest.mark.parametrize("kind", ["hinge", "hinge2", "mse"])
def test_a_critic_that_learns_tells_two_sounds_apart(kind: Adversarial) -> None:
    torch.manual_seed(0)
    critic = MultiScaleSTFTDiscriminator(n_ffts=(128,), filters=4)
    optimiser = torch.optim.Adam(critic.parameters(), 5e-3)
    draw = torch.Generator().manual_seed(0)
    gap = 0.0
    for _ in range(60):
        real = torch.sin(0.3 * torch.arange(800))[None, None] + 0.1 * torch.randn(4, 1, 800, generator=draw)
        fake = torch.randn(4, 1, 800, generator=draw)
        logits = [[o.logits for o in critic(wave)] for wave in (real, fake)]
        optimiser.zero_grad()
        discriminator_loss(*logits, kind).mean().backward()
        optimiser.step()
        gap = float((logits[0][0].mean() - logits[1][0].mean()).detach())
    assert gap > 0.5
