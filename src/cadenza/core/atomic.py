"""Atomic writes: a file appears complete under its name, or not at all."""

import os
import re
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from cadenza.core.errors import CadenzaError

CACHE_VARIABLE = "CADENZA_CACHE"  # environment: folder of cached files, or `off`
_TEMP_NAME = re.compile(r"\..+\.(\d+)-[0-9a-f]{8}\.part")  # .NAME.PID-RANDOM.part, in the folder of the final file


@contextmanager
def atomic_write(path: str | Path, error: type[CadenzaError] = CadenzaError) -> Iterator[BinaryIO]:
    """Open a temporary file that replaces `path` when the block succeeds, and is removed otherwise.

    Raise `error` if it cannot be written.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        with open(temporary, "w+b") as file:
            yield file
        os.replace(temporary, path)
    except OSError as reason:
        fix = "check the free space and the permissions of its folder, or choose another path"
        if isinstance(reason, FileNotFoundError | NotADirectoryError):
            fix = f"make the folder '{path.parent}' first"
        elif isinstance(reason, IsADirectoryError):
            fix = "it is a folder; give a file name"
        raise error(f"{path}: cannot be written: {reason.strerror or reason}; {fix}") from reason
    finally:
        with suppress(OSError):
            os.unlink(temporary)


def remove_stale_temp_files(folder: Path) -> None:
    """Remove temporary files in a folder whose process no longer runs."""
    for path in folder.iterdir():
        match = _TEMP_NAME.fullmatch(path.name)
        if match and not _is_running(int(match[1])):
            path.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def cache_dir() -> Path | None:
    """Return the folder for cached files: CADENZA_CACHE, else that of the platform; None if the variable is `off`."""
    value = os.environ.get(CACHE_VARIABLE, "").strip()
    if value.lower() in ("off", "0", "no", "false"):
        return None
    if value and value.lower() != "on":
        return Path(value).expanduser()
    folders = {"win32": os.environ.get("LOCALAPPDATA") or "~/AppData/Local", "darwin": "~/Library/Caches"}
    base = folders.get(sys.platform) or os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "cadenza" / "features"
