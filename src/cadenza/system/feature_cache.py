"""Cache of the outputs of frozen encoders on disk, so that each value is encoded once."""

import hashlib
import json
import sqlite3
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from cadenza import __version__
from cadenza.conditioners.base import Conditioner, ConditionerSet, PreparedInputs
from cadenza.core.atomic import CACHE_VARIABLE, cache_dir
from cadenza.core.errors import DataError

if TYPE_CHECKING:
    import diskcache

T = TypeVar("T")
LIMIT = 20 * 2**30  # bytes
_SOURCE_FIELDS = ("model", "revision", "subconfig", "dim", "separator")  # of a spec; they locate weights, which are hashed
_DIGEST = 16  # bytes of the checksum in front of an entry


class FeatureCache:
    """Encoder outputs of single values; the key is a hash of the prepared value, the spec, the settings and the weights.

    Processes may share a folder; entries are written whole or not at all. Beyond `limit` bytes the oldest entries are
    removed. A damaged entry is computed again. A folder that cannot be used causes one warning and is then ignored.
    Raises DataError if no folder is given and caching is off.
    """

    def __init__(self, folder: str | Path | None = None, *, limit: int = LIMIT) -> None:
        path = cache_dir() if folder is None else Path(folder).expanduser()
        if path is None:
            raise DataError(f"the cache is off ({CACHE_VARIABLE}); unset that, or give a folder")
        self.folder, self.limit = path, limit
        self.found = self.made = 0  # values found in the cache and computed by this object
        self._store: diskcache.Cache | None = None
        self._unusable = False
        self._prefixes: WeakKeyDictionary[Any, tuple[Any, bytes, Any]] = WeakKeyDictionary()

    def __reduce__(self) -> Any:  # another process opens the folder itself
        return partial(FeatureCache, limit=self.limit), (self.folder,)

    def __len__(self) -> int:
        """Number of entries in the folder."""
        return self._access(len, 0)  # type: ignore[arg-type]  # diskcache has no types

    @torch.no_grad()
    def encode(
        self, parts: ConditionerSet, prepared: Mapping[str, PreparedInputs], device: torch.device | str
    ) -> dict[str, PreparedInputs]:
        """Return `parts.encode` of the inputs on a device, of which only values that are not cached are computed."""
        features = {}
        for name, inputs in prepared.items():
            part = parts[name]
            cacheable = len(inputs.present) and part.is_cacheable(inputs)
            fingerprint = part.cache_fingerprint() if cacheable else None
            if fingerprint is None:
                encoded = part.encode(inputs.to(device))
            else:
                encoded = self._encode_part(part, self._key_prefix(part, *fingerprint), inputs, device)
            features[name] = replace(encoded, spans=None if inputs.spans is None else inputs.spans.to(device))
        return features

    def close(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None

    def _encode_part(
        self, part: Conditioner[Any], prefix: bytes, prepared: PreparedInputs, device: torch.device | str
    ) -> PreparedInputs:
        inputs = prepared.to("cpu")
        keys = [_hash(prefix, _unpadded_row(inputs.tensors, i, part)) for i in range(len(inputs.present))]
        entries: dict[bytes, Any] = {key: self._get(key) for key in dict.fromkeys(keys)}
        self.found += sum(entries[key] is not None for key in keys)
        if missing := {key: i for i, key in enumerate(keys) if entries[key] is None}:
            rows = torch.tensor(list(missing.values()))
            batch = PreparedInputs({name: x[rows] for name, x in inputs.tensors.items()}, inputs.present[rows])
            new = part.encode(batch.to(device)).to("cpu")
            for i, key in enumerate(missing):
                entries[key] = _unpadded_row(new.tensors, i, part)
                self._put(key, entries[key])
            self.made += len(missing)
        features = [entries[key] for key in keys]
        tensors = {name: _pad_rows(name, features, part.padding_masks, inputs.tensors).to(device) for name in features[0]}
        tensors |= {name: prepared.tensors[name].to(device) for name in part.uncached_inputs}
        return PreparedInputs(tensors, prepared.present.to(device))

    def _key_prefix(self, part: Any, settings: Any, weights: Mapping[str, Tensor]) -> bytes:
        """Return a hash of everything but the values; weights are hashed again only after a change in place."""
        device = next((x.device.type for x in weights.values()), "cpu")
        autocast = str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else ""
        spec = {name: value for name, value in part.spec.to_dict().items() if name not in _SOURCE_FIELDS}
        text = json.dumps([__version__, autocast, spec, settings], sort_keys=True, default=str)
        state = [text, *((x.data_ptr(), 0 if x.is_inference() else x._version) for x in weights.values())]
        if (known := self._prefixes.get(part)) is not None and known[0] == state:
            return known[1]
        prefix = _hash(text.encode(), weights)
        self._prefixes[part] = state, prefix, [*weights.values()]  # referenced, so that no other tensors take their addresses
        return prefix

    def _get(self, key: bytes) -> dict[str, Tensor] | None:
        """Return an entry; None if it is missing or damaged."""
        entry: Any = self._access(lambda store: store.get(key), None)
        try:
            if entry is not None and _checksum(entry[_DIGEST:]) == entry[:_DIGEST]:
                return load(entry[_DIGEST:])
        except (SafetensorError, TypeError):
            pass
        return None

    def _put(self, key: bytes, row: Mapping[str, Tensor]) -> None:
        data = save({name: x.contiguous() for name, x in row.items()})
        self._access(lambda store: store.set(key, _checksum(data) + data), None)

    def _access(self, action: Callable[["diskcache.Cache"], T], default: T) -> T:
        """Return the result of an action on the folder; `default` if the folder stays locked or cannot be used."""
        if self._unusable:
            return default
        import diskcache

        try:
            if self._store is None:
                self._store = open_cache(self.folder, self.limit)
            return action(self._store)
        except diskcache.Timeout:
            return default
        except (OSError, sqlite3.Error) as error:
            self._unusable = True
            message = f"the cache {self.folder} cannot be used ({error}): delete that folder, or move it with {CACHE_VARIABLE}"
            warnings.warn(message, stacklevel=2)
            return default


def open_cache(folder: Path, limit: int) -> "diskcache.Cache":
    """Open a folder's database of bytes by bytes; entries of other kinds, which could run code, are not read."""
    import diskcache

    class Bytes(diskcache.Disk):
        def fetch(self, mode: Any, filename: Any, value: Any, read: Any) -> Any:
            return bytes(value) if isinstance(value, bytes) and filename is None else None

        def get(self, key: Any, raw: Any) -> Any:
            return key if raw else None

    settings = {"size_limit": limit, "eviction_policy": "least-recently-stored", "disk_min_file_size": 2**31}
    return diskcache.Cache(str(folder), timeout=10, disk=Bytes, **settings)  # all entries are in the database, none in files


def _unpadded_row(tensors: Mapping[str, Tensor], i: int, part: Conditioner[Any]) -> dict[str, Tensor]:
    """Return one item of a batch, without its padding and the inputs that are not encoded."""
    row = {}
    for name, x in tensors.items():
        if name not in part.uncached_inputs:
            mask = tensors.get(part.padding_masks.get(name, ""))
            row[name] = x[i] if mask is None else x[i, : _real_length(mask[i])]
    return row


def _real_length(mask: Tensor) -> int:
    """Return a count itself, and for a mask the number of positions up to the last real one."""
    return int(mask) if not mask.ndim else max(mask.nonzero().flatten().tolist(), default=-1) + 1


def _pad_rows(
    name: str, rows: Sequence[Mapping[str, Tensor]], padding_masks: Mapping[str, str], inputs: Mapping[str, Tensor]
) -> Tensor:
    """Stack rows, padded to the width of their mask in `inputs`, or to the longest row without one."""
    parts, mask = [row[name] for row in rows], padding_masks.get(name)
    if mask is None or mask not in rows[0]:
        return torch.stack(parts)
    width = inputs[mask].shape[1] if mask in inputs else max(map(len, parts))
    batch = parts[0].new_zeros(len(parts), width, *parts[0].shape[1:])
    for row, part in zip(batch, parts, strict=True):
        row[: len(part)] = part
    return batch


def _checksum(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_DIGEST).digest()


def _hash(prefix: bytes, tensors: Mapping[str, Tensor]) -> bytes:
    digest = hashlib.blake2b(prefix, digest_size=20)
    for name, x in sorted(tensors.items()):
        digest.update(f"{name} {x.dtype} {tuple(x.shape)}".encode())
        if x.numel():
            digest.update(x.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.digest()
