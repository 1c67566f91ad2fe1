"""Caching: the features of every value in the data made before training begins."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cadenza.conditioners.base import ConditionerSet
from cadenza.core.errors import CadenzaError, DataError
from cadenza.data import sources as sources
from cadenza.data.encoded_dataset import EncodedDataset
from cadenza.data.items import ToItem
from cadenza.system.feature_cache import CacheableEncoder, FeatureCache
from cadenza.system.system import System


@dataclass
class CacheReport:
    """What `fill` did: values that were in the cache, that were made, and that could not be, with the reason by clip."""

    parts: list[str]  # conditioners that have features to keep
    found: int = 0
    made: int = 0
    broken: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lost = f"; {len(self.broken)} clips could not be read" if self.broken else ""
        return f"{self.made} values made, {self.found} were there, for {', '.join(self.parts)}{lost}"


def precompute_features(
    system: System, data: str | Path, cache: FeatureCache, *, to_item: ToItem | None = None, batch: int = 16,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> CacheReport:  # fmt: skip
    """Fills the cache with the features of all values that the data's metadata gives; what is there is not made again.

    `progress` hears clips done and clips in all. DataError where no conditioner has features to keep.
    """
    every: Any = system.conditioners.items()
    frozen: dict[str, Any] = {
        name: part for name, part in every if isinstance(part, CacheableEncoder) and part.cache_fingerprint() is not None
    }
    parts = ConditionerSet(frozen)
    if not len(parts):
        raise DataError("no conditioner of this model has a frozen encoder whose features are kept; there is nothing to fill")
    clips, said = _clips(system, data, to_item), CacheReport(list(parts))
    before = cache.found, cache.made
    for start in range(0, len(clips), batch):
        here = clips[start : start + batch]
        try:
            _make(parts, [item for clip in here for item in _variants(clip)], cache, system)
        except CadenzaError:  # of one clip, which the others do not need
            for clip in here:
                try:
                    _make(parts, list(_variants(clip)), cache, system)
                except CadenzaError as error:
                    said.broken[str(clip.get("id", "?"))] = str(error)
        progress(min(start + batch, len(clips)), len(clips))
    said.found, said.made = cache.found - before[0], cache.made - before[1]
    return said


def _make(parts: ConditionerSet, items: Sequence[Mapping[str, Any]], cache: FeatureCache, system: System) -> None:
    cache.encode(parts, parts.prepare(items), system.device)


def _clips(system: System, data: str | Path, to_item: ToItem | None) -> list[Mapping[str, Any]]:
    """What is known of each clip, without its audio."""
    found, _ = sources.open_dataset(data, system.codec, seconds=1.0, ids=system.conditioners.input_ids(), to_item=to_item)
    if isinstance(found, EncodedDataset):
        return [found.store.metadata(clip) for clip in sorted({clip for clip, _ in found.places})]
    return list(found.metadata_items())


def _variants(clip: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The clip with each of its texts, where it has lists of them."""
    texts = {
        name: value
        for name, value in clip.items()
        if isinstance(value, list | tuple) and value and all(isinstance(entry, str) for entry in value)
    }
    for i in range(max(map(len, texts.values()), default=1)):
        yield {**clip, **{name: value[min(i, len(value) - 1)] for name, value in texts.items()}}
