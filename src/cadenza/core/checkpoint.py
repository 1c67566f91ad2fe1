"""Weight files: safetensors and weights-only torch files, whole, sharded or tensor by tensor; the strict comparison.

Tensors are read, not memory-mapped: mapped pages would count as memory of the process in addition to the tensors.
"""

import json
import math
import pickle
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import index
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from cadenza.core.errors import CheckpointError

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")  # names that transformers uses, in order of preference
CHUNK_BYTES = 2**20  # approximate size of a chunk of `LazyTensor.iter_row_chunks`
_MAX_HEADER_BYTES = 100 * 2**20  # limit of the safetensors format
_LFS_POINTER = b"version https://git-lfs"
_DTYPES = {
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool"},
    **{"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8"},
    **{"U64": "uint64", "U32": "uint32", "U16": "uint16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"},
}


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that is not loaded yet; `read_rows(a, b)` reads rows `a` to `b` (exclusive) of its first dimension."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read_rows: Callable[[int, int], Tensor]

    @classmethod
    def from_tensor(cls, x: Tensor) -> "LazyTensor":
        """Wrap a tensor that is in memory."""
        return cls(tuple(x.shape), x.dtype, lambda a, b: x[a:b] if x.ndim else x)

    def load(self) -> Tensor:
        """Return the whole tensor."""
        return self.read_rows(0, self.shape[0] if self.shape else 1)

    def iter_row_chunks(self, multiple: int = 1) -> Iterator[tuple[int, Tensor]]:
        """Yield (first row, rows) from first to last, about `CHUNK_BYTES` each; row counts are multiples of `multiple`."""
        count = self.shape[0] if self.shape else 1
        row_bytes = max(1, math.prod(self.shape[1:]) * self.dtype.itemsize)
        step = max(1, CHUNK_BYTES // row_bytes // multiple) * multiple
        for a in range(0, count, step):
            yield a, self.read_rows(a, min(a + step, count))


def open_safetensors(path: Path) -> dict[str, LazyTensor]:
    """Return the tensors of a safetensors file by name, not loaded; raise CheckpointError unless the file is complete."""
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > _MAX_HEADER_BYTES:
                raise ValueError(f"a header of {size} bytes")
            header = json.loads(file.read(size))
            file.seek(0, 2)
            data_bytes = file.tell() - size - 8
        header.pop("__metadata__", None)
        tensors, end = {}, 0
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            (start, stop), shape = entry["data_offsets"], tuple(map(index, entry["shape"]))
            dtype = getattr(torch, _DTYPES[entry["dtype"]])
            if start != end or stop - start != math.prod(shape) * dtype.itemsize or min(shape, default=0) < 0:
                raise ValueError(f"'{name}' has wrong offsets")
            tensors[name] = LazyTensor(shape, dtype, partial(_read_rows, path, 8 + size + start, shape, dtype))
            end = stop
        if end != data_bytes:
            raise ValueError(f"{data_bytes} bytes of weights instead of {end}")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}); copy it again") from None
    return tensors


def _read_rows(path: Path, start: int, shape: tuple[int, ...], dtype: torch.dtype, a: int, b: int) -> Tensor:
    row_bytes = math.prod(shape[1:]) * dtype.itemsize
    x = torch.empty((b - a, *shape[1:]) if shape else (), dtype=dtype, device="cpu")
    if not x.numel():
        return x
    buffer = x.view(-1).view(torch.uint8).numpy().data
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(start + a * row_bytes)
            while buffer:
                count = file.readinto(buffer)
                if not count:
                    raise OSError("the file became shorter")
                buffer = buffer[count:]
    except OSError as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}); copy it again") from None
    return x


def has_weights(folder: Path) -> bool:
    """Return whether a folder holds a weight file, or the index of one, by the names that transformers uses."""
    return any((folder / name).exists() or (folder / f"{name}.index.json").exists() for name in WEIGHT_FILES)


def open_weights(path: Path) -> dict[str, LazyTensor]:
    """Return the tensors of a safetensors or torch file by name; those of safetensors are not loaded yet."""
    if path.suffix == ".safetensors":
        return open_safetensors(path)
    return {name: LazyTensor.from_tensor(x) for name, x in read_file(path).items()}


def read_file(path: Path) -> dict[str, Tensor]:
    """Return the tensors of one file by name; raise CheckpointError if it is missing, damaged or holds other objects."""
    if path.suffix != ".safetensors":
        return as_state_dict(load_torch_file(path), source=str(path))
    _check_readable(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}); download or copy it again") from None


def load_torch_file(path: Path) -> Any:
    """Return the content of a `torch.save` file if it is tensors and plain data; anything else is refused, never run."""
    _check_readable(path)
    zipped = zipfile.is_zipfile(path)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # such files load, or are refused below
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        match = re.search(r"GLOBAL (\S+)", str(error))  # the name that torch did not unpickle
        content = f"'{match[1]}'" if match else "more than tensors and plain data"
        raise CheckpointError(
            f"{path} was not loaded: it is a pickle that holds {content}, and loading could run its code. "
            "Load it in the program that wrote it, in an environment that you trust, and save the plain tensors "
            "(best as safetensors)"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, zipfile.BadZipFile) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise CheckpointError(f"{path} is damaged or cut short ({reason}); download or copy it again") from None


def as_state_dict(value: Any, *, source: str) -> dict[str, Tensor]:
    """Return `value` as a mapping of names to tensors; raise CheckpointError if it is something else."""
    if not isinstance(value, Mapping):
        raise CheckpointError(f"{source}: holds {type(value).__name__} instead of weights by name")
    if others := [f"'{name}' ({type(x).__name__})" for name, x in value.items() if not isinstance(x, Tensor)]:
        raise CheckpointError(f"{source}: not everything in it is a tensor: {', '.join(others[:5])}")
    return {str(name): x for name, x in value.items()}


def check_state_dict(
    state_dict: Mapping[str, Any], expected: Mapping[str, Any], source: str, *, fix: str = "take both from one model"
) -> None:
    """Raise CheckpointError unless the names and shapes are exactly the expected ones.

    Values are tensors, `LazyTensor`s or shapes. The message lists missing, unknown and misshapen names, and `fix`.
    """
    shapes, expected_shapes = (
        {name: list(getattr(x, "shape", x)) for name, x in weights.items()} for weights in (state_dict, expected)
    )
    mismatches = {
        "missing": sorted(expected_shapes.keys() - shapes.keys()),
        "unknown": sorted(shapes.keys() - expected_shapes.keys()),
        "misshapen": [
            f"{name} is {shapes[name]} instead of {shape}"
            for name, shape in sorted(expected_shapes.items())
            if shapes.get(name, shape) != shape
        ],
    }
    if any(mismatches.values()):
        lists = "; ".join(f"{len(names)} {kind}: {', '.join(names[:5])}" for kind, names in mismatches.items() if names)
        raise CheckpointError(f"{source}: the weights do not match the config: {lists}; {fix}")


def save_shards(
    state_dict: Mapping[str, Tensor],
    folder: Path,
    *,
    max_bytes: int,
    dtypes: Mapping[str, torch.dtype] | None = None,
    metadata: dict[str, str] | None = None,
) -> dict[str, str]:
    """Write `model.safetensors`, or shards of at most `max_bytes` unless one weight is larger; return the file of each weight.

    Weights are cast to `dtypes` and copied, as safetensors refuses tensors that share memory.
    """
    dtypes = {name: x.dtype for name, x in state_dict.items()} | dict(dtypes or {})
    shards: list[list[str]] = [[]]
    size = 0
    for name, x in state_dict.items():
        weight_bytes = x.numel() * dtypes[name].itemsize
        size += weight_bytes
        if size > max_bytes and shards[-1]:
            shards.append([])
            size = weight_bytes
        shards[-1].append(name)
    files: dict[str, str] = {}
    for i, names in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: state_dict[name].detach().to("cpu", dtypes[name], copy=True).contiguous() for name in names}
        save_file(tensors, folder / file, metadata)
        (folder / file).chmod(0o644)
        files |= dict.fromkeys(names, file)
    return files


def check_finite(state_dict: Mapping[str, Tensor], *, source: str) -> None:
    """Raise CheckpointError if a weight holds NaN or infinity."""
    raise_if_not_finite([name for name, x in state_dict.items() if x.is_floating_point() and not x.isfinite().all()], source)


def raise_if_not_finite(names: Sequence[str], source: str) -> None:
    """Raise CheckpointError that names weights with NaN or infinite values, if there are any."""
    if names:
        raise CheckpointError(
            f"{source}: {len(names)} weight{'s are' if len(names) > 1 else ' is'} not finite (NaN or infinite): "
            f"{', '.join(names[:5])}; the file is damaged, or its training diverged: take another copy or checkpoint"
        )


def strip_prefix(state_dict: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the weights whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): x for name, x in state_dict.items() if name.startswith(prefix)}


def to_float32_copy(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return float32 copies in memory of their own, so that a file may be overwritten while they are in use."""
    return {name: x.to(torch.float32 if x.is_floating_point() else x.dtype, copy=True) for name, x in state_dict.items()}


def _check_readable(path: Path) -> None:
    """Raise CheckpointError if a file is missing, empty, or a Git LFS pointer."""
    try:
        with path.open("rb") as file:
            head = file.read(len(_LFS_POINTER))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); check the path and its permissions") from None
    if not head:
        raise CheckpointError(f"{path} is empty; download or copy it again")
    if head == _LFS_POINTER:
        raise CheckpointError(f"{path} is a Git LFS pointer, not the weights; fetch them with `git lfs pull`")
