"""Sampler: an endless sequence of batches in which batch number n is always the same."""

import hashlib
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

import torch
from torch.utils.data import Sampler

from cadenza.core.errors import DataError
from cadenza.data.items import SampleIndex


class BatchSampler(Sampler[list[SampleIndex]]):
    """Batches of draws: shuffled epochs end to end, so that batches are full and span their borders.

    `world` processes with batches of `batch` see together what one sees with `world * batch`. The whole state is
    `position`, the number of the next batch.
    """

    def __init__(self, size: int, batch: int, *, seed: int = 0, rank: int = 0, world: int = 1, shuffle: bool = True) -> None:
        if size < 1 or batch < 1:
            raise DataError(f"cannot draw batches of {batch} from {size} items; both must be at least 1")
        if not 0 <= rank < world:
            raise DataError(f"there is no process {rank} among {world}")
        self.size, self.batch, self.seed, self.shuffle = size, batch, seed, shuffle
        self.rank, self.world, self.position = rank, world, 0
        self._order = lru_cache(maxsize=2)(self._permutation)

    @property
    def epoch(self) -> int:
        """Times that every item has been drawn before the next batch."""
        return self.position * self.batch * self.world // self.size

    def batch_at(self, position: int) -> list[SampleIndex]:
        """This process's part of batch number `position`."""
        first = (position * self.world + self.rank) * self.batch
        return [self._draw(place) for place in range(first, first + self.batch)]

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        while True:
            self.position += 1
            yield self.batch_at(self.position - 1)

    def from_position(self, position: int) -> "BatchSampler":
        """The same sequence from batch number `position` on."""
        again = BatchSampler(self.size, self.batch, seed=self.seed, rank=self.rank, world=self.world, shuffle=self.shuffle)
        again.position = position
        return again

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, "epoch": self.epoch, "size": self.size, "seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, now in {"size": self.size, "seed": self.seed}.items():
            if state[name] != now:
                raise DataError(f"the data's {name} is {now} and was {state[name]} when the state was saved; use the same data")
        self.position = state["position"]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_order"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._order = lru_cache(maxsize=2)(self._permutation)

    def _draw(self, place: int) -> SampleIndex:
        epoch, inside = divmod(place, self.size)
        return SampleIndex(self._order(epoch)[inside] if self.shuffle else inside, epoch)

    def _permutation(self, epoch: int) -> list[int]:
        seed = int.from_bytes(hashlib.sha256(f"{self.seed}/{epoch}".encode()).digest()[:8], "little", signed=True)
        return torch.randperm(self.size, generator=torch.Generator().manual_seed(seed)).tolist()
