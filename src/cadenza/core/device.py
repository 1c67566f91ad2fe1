"""Where to compute and in what precision: one choice, and the reason for it."""

import os
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Literal

import torch

from cadenza.core.errors import RequestError

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
BFLOAT16 = (8, 0)  # the compute capability from which NVIDIA's devices multiply in bfloat16
Precision = torch.dtype | Literal["float32", "bfloat16", "float16", "half"]


@dataclass(frozen=True)
class DeviceChoice:
    """A device, the dtype of the weights there, and why these."""

    device: torch.device
    dtype: torch.dtype
    reason: str

    def __str__(self) -> str:
        return f"{self.device}, {_name(self.dtype)}: {self.reason}"


def select_device(device: str | torch.device | None = None, dtype: Precision | None = None) -> DeviceChoice:
    """The device and dtype to compute with; RequestError names what there is where something else is asked for.

    Without `device`, a GPU of NVIDIA (CUDA) or AMD (ROCm, which torch calls cuda too) if one answers, else the CPU;
    Apple's (mps) only when asked for, as nothing here has been measured on it. Without `dtype`, float32 everywhere:
    what is loaded may be trained and saved again, and only in float32 are an item's tokens the same alone and in any
    batch. "half" is what the device computes fastest in 16 bits: bfloat16, whose range is that of float32, where it
    has units for it, else float16. Samples are drawn in float32 whatever the dtype.
    """
    where, reason = _found() if device is None else (_asked(device), "the device that was asked for")
    if dtype is None:
        return DeviceChoice(where, torch.float32, f"{reason}; float32 by default")
    if dtype == "half":
        half, why = _half(where)
        return DeviceChoice(where, half, f"{reason}; {why}")
    exact = DTYPES.get(dtype) if isinstance(dtype, str) else dtype
    if exact is None or exact not in DTYPES.values():
        raise RequestError(f"there is no dtype '{dtype}' to compute with; there are: {', '.join(DTYPES)}, half")
    return DeviceChoice(where, exact, f"{reason}; the dtype that was asked for")


def list_devices() -> list[str]:
    """The devices that torch sees, the CPU last."""
    there = [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
    return [*there, *(["mps"] if torch.backends.mps.is_available() else []), "cpu"]


def _found() -> tuple[torch.device, str]:
    """The best device that answers."""
    if torch.cuda.is_available():
        device = torch.device("cuda")
        problem = _problem(device)
        if problem is None:
            return device, f"{torch.cuda.get_device_name()} by {_maker()}"
        return torch.device("cpu"), f"the GPU does not answer ({problem})"
    if torch.backends.mps.is_available():
        return torch.device("cpu"), 'no CUDA or ROCm device; Apple\'s GPU is used where device="mps" asks for it'
    return torch.device("cpu"), "torch sees no GPU"


def _asked(name: str | torch.device) -> torch.device:
    """The device of that name, which must be there."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise RequestError(f"there is no kind of device '{name}'; here there are: {', '.join(list_devices())}") from None
    whole = [torch.device(there) for there in list_devices()]
    if device.type not in ("meta", "cpu") and device not in whole and device not in [torch.device(d.type) for d in whole]:
        raise RequestError(
            f"this machine, or this build of torch, has no device '{name}'; there are: {', '.join(list_devices())}"
        )
    if device.type == "cuda" and (problem := _problem(device)) is not None:
        raise RequestError(f"the device '{name}' does not answer ({problem}); there is also: cpu")
    return device


def _problem(device: torch.device) -> str | None:
    """What keeps a device from adding two numbers: an old driver, a kind that torch was not built for, no memory."""
    try:
        (torch.zeros(1, device=device) + 1).cpu()
    except RuntimeError as error:
        return str(error).strip().partition("\n")[0]
    return None


def _maker() -> str:
    return f"ROCm {torch.version.hip}" if torch.version.hip else f"CUDA {torch.version.cuda}"


def _half(device: torch.device) -> tuple[torch.dtype, str]:
    """The 16 bits that suit a device, and why."""
    if device.type == "cuda" and not torch.version.hip and torch.cuda.get_device_capability(device) < BFLOAT16:
        return torch.float16, "float16, as the device has no units for bfloat16"
    if device.type == "mps":
        return torch.float16, "float16, which every one of Apple's GPUs computes"
    return torch.bfloat16, "bfloat16, whose range is that of float32"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


if TYPE_CHECKING:
    from cadenza.system.system import System

SMALL = 50_000_000  # parameters; `starter` has 15 million: 4.3 times real time with one thread, 2.4 with two


def choose_threads(system: "System") -> None:
    """One thread for a small model on a CPU: its matrices are done before a second one has woken up."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ and system.device.type in ("cpu", "meta"):
        if sum(weight.numel() for weight in chain(system.parameters(), system.buffers())) < SMALL:
            torch.set_num_threads(1)
