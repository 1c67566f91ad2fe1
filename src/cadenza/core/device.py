"""Selection of device, dtype and thread count."""

import os
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from cadenza.core.errors import RequestError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
MIN_BFLOAT16_CAPABILITY = (8, 0)  # NVIDIA compute capability
SMALL_MODEL = 50_000_000  # parameters; `starter` has 15 million: 4.3 times real time with one thread, 2.4 with two
Precision = torch.dtype | Literal["float32", "bfloat16", "float16", "half"]


@dataclass(frozen=True)
class DeviceChoice:
    """A device, the dtype of the weights on it, and the reason for both."""

    device: torch.device
    dtype: torch.dtype
    reason: str

    def __str__(self) -> str:
        return f"{self.device}, {str(self.dtype).removeprefix('torch.')}: {self.reason}"


def select_device(device: str | torch.device | None = None, dtype: Precision | None = None) -> DeviceChoice:
    """Return the device and dtype to compute with; raise RequestError, with the alternatives, for what is unavailable.

    Default device: an NVIDIA (CUDA) or AMD GPU (ROCm, "cuda" in torch) if one works, else the CPU. Apple's "mps" only on
    request, as it is not measured. Default dtype: float32 everywhere, because only in float32 are the tokens of an item equal
    alone and in any batch. "half" is bfloat16 if the device computes it natively, else float16. Sampling is always float32.
    """
    selected, reason = _default_device() if device is None else (_requested_device(device), "requested device")
    if dtype is None:
        return DeviceChoice(selected, torch.float32, f"{reason}; float32 by default")
    if dtype == "half":
        half, half_reason = _half_dtype(selected)
        return DeviceChoice(selected, half, f"{reason}; {half_reason}")
    resolved = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if resolved is None or resolved not in DTYPES.values():
        raise RequestError(f"'{dtype}' is not a dtype to compute with. Available: {', '.join(DTYPES)}, half")
    return DeviceChoice(selected, resolved, f"{reason}; requested dtype")


def choose_threads(model: nn.Module) -> None:
    """Set torch to one thread for a model below `SMALL_MODEL` on a CPU, unless OMP_NUM_THREADS is set."""
    weights = [*model.parameters(), *model.buffers()]
    if "OMP_NUM_THREADS" not in os.environ and all(weight.device.type in ("cpu", "meta") for weight in weights):
        if sum(weight.numel() for weight in weights) < SMALL_MODEL:
            torch.set_num_threads(1)


def _default_device() -> tuple[torch.device, str]:
    if torch.cuda.is_available():
        device = torch.device("cuda")
        if (problem := _problem(device)) is not None:
            return torch.device("cpu"), f"the GPU does not work ({problem})"
        runtime = f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"
        return device, f"{torch.cuda.get_device_name()} with {runtime}"
    if torch.backends.mps.is_available():
        return torch.device("cpu"), 'no CUDA or ROCm device; device="mps" selects the Apple GPU'
    return torch.device("cpu"), "torch sees no GPU"


def _requested_device(name: str | torch.device) -> torch.device:
    gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    available = [*gpus, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]
    try:
        device = torch.device(name)
    except RuntimeError:
        raise RequestError(f"'{name}' is not a kind of device. Available: {', '.join(available)}") from None
    known = {torch.device(device_name) for each in available for device_name in (each, each.partition(":")[0])}
    if device not in known and device.type not in ("cpu", "meta"):
        raise RequestError(
            f"device '{name}' not found on this machine, or not supported by this build of torch. "
            f"Available: {', '.join(available)}"
        )
    if device.type == "cuda" and (problem := _problem(device)) is not None:
        raise RequestError(f"the device '{name}' does not work ({problem}). Also available: cpu")
    return device


def _problem(device: torch.device) -> str | None:
    """Return why a device cannot add two numbers (old driver, unsupported architecture, no memory), or None."""
    try:
        (torch.zeros(1, device=device) + 1).cpu()
    except RuntimeError as error:
        return str(error).strip().partition("\n")[0]
    return None


def _half_dtype(device: torch.device) -> tuple[torch.dtype, str]:
    if device.type == "cuda" and not torch.version.hip and torch.cuda.get_device_capability(device) < MIN_BFLOAT16_CAPABILITY:
        return torch.float16, "float16, as the device does not compute bfloat16 natively"
    if device.type == "mps":
        return torch.float16, "float16, which every Apple GPU computes"
    return torch.bfloat16, "bfloat16, which has the range of float32"
