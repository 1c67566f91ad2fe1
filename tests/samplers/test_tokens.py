"""Token sampling, compared with the exact distributions."""

import pytest
import torch

from cadenza.core.errors import SpecError
from cadenza.samplers.tokens import TokenSampling, sample_tokens, uniform_noise


def drawn(logits: torch.Tensor, sampling: TokenSampling, n: int = 20000) -> torch.Tensor:
    """Return the frequency of each token over evenly spaced uniforms; exact up to 1 / n."""
    ids = sample_tokens(logits.expand(n, -1), (torch.arange(n) + 0.5) / n, sampling)
    return ids.bincount(minlength=logits.shape[-1]) / n


def test_frequencies_are_the_softmax() -> None:
    logits = torch.randn(11, generator=torch.Generator().manual_seed(0))
    for temperature in (0.5, 1.0, 2.0):
        got = drawn(logits, TokenSampling(temperature=temperature, top_k=0))
        torch.testing.assert_close(got, (logits / temperature).softmax(-1), atol=2e-4, rtol=0)


def test_top_k_and_top_p_keep_the_likeliest() -> None:
    probability = torch.tensor([0.05, 0.4, 0.1, 0.3, 0.15])
    got = drawn(probability.log(), TokenSampling(top_k=2))
    torch.testing.assert_close(got, torch.tensor([0, 4 / 7, 0, 3 / 7, 0]), atol=2e-4, rtol=0)
    for top_p, want in ((0.5, [0, 4 / 7, 0, 3 / 7, 0]), (0.7, [0, 4 / 7, 0, 3 / 7, 0]), (0.72, [0, 8 / 17, 0, 6 / 17, 3 / 17])):
        got = drawn(probability.log(), TokenSampling(top_k=0, top_p=top_p - 1e-4))
        torch.testing.assert_close(got, torch.tensor(want), atol=2e-4, rtol=0)
    assert drawn(probability.log(), TokenSampling(top_k=3, top_p=0.01))[1] == 1


def test_greedy_ignores_the_noise() -> None:
    logits = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    for u in (0.0, 0.999):
        assert torch.equal(sample_tokens(logits, torch.full((7,), u), TokenSampling(temperature=0)), logits.argmax(-1))


def test_extreme_uniforms_never_give_excluded_tokens() -> None:
    logits = torch.full((2, 5), -torch.inf)
    logits[:, 2] = 3.0
    edges = torch.tensor([0.0, 1 - 2**-24])
    for sampling in (TokenSampling(), TokenSampling(temperature=1e-6), TokenSampling(top_p=0.5), TokenSampling(top_k=1)):
        assert sample_tokens(logits, edges, sampling).tolist() == [2, 2]


def test_a_tiny_temperature_is_greedy() -> None:
    logits = torch.randn(9, 6, generator=torch.Generator().manual_seed(0)) * 10
    got = sample_tokens(logits, torch.rand(9), TokenSampling(temperature=1e-30))
    assert torch.equal(got, logits.argmax(-1))


def test_uniforms_are_functions_of_seed_frame_and_codebook() -> None:
    table = uniform_noise([3, 8], 0, 200, 4)
    assert table.shape == (2, 4, 200) and table.dtype == torch.float32
    assert torch.equal(uniform_noise([8], 0, 200, 4)[0], table[1])
    assert torch.equal(uniform_noise([8, 3], 70, 65, 2), table.flip(0)[:, :2, 70:135])
    assert torch.equal(uniform_noise([3], 199, 1, 4)[0], table[0, :, 199:])
    flat = uniform_noise([0, 1, 2, 2**63, -1], 0, 300, 8).flatten()
    assert len(flat.unique()) > 0.999 * len(flat)


def test_uniforms_are_uniform_and_uncorrelated() -> None:
    table = uniform_noise(list(range(40)), 0, 512, 4).double()
    flat = table.flatten().sort().values
    n = len(flat)
    assert (flat - (torch.arange(n) + 0.5) / n).abs().max() < 1.63 / n**0.5  # Kolmogorov-Smirnov at 1 %
    assert 0 <= flat[0] and flat[-1] < 1
    centred = table - 0.5
    for a, b in (
        (centred[:-1], centred[1:]),
        (centred[:, :-1], centred[:, 1:]),
        (centred[..., :-1], centred[..., 1:]),
        (centred[..., :-64], centred[..., 64:]),
    ):
        assert (a * b).mean().abs() * 12 < 4 / a.numel() ** 0.5


@pytest.mark.parametrize(
    "bad", [{"temperature": -1}, {"top_k": -5}, {"top_p": 1.5}, {"temperature": float("nan")}, {"topk": 3}]
)
def test_invalid_values_are_rejected(bad: dict[str, float]) -> None:
    with pytest.raises(SpecError, match=next(iter(bad))):
        TokenSampling.parse(bad)
