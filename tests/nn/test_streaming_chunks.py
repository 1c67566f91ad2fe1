"""Overlapping chunks: their positions, and their weighted sum against formulas."""

import pytest
import torch

from cadenza.nn.streaming import ChunkedStream, ChunkLayout, OverlapAdder, overlap_add


def test_chunks_start_at_every_stride_of_the_clip() -> None:
    chunks = ChunkLayout(4800, 4752)
    assert chunks.spans(4752) == [(0, 4752)]
    assert chunks.spans(4753) == [(0, 4753), (4752, 4753)]
    assert chunks.spans(4800) == [(0, 4800), (4752, 4800)]
    assert chunks.spans(10000) == [(0, 4800), (4752, 9552), (9504, 10000)]
    assert ChunkLayout(8, 2).spans(5) == [(0, 5), (2, 5), (4, 5)]


@pytest.mark.parametrize(("length", "stride"), [(4, 0), (4, 5)])
def test_chunks_leave_no_gaps(length: int, stride: int) -> None:
    with pytest.raises(ValueError, match="stride must be between 1 and the chunk length"):
        ChunkLayout(length, stride)


@pytest.mark.parametrize(("length", "stride", "samples"), [(8, 6, 27), (8, 2, 13), (7, 7, 20), (9, 5, 4)])
def test_overlap_add_restores_the_wave(length: int, stride: int, samples: int) -> None:
    wave = torch.randn(2, 3, samples, generator=torch.Generator().manual_seed(0))
    pieces = [wave[..., start:stop] for start, stop in ChunkLayout(length, stride).spans(samples)]
    torch.testing.assert_close(overlap_add(pieces, stride), wave)


def test_overlap_is_weighted_by_a_triangle() -> None:
    """Chunks of 10 every 8: in the overlap the first weighs 2, 1 and the second 1, 2."""
    one, other = torch.zeros(1, 1, 10), torch.ones(1, 1, 10)
    expected = torch.tensor([0.0] * 8 + [1 / 3, 2 / 3] + [1.0] * 8)
    torch.testing.assert_close(overlap_add([one, other], 8)[0, 0], expected)
    half = overlap_add([one.half(), other.half()], 8)
    assert half.dtype == torch.float16 and torch.allclose(half.float()[0, 0], expected, atol=1e-3)


def test_push_returns_samples_that_no_later_chunk_covers() -> None:
    rng = torch.Generator().manual_seed(0)
    pieces = [torch.randn(2, 3, size, generator=rng) for size in (10, 10, 10, 7)]
    overlap = OverlapAdder(8)
    given = [overlap.push(piece) for piece in pieces]
    assert [part.shape[-1] for part in given] == [8, 8, 8, 7] and overlap.flush().shape[-1] == 0
    torch.testing.assert_close(torch.cat(given, -1), overlap_add(pieces, 8))
    torch.testing.assert_close(given[1][..., 2:], pieces[1][..., 2:8])
    torch.testing.assert_close(given[1][..., 0], (2 * pieces[0][..., 8] + pieces[1][..., 0]) / 3)


def test_stream_decodes_each_chunk_when_it_is_complete() -> None:
    """Each frame stands for 4 samples; chunks of 3 frames every 10 samples, of which the second clip has no whole one."""
    stream = ChunkedStream(lambda z: z.repeat_interleave(4, -1), frames=3, stride=10)
    z = torch.arange(1.0, 9).repeat(2, 1, 1)
    given = [
        stream.push(z[..., :2], [2, 2]),
        stream.push(z[..., 2:6], [4, 0]),
        stream.push(z[..., 6:], [2, 0]),
        stream.flush(),
    ]
    assert [{clip: wave.shape[-1] for clip, wave in part.items()} for part in given] == [{}, {0: 20, 1: 8}, {}, {0: 8}]
    whole = torch.cat([part[0] for part in given if 0 in part], -1)[0]
    assert whole[:10].tolist() == [1, 1, 1, 1, 2, 2, 2, 2, 3, 3]
    assert whole[10:12].tolist() == pytest.approx([(2 * 3 + 1 * 4) / 3, (1 * 3 + 2 * 4) / 3])
    assert whole[20:].tolist() == pytest.approx([(2 * 6 + 1 * 7) / 3, (1 * 6 + 2 * 7) / 3, 7, 7, 8, 8, 8, 8])
    assert given[1][1][0].tolist() == [1, 1, 1, 1, 2, 2, 2, 2]
