"""Batches of items: an endless order of samples, collation, and a loader that resumes exactly."""

import hashlib
import itertools
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Sampler

from cadenza.conditioners.base import PreparedInputs
from cadenza.core.errors import CadenzaError, DataError
from cadenza.core.types import Codes, Latents
from cadenza.data.items import SIGNALS, Item, ItemDataset, OnBrokenFile, ReadReport, SampleIndex
from cadenza.dsp.audio import Audio

Prepare = Callable[[Sequence[Item]], Mapping[str, PreparedInputs]]
_NAMES = (*SIGNALS, "prepared", "metadata", "ids", "seconds", "broken")


class BatchSampler(Sampler[list[SampleIndex]]):
    """Endless batches of shuffled epochs, from batch number `position`; batches are full and may span two epochs.

    `world` processes with batches of `batch` samples see together what one process sees with `world * batch`.
    """

    def __init__(self, size: int, batch: int, *, seed: int = 0, rank: int = 0, world: int = 1, shuffle: bool = True) -> None:
        if size < 1 or batch < 1:
            raise DataError(f"cannot draw batches of {batch} from {size} items; both must be at least 1")
        if not 0 <= rank < world:
            raise DataError(f"process rank {rank} is not in 0 to {world - 1}")
        self.size, self.batch, self.seed, self.shuffle = size, batch, seed, shuffle
        self.rank, self.world, self.position = rank, world, 0

    def __iter__(self) -> Iterator[list[SampleIndex]]:
        for position in itertools.count(self.position):
            first = (position * self.world + self.rank) * self.batch
            yield [self._sample(number) for number in range(first, first + self.batch)]

    def from_position(self, position: int) -> "BatchSampler":
        """Return a sampler of the same sequence that starts at batch number `position`."""
        sampler = copy(self)
        sampler.position = position
        return sampler

    def _sample(self, number: int) -> SampleIndex:
        epoch, index = divmod(number, self.size)
        return SampleIndex(_permutation(self.size, self.seed, epoch)[index] if self.shuffle else index, epoch)


@lru_cache(maxsize=2)
def _permutation(size: int, seed: int, epoch: int) -> list[int]:
    digest = hashlib.sha256(f"{seed}/{epoch}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little", signed=True))
    return torch.randperm(size, generator=generator).tolist()


@dataclass(frozen=True, eq=False)
class Batch(Mapping[str, Any]):
    """Items of one batch: metadata, audio or codes or latents, and prepared conditioner inputs.

    As a mapping it has the attributes that are not None, with `ids` and `seconds`.
    """

    metadata: list[dict[str, Any]]  # of each item, with its id
    audio: Audio | None = None
    codes: Codes | None = None
    latents: Latents | None = None
    prepared: dict[str, PreparedInputs] = field(default_factory=dict)
    broken: dict[str, str] = field(default_factory=dict)  # reasons for missing items, by id
    frame_rate: float | None = None  # of codes and latents, if known

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
        """Total seconds of audio without padding; 0 if the frame rate is not known."""
        if self.audio is not None:
            return float(self.audio.lengths.sum()) / self.audio.sample_rate
        frames = self.codes or self.latents
        return 0.0 if frames is None or not self.frame_rate else float(frames.lengths.sum()) / self.frame_rate

    def to(self, device: torch.device | str) -> "Batch":
        moved = {name: value.to(device) for name in SIGNALS if (value := getattr(self, name)) is not None}
        return replace(self, **moved, prepared={name: value.to(device) for name, value in self.prepared.items()})

    def pin_memory(self) -> "Batch":
        """Return a copy in page-locked memory, for asynchronous copies to a GPU."""
        pinned = {
            name: replace(value, **{key: x.pin_memory() for key, x in vars(value).items() if isinstance(x, Tensor)})
            for name in SIGNALS
            if (value := getattr(self, name)) is not None
        }
        prepared = {
            name: replace(value, tensors={k: x.pin_memory() for k, x in value.tensors.items()})
            for name, value in self.prepared.items()
        }
        return replace(self, **pinned, prepared=prepared)


def collate(items: Sequence[Item], prepare: Prepare | None = None, *, frame_rate: float | None = None) -> Batch:
    """Return items as one batch: signals are stacked with their lengths, and `prepare` receives the whole items."""
    for name in SIGNALS:
        present = [item["id"] for item in items if item.get(name) is not None]
        if present and len(present) < len(items):
            raise DataError(f"items of one batch differ: '{name}' is missing in some, but present in '{present[0]}'")
    signals = {name: _stack([item[name] for item in items]) for name in SIGNALS if items and items[0].get(name) is not None}
    metadata = [{key: value for key, value in item.items() if key not in SIGNALS} for item in items]
    prepared = dict(prepare(items)) if prepare is not None and items else {}
    return Batch(metadata, prepared=prepared, frame_rate=frame_rate, **signals)


class BatchLoader:
    """Batches of a dataset in the order of a sampler; the number of workers changes only the speed.

    `report` counts the items read and lists the broken ones.
    """

    def __init__(
        self, dataset: ItemDataset, sampler: BatchSampler, *, workers: int = 0, prepare: Prepare | None = None,
        on_broken_file: OnBrokenFile = "raise", pin: bool | None = None,
    ) -> None:  # fmt: skip
        self.dataset, self.sampler, self.workers, self.prepare = dataset, sampler, workers, prepare
        self.on_broken_file: OnBrokenFile = on_broken_file
        self.pin = torch.cuda.is_available() if pin is None else pin
        self.report = ReadReport()

    def iter_from(self, position: int) -> Iterator[Batch]:
        """Yield this process's batches endlessly, from number `position`."""
        loader = DataLoader(
            _BatchReader(self.dataset, self.prepare),
            sampler=self.sampler.from_position(position),
            batch_size=None,  # the reader returns whole batches
            num_workers=self.workers,
            collate_fn=_unchanged,
            pin_memory=self.pin,
            worker_init_fn=ignore_stop_signals if self.workers else None,
            prefetch_factor=4 if self.workers else None,
        )
        for number, batch in enumerate(loader, position):
            if isinstance(batch, DataError):
                raise batch
            for name, reason in batch.broken.items():
                self.report.record_broken(name, reason, self.on_broken_file)
            if not batch.metadata:
                raise DataError(f"batch {number} has no readable item. {self.report}")
            self.report.read += len(batch.metadata)
            yield batch

    def __iter__(self) -> Iterator[Batch]:
        return self.iter_from(0)


def fixed_batches(dataset: ItemDataset, batch: int, *, count: int | None = None, prepare: Prepare | None = None) -> list[Batch]:
    """Return batches of `count` items spread evenly over the dataset, in order; equal at every call."""
    count = len(dataset) if count is None else min(count, len(dataset))
    items = [dataset[SampleIndex(i * len(dataset) // count)] for i in range(count)]
    frame_rate = getattr(dataset, "frame_rate", None)
    return [collate(items[i : i + batch], prepare, frame_rate=frame_rate) for i in range(0, count, batch)]


@dataclass(frozen=True)
class _BatchReader(Dataset["Batch | DataError"]):
    """Batches by their samples; errors are returned, because exceptions lose their type between processes."""

    dataset: ItemDataset
    prepare: Prepare | None

    def __getitem__(self, samples: list[SampleIndex]) -> Batch | DataError:
        items, broken = [], {}
        for sample in samples:
            try:
                items.append(self.dataset[sample])
            except CadenzaError as error:
                broken[self.dataset.item_id(sample.index)] = str(error)
        try:
            batch = collate(items, self.prepare, frame_rate=getattr(self.dataset, "frame_rate", None))
            return replace(batch, broken=broken)
        except CadenzaError as error:
            return DataError(f"the items {', '.join(item['id'] for item in items)} cannot be prepared: {error}")


def _unchanged(batch: Any) -> Any:
    return batch


def ignore_stop_signals(worker: int) -> None:
    """Ignore SIGINT and SIGTERM in a worker; the main process shuts workers down."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_exit_on_sigterm_from, args=(os.getppid(),), daemon=True).start()


def _exit_on_sigterm_from(parent: int) -> None:
    """End this process at a SIGTERM from the process `parent`, and from no other."""
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)


def _stack(parts: Sequence[Any]) -> Any:
    """Concatenate batches of one; frames are cut to the longest clip."""
    first = parts[0]
    if isinstance(first, Audio) and len({(part.sample_rate, part.wave.shape[1]) for part in parts}) > 1:
        raise DataError("clips of one batch differ in sample rate or channels")
    tensors = [name for name, value in vars(first).items() if isinstance(value, Tensor)]
    stacked = replace(first, **{name: _pad_and_cat([getattr(part, name) for part in parts]) for name in tensors})
    if isinstance(stacked, Audio):
        return stacked
    frames = stacked.data[..., : int(stacked.lengths.max())]
    return replace(stacked, **{"ids" if isinstance(stacked, Codes) else "z": frames})


def _pad_and_cat(parts: Sequence[Tensor]) -> Tensor:
    longest = max(part.shape[-1] for part in parts)
    return torch.cat([F.pad(part, (0, longest - part.shape[-1])) for part in parts])
