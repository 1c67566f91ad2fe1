"""Quantisers against closed forms."""

import socket
from pathlib import Path

import pytest
import torch
from torch import Tensor, distributed, multiprocessing

from cadenza.nn.vector_quantize import Codebook, ResidualVectorQuantizer


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_nearest_is_by_euclidean_distance() -> None:
    book, x = Codebook(50, 6), torch.randn(300, 6)
    assert torch.equal(book.nearest(x), torch.cdist(x.double(), book.embed.double()).argmin(-1))


def test_each_level_quantises_the_residual() -> None:
    quantizer, z = ResidualVectorQuantizer(5, codebooks=3, bins=11), torch.randn(2, 5, 7)
    codes = quantizer.encode(z)
    left = z.transpose(1, 2)
    for k, level in enumerate(quantizer.levels):
        expected = torch.cdist(left, level.embed[None].expand(2, -1, -1)).argmin(-1)
        assert torch.equal(codes[:, k], expected)
        left = left - level.embed[expected]
    torch.testing.assert_close(quantizer.decode(codes), z - left.transpose(1, 2))
    torch.testing.assert_close(quantizer.decode(codes[:, :1]), quantizer.levels[0].embed[codes[:, 0]].transpose(1, 2))


def test_gradient_passes_straight_through() -> None:
    quantizer, z = ResidualVectorQuantizer(5, codebooks=3, bins=11), torch.randn(2, 5, 7, requires_grad=True)
    made = quantizer(z)
    torch.testing.assert_close(made.latents, quantizer.decode(made.codes))
    weight = torch.randn_like(z)
    (made.latents * weight).sum().backward()
    torch.testing.assert_close(z.grad, weight)


def test_commitment_covers_every_level() -> None:
    quantizer, z = ResidualVectorQuantizer(5, codebooks=2, bins=11), torch.randn(2, 5, 7, requires_grad=True)
    made = quantizer(z)
    left = [z.detach() - quantizer.decode(made.codes[:, :k]) if k else z.detach() for k in range(3)]
    expected = (left[1].square().mean() + left[2].square().mean()) / 2
    torch.testing.assert_close(made.commitment.detach(), expected)
    made.commitment.backward()
    torch.testing.assert_close(z.grad, (left[1] + left[2]) / z.numel())


def test_fewer_codebooks_are_the_first_ones() -> None:
    quantizer, z = ResidualVectorQuantizer(5, codebooks=3, bins=11), torch.randn(2, 5, 7)
    made = quantizer(z, num_codebooks=2)
    assert torch.equal(made.codes, quantizer.encode(z)[:, :2])


def test_no_update_without_rng() -> None:
    quantizer = ResidualVectorQuantizer(5, codebooks=2, bins=11).train()
    before = {name: x.clone() for name, x in quantizer.state_dict().items()}
    quantizer(torch.randn(2, 5, 7))
    assert all(torch.equal(before[name], x) for name, x in quantizer.state_dict().items())


def test_codebook_is_the_running_average_of_its_inputs() -> None:
    """Against the sums written out: usage_n and total_n are exponentially weighted means."""
    book = Codebook(3, 2, decay=0.9, dead=0.0)
    book.embed.copy_(torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]]))
    book.total.copy_(book.embed / 3)
    usage, total = torch.full((3,), 1 / 3).double(), (book.embed / 3).double()
    draw = rng(1)
    for _ in range(20):
        x = book.embed[torch.randint(3, (40,), generator=draw)] + torch.randn(40, 2, generator=draw)
        ids = book.nearest(x)
        book.ema_update(x, ids, rng())
        for j in range(3):
            mine = x[ids == j].double()
            usage[j] = 0.9 * usage[j] + 0.1 * len(mine) / 40
            total[j] = 0.9 * total[j] + 0.1 * mine.sum(0) / 40
    torch.testing.assert_close(book.embed.double(), total / usage[:, None], atol=1e-3, rtol=1e-4)
    torch.testing.assert_close(book.usage.double(), usage, atol=1e-6, rtol=1e-5)


def test_replaced_entries_stay_and_are_used() -> None:
    """Check a bug of the reference, whose average undid the replacement in the same step."""
    torch.manual_seed(0)
    book = Codebook(8, 2, decay=0.9)
    book.embed.copy_(torch.randn(8, 2))
    book.embed[5:] += 1000.0  # nothing is near them
    book.total.copy_(book.embed / 8)
    draw = rng(2)
    for _ in range(60):
        x = torch.randn(64, 2, generator=draw)
        book.ema_update(x, book.nearest(x), draw)
    assert book.embed.abs().max() < 5.0
    x = torch.randn(4000, 2, generator=draw)
    assert (torch.bincount(book.nearest(x), minlength=8) > 40).all()


def test_a_replaced_entry_is_a_vector_of_the_batch() -> None:
    book = Codebook(4, 2)
    book.embed.copy_(torch.tensor([[0.0, 0.0], [99.0, 0.0], [0.0, 99.0], [99.0, 99.0]]))
    book.usage.copy_(torch.tensor([0.97, 0.01, 0.01, 0.01]))
    book.total.copy_(book.embed * book.usage[:, None])
    x = torch.randn(30, 2)
    book.ema_update(x, book.nearest(x), rng())
    assert all(torch.isclose(x, book.embed[j], atol=1e-5).all(-1).any() for j in (1, 2, 3))


def clusters(count: int, dim: int, spread: float, seed: int) -> tuple[Tensor, Tensor]:
    draw = rng(seed)
    centres = 20.0 * torch.randn(count, dim, generator=draw)
    return centres, (centres[:, None] + spread * torch.randn(count, 100, dim, generator=draw)).flatten(0, 1)


def test_kmeans_finds_clusters() -> None:
    _, x = clusters(6, 4, 0.1, 3)
    book = Codebook(24, 4)
    book.kmeans_init(x, rng())
    error = (x - book(book.nearest(x))).square().sum(-1).mean()
    assert error < 0.05 * x.var(0).sum()
    assert (torch.bincount(book.nearest(x), minlength=24) > 0).float().mean() > 0.9


def test_kmeans_initialises_each_level_from_the_residual() -> None:
    """Sums of two independent codebooks: one level cannot explain them, two can."""
    a, b = 10.0 * torch.randn(4, 8, generator=rng(4)), torch.randn(4, 8, generator=rng(5))
    x = (a[:, None] + b[None]).flatten(0, 1).repeat(50, 1) + 0.01 * torch.randn(800, 8, generator=rng(6))
    quantizer = ResidualVectorQuantizer(8, codebooks=2, bins=8)
    quantizer.kmeans_init(x, rng(7))
    z = x.T[None]
    codes = quantizer.encode(z)
    errors = [(quantizer.decode(codes[:, :k]) - z).square().mean() for k in (1, 2)]
    assert errors[1] < 0.3 * errors[0]


def _learn(rank: int, world: int, port: int, folder: str) -> None:
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", rank=rank, world_size=world)
    torch.save(_taught(rank, world), Path(folder) / f"{rank}.pt")
    distributed.destroy_process_group()


def _taught(rank: int, world: int) -> dict[str, Tensor]:
    book = Codebook(16, 4)
    book.load_state_dict({k: torch.randn(v.shape, generator=rng(8)).abs() * 0.02 for k, v in book.state_dict().items()})
    draw, picks = rng(9), rng(10 + rank)  # only the first process's draws count
    for _ in range(5):
        x = torch.randn(60, 4, generator=draw)
        x = x[60 // world * rank : 60 // world * (rank + 1)]
        book.ema_update(x, book.nearest(x), picks)
    return book.state_dict()


def test_two_processes_equal_one_with_twice_the_batch(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.start_processes(_learn, (2, port, str(tmp_path)), nprocs=2, start_method="fork")  # type: ignore[attr-defined]
    alone = _taught(0, 1)
    for rank in range(2):
        for name, x in torch.load(tmp_path / f"{rank}.pt").items():
            torch.testing.assert_close(x, alone[name], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("frames", [1, 3])
def test_kmeans_accepts_fewer_latents_than_entries(frames: int) -> None:
    quantizer = ResidualVectorQuantizer(4, codebooks=2, bins=8)
    quantizer.kmeans_init(torch.randn(frames, 4), rng())
    assert all(torch.isfinite(x).all() for x in quantizer.state_dict().values())
