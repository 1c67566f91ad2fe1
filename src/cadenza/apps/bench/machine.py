"""Machine: what this one is, and what it can do at best, measured."""

import os
import platform
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from cadenza.apps.bench.measure import synchronized_time
from cadenza.core.errors import BenchmarkError

LIBRARIES = ("cadenza", "torch", "transformers", "numba", "numpy")
_BUFFER = 2**29  # bytes, beyond all caches of a CPU


@dataclass(frozen=True)
class MachineLimits:
    """The best of several tries, a second: bytes read and copied (both ways counted), operations of a matrix product."""

    read: float
    copy: float
    float32: float
    bfloat16: float

    @property
    def bandwidth(self) -> float:
        """Bytes a second that nothing on this machine was seen to exceed."""
        return max(self.read, self.copy)

    def max_with(self, other: "MachineLimits") -> "MachineLimits":
        """The best of both."""
        return MachineLimits(*(max(a, b) for a, b in zip(asdict(self).values(), asdict(other).values(), strict=True)))


def measure_limits(device: torch.device, *, quick: bool = False, tries: int = 5) -> MachineLimits:
    """Bounds with the number of threads that torch has."""
    size = _BUFFER // 32 if quick else 4 * _BUFFER if device.type == "cuda" else _BUFFER
    source = torch.ones(size // 4, device=device)
    target = torch.ones_like(source)  # empty memory may be no memory yet
    read = max(
        size / _best(device, source.sum, tries),
        2 * size / _best(device, lambda: torch.dot(source, target), tries),
    )
    copy = 2 * size / _best(device, lambda: target.copy_(source), tries)
    side = 512 if quick else 8192 if device.type == "cuda" else 2048
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        rates[dtype] = 2 * side**3 / _best(device, lambda a=a, b=b: a @ b, tries)
    return MachineLimits(read, copy, rates[torch.float32], rates[torch.bfloat16])


def _best(device: torch.device, action: Callable[[], Any], tries: int) -> float:
    """Seconds of the fastest of some tries, after one that is not counted."""
    action()
    times = []
    for _ in range(tries):
        start = synchronized_time(device)
        action()
        times.append(synchronized_time(device) - start)
    return min(times)


def describe_machine(device: torch.device) -> dict[str, Any]:
    """What the report says of the machine."""
    found: dict[str, Any] = {
        "kind": machine_id(device),
        "cpu": _cpu(),
        "cores": cpu_count(),
        "memory_bytes": total_memory(),
        "system": f"{platform.system()} {platform.machine()}",
        "load_at_start": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "versions": {name: there for name in LIBRARIES if (there := _version(name))},
    }
    if device.type == "cuda":
        about = torch.cuda.get_device_properties(device)
        found |= {"gpu": about.name, "gpu_memory_bytes": about.total_memory, "cuda": torch.version.cuda}
    return found


def machine_id(device: torch.device) -> str:
    """The name of the folder for results of machines like this one."""
    if device.type == "cuda":
        return "gpu-" + re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(device).lower()).strip("-")
    return f"{device.type}-{cpu_count()}-cores" if device.type == "cpu" else device.type


def cpu_count() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def total_memory() -> int:
    """Bytes of main memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0


def available_memory(device: torch.device) -> int:
    """Bytes that can be had now; 0 where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return _field("/proc/meminfo", "MemAvailable")


def peak_rss() -> int:
    """The most bytes of main memory that this process has held."""
    if found := _field("/proc/self/status", "VmHWM"):
        return found
    try:  # where there is no /proc; counts what the parent held, too
        import resource
    except ImportError:
        raise BenchmarkError("this system does not say how much memory a process has held; use --no-fresh") from None
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if platform.system() == "Darwin" else 1024 * most


def process_rss() -> int:
    """Bytes of main memory that this process holds; 0 where the system does not say."""
    return _field("/proc/self/status", "VmRSS")


def _field(file: str, name: str) -> int:
    try:
        found = re.search(rf"^{name}:\s+(\d+) kB", Path(file).read_text(), re.M)
    except OSError:
        return 0
    return 1024 * int(found[1]) if found else 0


def _cpu() -> str:
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def today() -> str:
    return time.strftime("%Y-%m-%d")
