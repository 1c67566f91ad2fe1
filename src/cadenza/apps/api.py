"""The Python face: `cadenza.load`."""

from pathlib import Path

import torch

from cadenza.core.errors import CheckpointError
from cadenza.core.spec import near
from cadenza.system import store
from cadenza.system.system import System

BUNDLED = Path(__file__).parents[1] / "bundled"  # systems that come with the package


def load(name: str | Path, *, device: str | torch.device | None = None, dtype: torch.dtype = torch.float32) -> System:
    """The system called `name`: a folder that was saved, or one that comes with the package (`starter`).

    On the GPU where there is one, unless `device` says otherwise. Raises CheckpointError for an unknown name or a
    folder that is not whole.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return System.load(folder_of(name), device=device, dtype=dtype)


def folder_of(name: str | Path) -> Path:
    """Where a system lives: the folder itself, or the bundled one of that name."""
    if (Path(name) / store.SPEC).exists():
        return Path(name)
    if Path(name).is_dir():
        raise CheckpointError(f"{name} is a folder without {store.SPEC}; give one that `save` or training wrote")
    bundled = bundled_names()
    if str(name) in bundled:
        return BUNDLED / str(name)
    raise CheckpointError(f"there is no folder and no bundled model called '{name}'.{near(str(name), bundled)}")


def bundled_names() -> list[str]:
    """The systems that come with the package."""
    return sorted(path.parent.name for path in BUNDLED.glob(f"*/{store.SPEC}"))
