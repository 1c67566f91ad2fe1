"""Fill the feature cache with the outputs of frozen encoders before training."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cadenza.conditioners.base import ConditionerSet
from cadenza.core.errors import CadenzaError, DataError
from cadenza.data import sources
from cadenza.data.items import ToItem, is_text_list
from cadenza.system.feature_cache import FeatureCache
from cadenza.system.system import System


@dataclass
class CacheReport:
    """Counts of values that were cached before and encoded now, and the reasons for failed clips."""

    parts: list[str]  # conditioners whose features are cached
    found: int = 0
    made: int = 0
    broken: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        failed = f"; {len(self.broken)} clips could not be read" if self.broken else ""
        return f"{self.made} values encoded, {self.found} already cached, for {', '.join(self.parts)}{failed}"


def precompute_features(
    system: System, data: str | Path, cache: FeatureCache, *, to_item: ToItem | None = None, batch: int = 16,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> CacheReport:  # fmt: skip
    """Encode all values in the data's metadata that are not cached yet.

    `progress` is called with clips done and total clips. Raises DataError if no conditioner has cacheable features.
    """
    frozen = {name: part for name, part in system.conditioners.items() if part.cache_fingerprint() is not None}
    if not frozen:
        raise DataError("no conditioner of this model has a frozen encoder with cacheable features; nothing to precompute")
    parts, report = ConditionerSet(frozen), CacheReport(list(frozen))
    dataset, _ = sources.open_dataset(data, system.codec, seconds=1.0, ids=system.conditioners.input_ids(), to_item=to_item)
    clips = list(dataset.metadata_items())
    before = cache.found, cache.made

    def encode(batch_clips: Sequence[Mapping[str, Any]]) -> None:
        items = [item for clip in batch_clips for item in _alternatives(clip)]
        cache.encode(parts, parts.prepare(items), system.device)

    for start in range(0, len(clips), batch):
        batch_clips = clips[start : start + batch]
        try:
            encode(batch_clips)
        except CadenzaError:  # of one clip; encode the others alone
            for clip in batch_clips:
                try:
                    encode([clip])
                except CadenzaError as error:
                    report.broken[str(clip.get("id", "?"))] = str(error)
        progress(min(start + batch, len(clips)), len(clips))
    report.found, report.made = cache.found - before[0], cache.made - before[1]
    return report


def _alternatives(clip: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the clip with each of its texts, if it has lists of them."""
    texts = {name: value for name, value in clip.items() if value and is_text_list(value)}
    for i in range(max(map(len, texts.values()), default=1)):
        yield {**clip, **{name: value[min(i, len(value) - 1)] for name, value in texts.items()}}
