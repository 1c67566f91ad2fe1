"""Memory of this process, machine, container or GPU; parsing and formatting of byte counts."""

import os
import re
import sys
from pathlib import Path

ROOT = Path("/")
LIMIT_VARIABLE = "CADENZA_MEMORY"  # environment variable: most bytes that this process may use, such as 4GB
_UNITS = {"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12, "ki": 2**10, "mi": 2**20, "gi": 2**30, "ti": 2**40}
_NO_LIMIT = 2**60  # cgroups v1 write such a number for "no limit"


def process_rss(root: Path = ROOT) -> int:
    """Return the resident bytes of this process; 0 if the system does not report them."""
    return _read_table(root / "proc/self/status").get("VmRSS", 0)


def peak_rss() -> int:
    """Return the largest number of resident bytes of this process so far; 0 if the system does not report them."""
    if peak := _read_table(ROOT / "proc/self/status").get("VmHWM"):
        return peak
    try:
        import resource  # not on Windows
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def available_memory(root: Path = ROOT) -> int | None:
    """Return the bytes that this process may still allocate (machine, container, CADENZA_MEMORY); None if unknown."""
    limits = [_read_table(root / "proc/meminfo").get("MemAvailable"), *_cgroup_limits(root)]
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
    match = re.fullmatch(r"(\d*\.?\d+(?:e\d+)?)\s*([kmgt]i?)?b?", text.strip().lower())
    size = float(match[1]) * _UNITS[match[2] or ""] if match else 0
    if not 0 < size < _NO_LIMIT:
        raise ValueError(f"'{text}' is not an amount of memory; write a number of bytes, or for example 4GB or 512MiB")
    return int(size)


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
                    table = _read_table(folder / "memory.stat")  # inactive file cache is freed when memory is needed
                    limits.append(max(0, limit - used + table.get("total_inactive_file", table.get("inactive_file", 0))))
    return limits


def _read_int(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # "max" means no limit
        return None


def _read_table(path: Path) -> dict[str, int]:
    """Return bytes by name from a file with lines `name number` or `name: number kB`."""
    try:
        rows = [line.replace(":", " ").split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {row[0]: int(row[1]) * (1024 if row[2:] == ["kB"] else 1) for row in rows if len(row) > 1 and row[1].isdecimal()}
