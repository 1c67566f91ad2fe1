"""Check that the models to compare fit in memory, before anything is built."""

from collections.abc import Sequence

import torch

from cadenza.core.errors import BenchmarkError
from cadenza.core.memory import available_memory, available_memory_on
from cadenza.nn.weight_quantization import MAX_PACKED_WEIGHTS
from compare.geometry import ModelGeometry, list_geometries, parameters
from compare.peer import TransformersConfig

_BYTES = {"float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "int8": 1.1, "int4": 0.6}  # of a number of the language model
_READING = 2.2  # times its size in float32 that a model takes while it is read from another library's file and converted
_BESIDE = 1.5e9  # bytes of libraries, of keys and values, of what a codec computes with


def fits_in_memory(
    shape: ModelGeometry, variants: Sequence[str], peers: Sequence[TransformersConfig], device: torch.device
) -> bool:
    """Return whether all models fit in memory together; raise BenchmarkError, naming what would fit, if not even one does."""
    free = available_memory_on(str(device))
    if not free:
        return True
    host = available_memory() or 2**60
    if (wanted := _READING * 4 * shape.parameters + _BESIDE) > host:
        fit = [name for name in list_geometries() if _READING * 4 * parameters(name) + _BESIDE <= host]
        raise BenchmarkError(
            f"{shape.name} has {shape.parameters / 1e9:.2f} billion parameters and takes {wanted / 1e9:.1f} GB while it is "
            f"built and read, but {host / 1e9:.1f} GB are free; what would fit: {', '.join(fit) or 'none; free memory'}"
        )
    each = [_of(shape, variant, ours=True, device=device) for variant in variants]
    each += [_of(shape, config.dtype, ours=False, device=device) for config in peers]
    if (largest := max(each, default=0.0) + _BESIDE) > free:
        raise BenchmarkError(
            f"{shape.name} takes {largest / 1e9:.1f} GB in one of the forms that are asked for, but {free / 1e9:.1f} GB are "
            "free; leave that form out of --variants, or use a smaller model"
        )
    return sum(each) + _READING * 4 * shape.parameters + _BESIDE <= free


def _of(shape: ModelGeometry, form: str, *, ours: bool, device: torch.device) -> float:
    """Bytes of a model once it is read; ours in float32 on a CPU lies there twice, where it is not too large for that."""
    twice = 2 if ours and form == "float32" and device.type == "cpu" and shape.parameters <= 1.5 * MAX_PACKED_WEIGHTS else 1
    return twice * _BYTES[form] * shape.parameters + (0 if form in ("float32", "bfloat16", "float16") else 7e8)
