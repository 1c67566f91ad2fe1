"""Memory of this process, machine, container or GPU; parsing and formatting of byte counts."""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path("/")
LIMIT_VARIABLE = "CADENZA_MEMORY"  # environment variable: most bytes that this process may use, such as 4GB
_UNITS = {"": 1, "b": 1, "k": 1e3, "kb": 1e3, "kib": 2**10, "m": 1e6, "mb": 1e6, "mib": 2**20}
_UNITS |= {"g": 1e9, "gb": 1e9, "gib": 2**30, "t": 1e12, "tb": 1e12, "tib": 2**40}
_NO_LIMIT = 2**60  # cgroups v1 write such a number for "no limit"


def process_rss(root: Path = ROOT) -> int:
    """Return the resident bytes of this process; 0 if the system does not report them."""
    return _read_kilobytes(root / "proc/self/status").get("VmRSS", 0)


def peak_rss() -> int:
    """Return the largest number of resident bytes of this process so far; 0 if the system does not report them."""
    if peak := _read_kilobytes(ROOT / "proc/self/status").get("VmHWM"):
        return peak
    try:
        import resource  # not on Windows
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def available_memory(root: Path = ROOT) -> int | None:
    """Return the bytes that this process may still allocate (machine, container, CADENZA_MEMORY); None if unknown."""
    limits = [_read_kilobytes(root / "proc/meminfo").get("MemAvailable"), *_cgroup_limits(root)]
    if limit := os.environ.get(LIMIT_VARIABLE, "").strip():
        limits.append(max(0, parse_bytes(limit) - process_rss(root)))
    known = [limit for limit in limits if limit is not None]
    return min(known) if known else None


def available_memory_on(device: str) -> int | None:
    """Return the free bytes of a device such as "cpu" or "cuda:0"; None if unknown."""
    if device.partition(":")[0] != "cuda":
        return available_memory()
    import torch

    return int(torch.cuda.mem_get_info(device)[0])


def parse_bytes(text: str) -> int:
    """Parse a number with a unit, such as 4GB or 512 MiB, to bytes; raise ValueError for anything else."""
    lowered = text.strip().lower()
    digits = lowered.rstrip("bkmgti ")
    unit = lowered[len(digits) :].strip()
    try:
        number = float(digits) * _UNITS[unit]
    except (KeyError, ValueError):
        raise ValueError(
            f"'{text}' is not an amount of memory; write a number of bytes, or for example 4GB or 512MiB"
        ) from None
    if not 0 < number < _NO_LIMIT:
        raise ValueError(f"'{text}' is not a possible amount of memory; write for example 4GB")
    return int(number)


def format_bytes(size: float) -> str:
    """Format a byte count, such as "4.00 GB" or "162 kB"."""
    if size >= 0.9995e9:
        return f"{size / 1e9:.2f} GB" if size < 9.995e9 else f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.0f} MB" if size >= 0.5e6 else f"{size / 1e3:.0f} kB"


def _cgroup_limits(root: Path) -> list[int]:
    """Return the bytes left in each cgroup of this process that has a limit."""
    limits = []
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    for line in lines:
        _, controllers, own = (line.split(":", 2) + ["", ""])[:3]
        if controllers not in ("", "memory") and "memory" not in controllers.split(","):
            continue
        top = root / ("sys/fs/cgroup/memory" if controllers else "sys/fs/cgroup")
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        own_folder = top / own.lstrip("/")
        for folder in [own_folder, *own_folder.parents]:
            if top in (folder, *folder.parents):
                limit, used = (_read_int(folder / name) for name in names)
                if limit is not None and used is not None and limit < _NO_LIMIT:
                    limits.append(max(0, limit - used + _reclaimable(folder)))
    return limits


def _reclaimable(folder: Path) -> int:
    """Return the bytes of inactive file cache in a cgroup."""
    stat = _read_stat(folder / "memory.stat")
    return stat.get("total_inactive_file", stat.get("inactive_file", 0))


def _read_int(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # "max" means no limit
        return None


def _read_stat(path: Path) -> Mapping[str, int]:
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) for line in lines if len(line) == 2 and line[1].isdigit()}


def _read_kilobytes(path: Path) -> Mapping[str, int]:
    """Return bytes by name from a file with lines `name: number kB`."""
    try:
        lines = [line.replace(":", " ").split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) * 1024 for line in lines if len(line) == 3 and line[2] == "kB"}
