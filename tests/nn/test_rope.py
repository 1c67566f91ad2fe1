"""Positions against AudioCraft's tables (kit case 11) and the definition of rotary embeddings."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from cadenza.nn.rope import apply_rotary, rotary_table, sinusoidal_embedding


def test_sinusoids_equal_audiocraft(kit: Callable[[str], Path]) -> None:
    want = load_file(kit("11") / "expected.safetensors")
    for width in (8, 48):
        table = sinusoidal_embedding(torch.arange(50)[None], width)
        torch.testing.assert_close(table, want[f"sin.{width}"], atol=1e-5, rtol=0)


def test_sinusoids_by_hand() -> None:
    row = sinusoidal_embedding(torch.tensor([[0, 7]]), 6)[0]
    assert row[0].tolist() == [1, 1, 1, 0, 0, 0]
    want = [f(7 / 10000**i) for f in (math.cos, math.sin) for i in (0, 0.5, 1)]
    torch.testing.assert_close(row[1], torch.tensor(want))


def test_an_odd_width_ends_in_zero() -> None:
    row = sinusoidal_embedding(torch.tensor([[7]]), 7)[0, 0]
    assert torch.equal(row, torch.cat([sinusoidal_embedding(torch.tensor([[7]]), 6)[0, 0], torch.zeros(1)]))


def test_rotation_is_multiplication_by_unit_complex_numbers() -> None:
    x = torch.randn(1, 2, 5, 8, dtype=torch.float64)
    positions = torch.tensor([[0, 3, 4, 10, 500]])
    got = apply_rotary(x, rotary_table(positions, 8))
    turn = torch.polar(torch.ones(5, 4).double(), positions[0, :, None] * 10000.0 ** (-torch.arange(4).double() / 4))
    want = torch.complex(x[..., :4], x[..., 4:]) * turn
    torch.testing.assert_close(got, torch.cat([want.real, want.imag], -1), atol=1e-4, rtol=1e-4)


def test_scores_depend_only_on_the_distance() -> None:
    q, k = torch.randn(1, 1, 1, 16), torch.randn(1, 1, 1, 16)
    here = [apply_rotary(q, rotary_table(torch.tensor([[9 + s]]), 16)) for s in (0, 100)]
    there = [apply_rotary(k, rotary_table(torch.tensor([[2 + s]]), 16)) for s in (0, 100)]
    scores = [(a * b).sum() for a, b in zip(here, there, strict=True)]
    torch.testing.assert_close(scores[0], scores[1], atol=1e-4, rtol=1e-4)


def test_half_precision_stays_half() -> None:
    x = torch.randn(1, 1, 3, 4)
    rotation = rotary_table(torch.arange(3)[None], 4)
    assert apply_rotary(x.bfloat16(), rotation).dtype == torch.bfloat16
    torch.testing.assert_close(apply_rotary(x, rotation).norm(dim=-1), x.norm(dim=-1))
