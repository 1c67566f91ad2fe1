"""A system, a task with two groups and data, all tiny, for the tests of the trainer; run as a script, it trains."""

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler

from cadenza.codecs.base import CodecSpec
from cadenza.core.types import FrameFormat
from cadenza.data.loader import ignore_stop_signals
from cadenza.dsp.audio import Audio
from cadenza.training.config import TrainingConfig
from cadenza.training.distributed import DistributedContext
from cadenza.training.loop import TrainingData, TrainingLoop, TrainingResult
from cadenza.training.tasks.base import StepContext, Task, TaskSpec


class ToyCodecSpec(CodecSpec):
    type: Literal["toy"] = "toy"
    sample_rate: int = 100

    @property
    def frame_format(self) -> FrameFormat:
        return FrameFormat("codes", 10.0, 1, 16)


class ToyTaskSpec(TaskSpec):
    type: Literal["toy"] = "toy"
    noisy: bool = True

    def build(self, system: Any) -> "GanTask":
        return GanTask(system, self.noisy)


class Net(nn.Module):
    """A linear autoencoder with a buffer that training moves, dropout, and a discriminator."""

    def __init__(self) -> None:
        super().__init__()
        rng = torch.Generator().manual_seed(7)
        self.codec = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Dropout(0.1), nn.Linear(8, 6))
        self.codec.register_buffer("seen", torch.zeros(6))
        self.discriminator = nn.Sequential(nn.Linear(6, 8), nn.LeakyReLU(), nn.Linear(8, 1))
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.randn(p.shape, generator=rng) * 0.4)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.state_dict(), folder / "model.safetensors")


class GanTask(Task):
    def __init__(self, net: Net, noisy: bool = True) -> None:
        self.net, self.noisy = net, noisy
        if not noisy:
            net.codec[2].p = 0.0  # type: ignore[union-attr,assignment]

    def optimized_modules(self) -> dict[str, nn.Module]:
        return {"codec": self.net.codec, "discriminator": self.net.discriminator}

    def step(self, batch: Any, progress: StepContext) -> Iterator[tuple[str, dict[str, Tensor]]]:
        x = batch["x"]
        noise = torch.randn(x.shape, generator=progress.rng) if self.noisy else torch.zeros_like(x)
        y = self.net.codec(x + 0.1 * noise)
        if self.noisy:
            self.net.codec.seen.mul_(0.9).add_(x.mean(0), alpha=0.1)  # type: ignore[operator,union-attr]
        yield "discriminator", critic_losses(self.net, x, y)
        yield "codec", codec_losses(self.net, x, y)

    def validate(self, batch: Any) -> dict[str, Tensor]:
        torch.rand(3)  # validation may draw; training must not notice
        y = self.net.codec(batch["x"])
        return {"loss": (batch["x"] - y).abs().mean()}

    def sample_audio(self, batch: Any) -> dict[str, Audio]:
        return {"toy": Audio(self.net.codec(batch["x"]).flatten()[None, None].tanh(), 8000)}


def critic_losses(net: Net, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    real, fake = (1 - net.discriminator(x)).relu().mean(), (1 + net.discriminator(y.detach())).relu().mean()
    return {"loss": real + fake, "real": real.detach(), "fake": fake.detach()}


def codec_losses(net: Net, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    l1, fooled = (x - y).abs().mean(), -net.discriminator(y).mean()
    return {"loss": 10 * l1 + fooled, "l1": l1.detach(), "fooled": fooled.detach()}


class Points(Dataset[dict[str, Any]]):
    """Item n is always the same; `broken` is the item that holds a NaN."""

    def __init__(self, length: int = 50, broken: int | None = None) -> None:
        self.length, self.broken = length, broken

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> dict[str, Any]:
        x = torch.randn(6, generator=torch.Generator().manual_seed(index))
        return {"id": f"point-{index}", "x": x * torch.nan if index == self.broken else x}


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    return {"ids": [item["id"] for item in items], "x": torch.stack([item["x"] for item in items]), "seconds": 0.5}


@dataclass
class Order(Sampler[list[int]]):
    """Endless: batch n takes items from a shuffle of its epoch; each process its part of the larger batch."""

    length: int
    batch: int
    position: int = 0
    rank: int = 0
    processes: int = 1

    def __iter__(self) -> Iterator[list[int]]:
        whole = self.batch * self.processes
        number = self.position
        while True:
            epoch, place = divmod(number, self.length // whole)
            order = torch.randperm(self.length, generator=torch.Generator().manual_seed(epoch)).tolist()
            start = place * whole + self.rank * self.batch
            yield order[start : start + self.batch]
            number += 1


@dataclass
class ToyBatches:
    dataset: Points
    batch: int
    workers: int = 0
    rank: int = 0
    processes: int = 1

    def iter_from(self, position: int) -> Iterator[Any]:
        order = Order(len(self.dataset), self.batch, position, self.rank, self.processes)
        yield from DataLoader(
            self.dataset, batch_sampler=order, num_workers=self.workers, collate_fn=collate, worker_init_fn=ignore_stop_signals
        )


def config(**overrides: Any) -> TrainingConfig:
    plain: dict[str, Any] = {
        "system": {"codec": {"type": "toy"}}, "task": {"type": "toy"}, "steps": 40, "batch": 4, "accumulation": 3,
        "workers": 0, "lr": 1e-2, "warmup": 5, "ema": 0.9, "log_every": 1, "validate_every": 10, "samples_every": 10**6,
        "checkpoint_every": 10, "trackers": [],
    }  # fmt: skip
    return TrainingConfig.parse({**plain, **overrides})


def train(
    folder: Path, *, data: Points | None = None, net: Net | None = None, samples: bool = False, **overrides: Any
) -> tuple[TrainingResult, Net]:
    """Trains in a folder, or goes on there."""
    settings = config(**overrides)
    engine = DistributedContext(settings.precision, cpu=True)
    net = net or Net()
    batches = ToyBatches(data or Points(), settings.batch, settings.workers, engine.rank, engine.processes)
    held = collate([Points()[1000 + i] for i in range(4)])
    material = TrainingData(batches, [held], held if samples else None)
    task = settings.task.build(net)
    folder.mkdir(parents=True, exist_ok=True)
    loop = TrainingLoop(settings, task, folder=folder, engine=engine, save=net.save)
    loop.resume()
    return loop.run(material), net


if __name__ == "__main__":
    import yaml

    torch.set_num_threads(1)
    torch.manual_seed(int(os.environ.get("TOY_SEED", "0")))
    train(Path(sys.argv[1]), **yaml.safe_load(sys.argv[2]))
