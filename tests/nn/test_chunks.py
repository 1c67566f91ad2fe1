"""Overlapping chunks: where they lie, and their weighted sum against formulas."""

import pytest
import torch

from cadenza.nn.chunks import Chunks, overlap_add


def test_a_chunk_begins_at_every_stride_while_samples_are_left() -> None:
    chunks = Chunks(4800, 4752)
    assert chunks.spans(4752) == [(0, 4752)]
    assert chunks.spans(4753) == [(0, 4753), (4752, 4753)]
    assert chunks.spans(4800) == [(0, 4800), (4752, 4800)]
    assert chunks.spans(10000) == [(0, 4800), (4752, 9552), (9504, 10000)]
    assert Chunks(8, 2).spans(5) == [(0, 5), (2, 5), (4, 5)]


@pytest.mark.parametrize(("length", "stride"), [(4, 0), (4, 5)])
def test_chunks_leave_no_gaps(length: int, stride: int) -> None:
    with pytest.raises(ValueError, match="gaps"):
        Chunks(length, stride)


@pytest.mark.parametrize(("length", "stride", "samples"), [(8, 6, 27), (8, 2, 13), (7, 7, 20), (9, 5, 4)])
def test_pieces_of_a_wave_add_up_to_it(length: int, stride: int, samples: int) -> None:
    wave = torch.randn(2, 3, samples, generator=torch.Generator().manual_seed(0))
    pieces = [wave[..., start:stop] for start, stop in Chunks(length, stride).spans(samples)]
    torch.testing.assert_close(overlap_add(pieces, stride), wave)


def test_one_fades_into_the_other_along_the_triangle() -> None:
    """Chunks of 10 every 8: in the overlap the first weighs 2, 1 and the second 1, 2."""
    one, other = torch.zeros(1, 1, 10), torch.ones(1, 1, 10)
    expected = torch.tensor([0.0] * 8 + [1 / 3, 2 / 3] + [1.0] * 8)
    torch.testing.assert_close(overlap_add([one, other], 8)[0, 0], expected)
    half = overlap_add([one.half(), other.half()], 8)
    assert half.dtype == torch.float16 and torch.allclose(half.float()[0, 0], expected, atol=1e-3)
