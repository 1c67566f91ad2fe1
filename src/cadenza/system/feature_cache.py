"""Features: what frozen encoders make of values, kept on disk so that it is made once."""

import hashlib
import json
import sqlite3
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from cadenza import __version__
from cadenza.conditioners.base import ConditionerSet, PreparedInputs
from cadenza.core.atomic import CACHE_VARIABLE, cache_dir
from cadenza.core.errors import DataError

if TYPE_CHECKING:
    import diskcache

LIMIT = 20 * 2**30  # bytes
_SOURCE = (
    "model",
    "revision",
    "inside",
    "dim",
    "separator",
)  # fields of a spec that say where weights are; what they are is looked at
_DIGEST = 16  # bytes of the check before an entry


@runtime_checkable
class CacheableEncoder(Protocol):
    """A conditioner whose features are worth keeping.

    `padded` names the tensors that are padded along their first axis, each with the mask or the count that says how far,
    `passing` those that go by the encoders; `frozen` gives settings and weights that features depend on beside the spec,
    or None where there is nothing to save, and `worth` says whether it is so for some values.
    """

    spec: Any
    padding_masks: Mapping[str, str]
    uncached_inputs: tuple[str, ...]

    def is_cacheable(self, prepared: PreparedInputs) -> bool: ...

    def cache_fingerprint(self) -> tuple[Any, Mapping[str, Tensor]] | None: ...

    def encode(self, prepared: PreparedInputs) -> PreparedInputs: ...


class FeatureCache:
    """Features of single values by what was prepared of them, the spec, the settings and the frozen weights.

    Processes may share a folder; one that is killed leaves whole entries. Beyond `limit` bytes the entries stored first
    go. An entry that is damaged is made again. A folder that cannot be used is warned of once and done without.
    """

    def __init__(self, folder: str | Path | None = None, *, limit: int = LIMIT) -> None:
        found = cache_dir() if folder is None else Path(folder).expanduser()
        if found is None:
            raise DataError(f"the cache is off ({CACHE_VARIABLE}); unset that, or give a folder")
        self.folder, self.limit = found, limit
        self.found = self.made = 0  # values, since this object began
        self._store: diskcache.Cache | None = None
        self._broken = False
        self._stems: WeakKeyDictionary[Any, tuple[Any, bytes, Any]] = WeakKeyDictionary()

    def __getstate__(self) -> dict[str, Any]:
        """Another process opens the folder itself, and looks at the weights itself."""
        return {name: value for name, value in self.__dict__.items() if name != "_stems"} | {"_store": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._stems = WeakKeyDictionary()

    def __len__(self) -> int:
        """Entries in the folder, of all that use it."""
        return int(self._use(len, 0))

    @torch.no_grad()
    def encode(
        self, parts: ConditionerSet, prepared: Mapping[str, PreparedInputs], device: torch.device | str
    ) -> dict[str, PreparedInputs]:
        """The same as `parts.encode` on a device, of which what is there is not made again."""
        made = {}
        for name, values in prepared.items():
            part: Any = parts[name]
            kept = isinstance(part, CacheableEncoder) and len(values.present) and part.is_cacheable(values)
            source = part.cache_fingerprint() if kept else None
            if source is None:
                made[name] = part.encode(values.to(device))
            else:
                made[name] = self._features(part, self._stem(part, source), values, device)
        return {name: replace(values, spans=_on(prepared[name].spans, device)) for name, values in made.items()}

    def close(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None

    def _features(
        self, part: CacheableEncoder, stem: bytes, prepared: PreparedInputs, device: torch.device | str
    ) -> PreparedInputs:
        host = prepared.to("cpu")
        rows = [_row(host.tensors, i, part) for i in range(len(host.present))]
        keys = [_hashed(stem, row) for row in rows]
        held: dict[bytes, Any] = {key: self._get(key) for key in dict.fromkeys(keys)}
        self.found += sum(held[key] is not None for key in keys)
        if missing := {key: i for i, key in enumerate(keys) if held[key] is None}:
            chosen = torch.tensor(list(missing.values()))
            asked = PreparedInputs({name: x[chosen] for name, x in host.tensors.items()}, host.present[chosen])
            new = part.encode(asked.to(device)).to("cpu")
            for j, key in enumerate(missing):
                held[key] = _row(new.tensors, j, part)
                self._put(key, held[key])
            self.made += len(missing)
        rows = [held[key] for key in keys]
        tensors = {name: _stacked(name, rows, part.padding_masks, host.tensors).to(device) for name in rows[0]}
        tensors |= {name: prepared.tensors[name].to(device) for name in part.uncached_inputs}
        return PreparedInputs(tensors, prepared.present.to(device))

    def _stem(self, part: Any, source: tuple[Any, Mapping[str, Tensor]]) -> bytes:
        """A hash of all but the values; weights are read again only where they have been written to."""
        settings, weights = source
        device = next((x.device.type for x in weights.values()), "cpu")
        cast = str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else ""
        spec = {name: value for name, value in part.spec.to_dict().items() if name not in _SOURCE}
        said = json.dumps([__version__, cast, spec, settings], sort_keys=True, default=str)
        state = [said, *((x.data_ptr(), 0 if x.is_inference() else x._version) for x in weights.values())]
        if (known := self._stems.get(part)) is not None and known[0] == state:
            return known[1]
        stem = _hashed(said.encode(), weights)
        self._stems[part] = state, stem, [*weights.values()]  # held, so that no others come to lie where they do
        return stem

    def _get(self, key: bytes) -> dict[str, Tensor] | None:
        entry = self._use(lambda store: store.get(key), None)
        if entry is None:
            return None
        try:
            if hashlib.blake2b(entry[_DIGEST:], digest_size=_DIGEST).digest() == entry[:_DIGEST]:
                return load(entry[_DIGEST:])
        except (SafetensorError, TypeError):
            pass  # it is damaged, and made again
        return None

    def _put(self, key: bytes, row: Mapping[str, Tensor]) -> None:
        data = save({name: x.contiguous() for name, x in row.items()})
        entry = hashlib.blake2b(data, digest_size=_DIGEST).digest() + data
        self._use(lambda store: store.set(key, entry), None)

    def _use(self, action: Any, otherwise: Any) -> Any:
        """What an action on the folder gives; `otherwise` where the folder is busy for long, or cannot be used."""
        if self._broken:
            return otherwise
        import diskcache

        try:
            if self._store is None:
                self._store = open_cache(self.folder, self.limit)
            return action(self._store)
        except diskcache.Timeout:
            return otherwise
        except (OSError, sqlite3.Error) as error:
            self._broken = True
            said = f"the cache {self.folder} cannot be used ({error}): delete that folder, or move it with {CACHE_VARIABLE}"
            warnings.warn(said, stacklevel=2)
            return otherwise


def open_cache(folder: Path, limit: int) -> "diskcache.Cache":
    """The folder's database of bytes by bytes; entries of any other kind, which could run code, are not read."""
    import diskcache

    class Bytes(diskcache.Disk):
        def fetch(self, mode: Any, filename: Any, value: Any, read: Any) -> Any:
            return bytes(value) if isinstance(value, bytes) and filename is None else None

        def get(self, key: Any, raw: Any) -> Any:
            return key if raw else None

    settings = {"size_limit": limit, "eviction_policy": "least-recently-stored", "disk_min_file_size": 2**31}
    return diskcache.Cache(str(folder), timeout=10, disk=Bytes, **settings)  # entries in the database: whole or not there


def _on(x: Tensor | None, device: torch.device | str) -> Tensor | None:
    return None if x is None else x.to(device)


def _row(tensors: Mapping[str, Tensor], i: int, part: CacheableEncoder) -> dict[str, Tensor]:
    """An item of a batch alone, without what pads it and what passes the encoders by."""
    row = {}
    for name, x in tensors.items():
        if name not in part.uncached_inputs:
            by = tensors.get(part.padding_masks.get(name, ""))
            row[name] = x[i] if by is None else x[i, : _reach(by[i])]
    return row


def _reach(by: Tensor) -> int:
    """How far a row is real: as a count says, or up to the last that a mask has."""
    if not by.ndim:
        return int(by)
    true = by.nonzero()
    return int(true[-1]) + 1 if len(true) else 0


def _stacked(name: str, rows: Sequence[Mapping[str, Tensor]], padded: Mapping[str, str], asked: Mapping[str, Tensor]) -> Tensor:
    """Rows as one batch, as wide as the mask of what was asked, or as the longest where that has none."""
    parts, by = [row[name] for row in rows], padded.get(name)
    if by is None or by not in rows[0]:
        return torch.stack(parts)
    width = asked[by].shape[1] if by in asked else max(map(len, parts))
    batch = parts[0].new_zeros(len(parts), width, *parts[0].shape[1:])
    for to, part in zip(batch, parts, strict=True):
        to[: len(part)] = part
    return batch


def _hashed(stem: bytes, tensors: Mapping[str, Tensor]) -> bytes:
    found = hashlib.blake2b(stem, digest_size=20)
    for name, x in sorted(tensors.items()):
        found.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
        if x.numel():
            found.update(x.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.digest()
