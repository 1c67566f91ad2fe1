"""Weights as they lie in a safetensors file, read one by one when they are asked for.

Read, and not mapped into memory: what is mapped counts as memory of the program besides what is made of it.
"""

import json
import math
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cadenza.core.errors import CheckpointError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

PIECE = 2**20  # bytes of a tensor that is read piece by piece, about
_HEADER = 100 * 2**20  # bytes of a header at most, as safetensors has it
_DTYPES = {
    **{"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool"},
    **{"I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8"},
    **{"U64": "uint64", "U32": "uint32", "U16": "uint16", "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"},
}


@dataclass(frozen=True)
class LazyTensor:
    """A tensor that has not been read; `rows(a, b)` reads what lies at a to b of its first dimension."""

    shape: tuple[int, ...]
    dtype: "torch.dtype"
    read_rows: Callable[[int, int], "Tensor"]

    @classmethod
    def from_tensor(cls, x: "Tensor") -> "LazyTensor":
        """A tensor that is there already."""
        return cls(tuple(x.shape), x.dtype, lambda a, b: x[a:b] if x.ndim else x)

    def load(self) -> "Tensor":
        """The whole tensor."""
        return self.read_rows(0, self.shape[0] if self.shape else 1)

    def iter_row_chunks(self, multiple: int = 1) -> Iterator[tuple[int, "Tensor"]]:
        """Its rows from the first to the last, some at a time, and where they begin; their number is a `multiple`'s."""
        count = self.shape[0] if self.shape else 1
        row = max(1, math.prod(self.shape[1:]) * self.dtype.itemsize)
        step = max(1, PIECE // row // multiple) * multiple
        for a in range(0, count, step):
            yield a, self.read_rows(a, min(a + step, count))


def open_safetensors(path: Path) -> dict[str, LazyTensor]:
    """The tensors of a safetensors file by their names; CheckpointError unless the file is whole."""
    import torch

    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            if size > _HEADER:
                raise ValueError(f"a header of {size} bytes")
            header = json.loads(file.read(size))
            file.seek(0, 2)
            room = file.tell() - size - 8
        header.pop("__metadata__", None)
        found, end = {}, 0
        for name, told in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            (start, stop), shape = told["data_offsets"], tuple(map(index, told["shape"]))
            dtype = getattr(torch, _DTYPES[told["dtype"]])
            if start != end or stop - start != math.prod(shape) * dtype.itemsize or min(shape, default=0) < 0:
                raise ValueError(f"'{name}' does not lie where it should")
            found[name] = LazyTensor(shape, dtype, partial(_rows, path, 8 + size + start, shape, dtype))
            end = stop
        if end != room:
            raise ValueError(f"{room} bytes of weights instead of {end}")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}); copy it again") from None
    return found


def _rows(path: Path, start: int, shape: tuple[int, ...], dtype: Any, a: int, b: int) -> "Tensor":
    import torch

    each = math.prod(shape[1:]) * dtype.itemsize
    x = torch.empty((b - a, *shape[1:]) if shape else (), dtype=dtype, device="cpu")
    if not x.numel():
        return x
    left = x.view(-1).view(torch.uint8).numpy().data
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(start + a * each)
            while left:
                count = file.readinto(left)
                if not count:
                    raise OSError("it has become shorter")
                left = left[count:]
    except OSError as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}); copy it again") from None
    return x


FILES = ("model.safetensors", "pytorch_model.bin")  # in the order of preference
_POINTER = b"version https://git-lfs"


def read_folder(folder: Path) -> dict[str, Tensor]:
    """All weights of a transformers folder by their names; the shards of an index must be complete and agree with it."""
    for name in FILES:
        if (folder / name).exists():
            return read_file(folder / name)
        if (index := folder / f"{name}.index.json").exists():
            return _shards(folder, index)
    raise CheckpointError(
        f"{folder} holds no weights ({' or '.join(FILES)}, or one of them in shards); copy or download the whole folder"
    )


def has_weights(folder: Path) -> bool:
    """Whether a folder holds a weight file, or the index of one, by the names that transformers uses."""
    return any((folder / name).exists() or (folder / f"{name}.index.json").exists() for name in FILES)


def read_file(path: Path) -> dict[str, Tensor]:
    """The tensors of one file."""
    if path.suffix != ".safetensors":
        return as_state_dict(load_torch_file(path), source=str(path))
    _whole(path)
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a whole safetensors file ({error}); download or copy it again") from None


def load_torch_file(path: Path) -> Any:
    """What a `torch.save` file holds, if that is tensors and plain data; anything else in it is refused and not run."""
    _whole(path)
    zipped = zipfile.is_zipfile(path)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Detected pickle protocol")  # it is read, or refused below
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except pickle.UnpicklingError as error:
        what = _forbidden(str(error))
        raise CheckpointError(
            f"{path} was not loaded: it is a pickle that holds {what}, and loading could run its code. Load it in the program "
            "that wrote it, in surroundings that you trust, and save the plain tensors (best as safetensors)"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, zipfile.BadZipFile) as error:
        reason = str(error).partition("\n")[0].partition(". ")[0]
        raise CheckpointError(f"{path} is damaged or cut short ({reason}); download or copy it again") from None


def as_state_dict(value: Any, *, source: str) -> dict[str, Tensor]:
    """A mapping of names to tensors, or a CheckpointError that says what there is instead."""
    if not isinstance(value, Mapping):
        raise CheckpointError(f"{source}: holds {_kind(value)} instead of weights by name")
    odd = [f"'{name}' ({_kind(x)})" for name, x in value.items() if not isinstance(x, Tensor)]
    if odd:
        raise CheckpointError(f"{source}: not everything in it is a tensor: {', '.join(odd[:5])}")
    return {str(name): x for name, x in value.items()}


def check_finite(state: Mapping[str, Tensor], *, source: str) -> None:
    """Raises CheckpointError where a weight holds NaN or infinity."""
    wrong = [name for name, x in state.items() if x.is_floating_point() and not bool(torch.isfinite(x).all())]
    if wrong:
        raise CheckpointError(
            f"{source}: {len(wrong)} weight{'s are' if len(wrong) > 1 else ' is'} not finite (NaN or infinite): "
            f"{', '.join(wrong[:5])}; the file is damaged, or its training failed: take another copy or checkpoint"
        )


def strip_prefix(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights whose names begin with `prefix`, without it."""
    return {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)}


def to_float32_copy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights in float32, in memory of their own: a file may be overwritten while they are in use."""
    return {name: x.to(torch.float32 if x.is_floating_point() else x.dtype, copy=True) for name, x in state.items()}


def _shards(folder: Path, index: Path) -> dict[str, Tensor]:
    try:
        placed = json.loads(index.read_text())["weight_map"]
        files = sorted(set(placed.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is not a readable index of shards ({error!r}); download or copy it again") from None
    if outside := [name for name in files if Path(name).name != name]:
        raise CheckpointError(f"{index} names '{outside[0]}', which is not a file beside it")
    if missing := [name for name in files if not (folder / name).exists()]:
        raise CheckpointError(
            f"{folder} holds {len(files) - len(missing)} of {len(files)} weight files; copy {', '.join(missing[:3])} too"
        )
    state: dict[str, Tensor] = {}
    for name in files:
        state |= read_file(folder / name)
    if lost := sorted(placed.keys() - state.keys()):
        raise CheckpointError(f"{folder}: {len(lost)} weights of the index are in no file: {', '.join(lost[:5])}")
    if more := sorted(state.keys() - placed.keys()):
        raise CheckpointError(f"{folder}: {len(more)} weights are in no index: {', '.join(more[:5])}")
    return state


def _whole(path: Path) -> None:
    """Raises CheckpointError for a file that is not there, empty, or only stands for one (as Git LFS leaves it)."""
    try:
        with path.open("rb") as file:
            head = file.read(len(_POINTER))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); check the path and its permissions") from None
    if not head:
        raise CheckpointError(f"{path} is empty; download or copy it again")
    if head == _POINTER:
        raise CheckpointError(f"{path} is a Git LFS pointer, not the weights; fetch them with `git lfs pull`")


def _forbidden(message: str) -> str:
    """What stands in a pickle that must not, from torch's refusal of it."""
    for start in ("Unsupported global: GLOBAL ", "GLOBAL "):
        if start in message:
            return f"'{message.partition(start)[2].split()[0]}'"
    return "more than tensors and plain data"


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"
