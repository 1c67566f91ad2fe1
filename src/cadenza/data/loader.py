"""Sampler: an endless sequence of batches in which batch number n is always the same."""

import hashlib
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from cadenza.conditioners.base import PreparedInputs
from cadenza.core.errors import CadenzaError, DataError
from cadenza.core.types import Codes, Latents
from cadenza.data.audio_dataset import ItemDataset
from cadenza.data.items import Broken, Item, ReadReport, SampleIndex
from cadenza.dsp.audio import Audio


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


Prepare = Callable[[Sequence[Item]], Mapping[str, PreparedInputs]]
_SIGNALS = ("audio", "codes", "latents")
_NAMES = (*_SIGNALS, "prepared", "metadata", "ids", "seconds", "broken")


@dataclass(frozen=True, eq=False)
class Batch(Mapping[str, Any]):
    """What a task gets: the items' metadata, their audio, codes or latents, and what conditioners prepared.

    As a mapping, it has what is not None under the names of its attributes, `ids` and `seconds` among them.
    """

    metadata: list[dict[str, Any]]  # of each item, its id among it
    audio: Audio | None = None
    codes: Codes | None = None
    latents: Latents | None = None
    prepared: dict[str, PreparedInputs] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)  # items that should be here and could not be read
    frame_rate: float | None = None  # of codes and latents, where known

    def __getitem__(self, name: str) -> Any:
        value = getattr(self, name, None) if name in _NAMES else None
        if value is None:
            raise KeyError(name)
        return value

    def __iter__(self) -> Iterator[str]:
        return (name for name in _NAMES if getattr(self, name) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    @property
    def ids(self) -> list[str]:
        return [item["id"] for item in self.metadata]

    @property
    def seconds(self) -> float:
        """Seconds of sound in all items together, without padding; 0 where the frame rate is not known."""
        if self.audio is not None:
            return float(self.audio.lengths.sum()) / self.audio.sample_rate
        frames = self.codes or self.latents
        return 0.0 if frames is None or not self.frame_rate else float(frames.lengths.sum()) / self.frame_rate

    def to(self, device: torch.device | str) -> "Batch":
        moved = {name: value.to(device) for name in _SIGNALS if (value := getattr(self, name)) is not None}
        return replace(self, **moved, prepared={name: value.to(device) for name, value in self.prepared.items()})

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory, from which a GPU copies without waiting."""
        moved = {name: _pinned(value) for name in _SIGNALS if (value := getattr(self, name)) is not None}
        prepared = {
            name: replace(value, tensors={k: x.pin_memory() for k, x in value.tensors.items()})
            for name, value in self.prepared.items()
        }
        return replace(self, **moved, prepared=prepared)


def collate(items: Sequence[Item], prepare: Prepare | None = None, *, frame_rate: float | None = None) -> Batch:
    """Items as one batch: signals stacked with their lengths, the rest listed; `prepare` sees whole items."""
    for name in _SIGNALS:
        with_it = [item["id"] for item in items if item.get(name) is not None]
        if with_it and len(with_it) < len(items):
            raise DataError(f"items of one batch must be alike: '{name}' is missing in some and there in '{with_it[0]}'")
    signals = {name: _stack([item[name] for item in items]) for name in _SIGNALS if items and items[0].get(name) is not None}
    metadata = [{key: value for key, value in item.items() if key not in _SIGNALS} for item in items]
    prepared = dict(prepare(items)) if prepare is not None and items else {}
    return Batch(metadata, prepared=prepared, frame_rate=frame_rate, **signals)


class BatchLoader:
    """Batches from a data set in the order of a sampler; the number of workers changes nothing but the speed.

    `report` counts what was read and names what was broken.
    """

    def __init__(
        self, dataset: ItemDataset, sampler: BatchSampler, *, workers: int = 0, prepare: Prepare | None = None,
        broken: Broken = "raise", pin: bool | None = None,
    ) -> None:  # fmt: skip
        self.dataset, self.sampler, self.workers, self.prepare = dataset, sampler, workers, prepare
        self.broken: Broken = broken
        self.pin = torch.cuda.is_available() if pin is None else pin
        self.report = ReadReport()
        self.position = 0  # of the next batch that will be given; the workers are ahead of it

    def iter_from(self, position: int) -> Iterator[Batch]:
        """An endless iterator over this process's batches from number `position` on."""
        self.position = position
        reading = DataLoader(
            _Reading(self.dataset),  # type: ignore[arg-type]
            batch_sampler=self.sampler.from_position(position),
            num_workers=self.workers,
            collate_fn=_Collating(self.prepare, _frame_rate(self.dataset)),
            pin_memory=self.pin,
            worker_init_fn=ignore_stop_signals if self.workers else None,
            prefetch_factor=4 if self.workers else None,
        )
        for batch in reading:
            if isinstance(batch, _Fault):
                raise DataError(f"the items {', '.join(batch.ids)} cannot be prepared: {batch.reason}")
            for name, reason in batch.broken.items():
                self.report.add_broken(name, reason, self.broken)
            if not batch.metadata:
                raise DataError(f"batch {self.position} holds no readable item. {self.report}")
            self.report.read += len(batch.metadata)
            self.position += 1
            yield batch

    def __iter__(self) -> Iterator[Batch]:
        return self.iter_from(self.position)

    def state_dict(self) -> dict[str, Any]:
        """Where to go on: after the batches that were given, not those read ahead."""
        return self.sampler.from_position(self.position).state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        checked = self.sampler.from_position(0)
        checked.load_state_dict(state)
        self.position = checked.position


def fixed_batches(dataset: ItemDataset, batch: int, *, count: int | None = None, prepare: Prepare | None = None) -> list[Batch]:
    """The same batches each time: `count` items spread evenly over the data set, in order."""
    count = len(dataset) if count is None else min(count, len(dataset))
    chosen = [i * len(dataset) // count for i in range(count)]
    items = [dataset[SampleIndex(index)] for index in chosen]
    rate = _frame_rate(dataset)
    return [collate(items[i : i + batch], prepare, frame_rate=rate) for i in range(0, count, batch)]


@dataclass(frozen=True)
class _Fault:
    """Something a user can mend went wrong in a worker; raised where the user sees it."""

    ids: list[str]
    reason: str


class _Reading:
    """A data set whose readable errors come back as values: an exception would lose its form between processes."""

    def __init__(self, dataset: ItemDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: SampleIndex) -> Any:
        try:
            return self.dataset[draw]
        except CadenzaError as error:
            return _Fault([self.dataset.item_id(draw.index)], str(error))


class _Collating:
    def __init__(self, prepare: Prepare | None, frame_rate: float | None) -> None:
        self.prepare, self.frame_rate = prepare, frame_rate

    def __call__(self, read: list[Any]) -> Batch | _Fault:
        items = [item for item in read if not isinstance(item, _Fault)]
        try:
            batch = collate(items, self.prepare, frame_rate=self.frame_rate)
        except CadenzaError as error:
            return _Fault([item["id"] for item in items], str(error))
        return replace(batch, broken={item.ids[0]: item.reason for item in read if isinstance(item, _Fault)})


def _frame_rate(dataset: ItemDataset) -> float | None:
    return getattr(dataset, "frame_rate", None)


def ignore_stop_signals(worker: int) -> None:
    """For a worker: Ctrl-C and SIGTERM are for the main process, which then ends its workers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_obey, args=(os.getppid(),), daemon=True).start()


def _obey(main: int) -> None:
    """Ends this process at a SIGTERM of the main process, and of nobody else."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != main:
        pass
    os._exit(0)


def _stack(parts: Sequence[Any]) -> Any:
    """Batches of one as one batch; frames as wide as the longest clip, without what pads all of them."""
    first = parts[0]
    lengths = torch.cat([part.lengths for part in parts])
    if isinstance(first, Audio):
        if len({(part.sample_rate, part.wave.shape[1]) for part in parts}) > 1:
            raise DataError("clips of one batch differ in sample rate or channels")
        return Audio(_widest([part.wave for part in parts]), first.sample_rate, lengths)
    samples = None if first.samples is None else torch.cat([part.samples for part in parts])
    if isinstance(first, Latents):
        return Latents(_widest([part.z for part in parts])[..., : int(lengths.max())], lengths, samples)
    scale = None if first.scale is None else _widest([part.scale for part in parts])
    return Codes(_widest([part.ids for part in parts])[..., : int(lengths.max())], lengths, samples, scale)


def _widest(parts: Sequence[Tensor]) -> Tensor:
    wide = max(part.shape[-1] for part in parts)
    return torch.cat([torch.nn.functional.pad(part, (0, wide - part.shape[-1])) for part in parts])


def _pinned(value: Any) -> Any:
    tensors = {name: x.pin_memory() for name, x in vars(value).items() if isinstance(x, Tensor)}
    return replace(value, **tensors)
