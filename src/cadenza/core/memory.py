"""How much memory there is: of this machine or container, and of a GPU."""

import os
from collections.abc import Mapping
from pathlib import Path

ROOT = Path("/")  # where a system says what it has
LIMIT = "CADENZA_MEMORY"  # environment: bytes that this program may take in all, such as 4GB
_UNITS = {"": 1, "b": 1, "k": 1e3, "kb": 1e3, "kib": 2**10, "m": 1e6, "mb": 1e6, "mib": 2**20}
_UNITS |= {"g": 1e9, "gb": 1e9, "gib": 2**30, "t": 1e12, "tb": 1e12, "tib": 2**40}
_HUGE = 2**60  # stands for no limit in cgroups of the first version


def process_rss(root: Path = ROOT) -> int:
    """Bytes of memory that this process takes now; 0 where the system does not say."""
    return _fields(root / "proc/self/status").get("VmRSS", 0)


def available_memory(root: Path = ROOT) -> int | None:
    """Bytes that this process may still take: those of the machine, or of the container; None where nothing says."""
    said = [_machine(root), *_containers(root)]
    if limit := os.environ.get(LIMIT, "").strip():
        said.append(max(0, parse_bytes(limit) - process_rss(root)))
    known = [each for each in said if each is not None]
    return min(known) if known else None


def available_memory_on(device: str) -> int | None:
    """Bytes that are free on a device; None where nothing says."""
    if device.partition(":")[0] != "cuda":
        return available_memory()
    import torch

    return int(torch.cuda.mem_get_info(device)[0])


def parse_bytes(text: str) -> int:
    """Bytes by a number with its unit, such as 4GB or 512 MiB; ValueError where it is none."""
    plain = text.strip().lower()
    digits = plain.rstrip("bkmgti ")
    unit = plain[len(digits) :].strip()
    try:
        number = float(digits) * _UNITS[unit]
    except (KeyError, ValueError):
        raise ValueError(f"'{text}' is no amount of memory; write a number of bytes, or one such as 4GB or 512MiB") from None
    if not 0 < number < _HUGE:
        raise ValueError(f"'{text}' is no amount of memory that a machine has; write one such as 4GB")
    return int(number)


def format_bytes(size: float) -> str:
    """Bytes for people."""
    if size >= 0.9995e9:
        return f"{size / 1e9:.2f} GB" if size < 9.995e9 else f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.0f} MB" if size >= 0.5e6 else f"{size / 1e3:.0f} kB"


def _machine(root: Path) -> int | None:
    return _fields(root / "proc/meminfo").get("MemAvailable")


def _containers(root: Path) -> list[int]:
    """What is left in each group of processes that this one belongs to, of those that have a limit."""
    left = []
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
        place = top / own.lstrip("/")
        for folder in [place, *place.parents]:
            if top in (folder, *folder.parents):
                limit, used = (_number(folder / name) for name in names)
                if limit is not None and used is not None and limit < _HUGE:
                    left.append(max(0, limit - used + _reclaimable(folder)))
    return left


def _reclaimable(folder: Path) -> int:
    """Bytes of files that a group holds in memory and would give back."""
    stat = _pairs(folder / "memory.stat")
    return stat.get("total_inactive_file", stat.get("inactive_file", 0))


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # `max` is no limit
        return None


def _pairs(path: Path) -> Mapping[str, int]:
    try:
        lines = [line.split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) for line in lines if len(line) == 2 and line[1].isdigit()}


def _fields(path: Path) -> Mapping[str, int]:
    """Bytes by name, of a file whose lines are `name: number kB`."""
    try:
        lines = [line.replace(":", " ").split() for line in path.read_text().splitlines()]
    except OSError:
        return {}
    return {line[0]: int(line[1]) * 1024 for line in lines if len(line) == 3 and line[2] == "kB"}
