"""Files that are whole or not there, whatever happens while they are written."""

import os
import re
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from cadenza.core.errors import CadenzaError

_DRAFT = re.compile(r"\..+\.(\d+)-[0-9a-f]{8}\.part")  # .NAME.PROCESS-CHANCE.part, beside the file it is to become


@contextmanager
def atomic_write(path: str | Path, error: type[CadenzaError] = CadenzaError) -> Iterator[BinaryIO]:
    """A file that takes the name `path` when the block ends well and disappears when it does not; `error` if it cannot be."""
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.part")
    try:
        with open(draft, "w+b") as file:
            yield file
        os.replace(draft, path)
    except OSError as reason:
        raise error(f"{path}: cannot be written: {reason.strerror or reason}; {_mend(path, reason)}") from reason
    finally:
        with suppress(OSError):
            os.unlink(draft)


def remove_stale_temp_files(folder: Path) -> None:
    """Removes the drafts in a folder whose process was killed."""
    for path in folder.iterdir():
        found = _DRAFT.fullmatch(path.name)
        if found and not _alive(int(found[1])):
            path.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    """Whether a process of that number runs on this machine."""
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def _mend(path: Path, error: OSError) -> str:
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        return f"make the folder '{path.parent}' first"
    if isinstance(error, IsADirectoryError):
        return "it is a folder; give a file name"
    return "check the free space and the permissions of its folder, or choose another place"
