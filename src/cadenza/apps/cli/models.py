"""`cadenza models`: what can be loaded, and what this machine can run."""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

SPARE = 1.15  # of the weights' size, for what is computed with them


@dataclass(frozen=True)
class _Line:
    name: str
    license: str
    about: str
    parameters: int


def models(
    folder: Annotated[Path | None, typer.Argument(help="List the models in this folder and those below it instead.")] = None,
) -> None:
    """List the models that can be loaded by name: licence, size, and whether this machine can run them."""
    if folder is not None and not folder.is_dir():
        raise typer.BadParameter(f"'{folder}' is not a folder", param_hint="FOLDER")
    lines = _released() if folder is None else [_saved(path) for path in _systems(folder)]
    if not lines:
        print(f"{folder} holds no model that `save`, `train` or `import` wrote")
        return
    memory, where = _memory()
    width, licence = (max(len(getattr(line, field)) for line in lines) for field in ("name", "license"))
    print(f"{'name':<{width}}  {'licence':<{licence}}  parameters  memory     here")
    for line in lines:
        size = f"{_count(line.parameters):>10}  {4 * line.parameters / 2**30:4.1f} GiB"
        print(f"{line.name:<{width}}  {line.license:<{licence}}  {size}  {_runs(line.parameters, memory):<9}  {line.about}")
    print(f"\nmemory of {where}: {memory / 2**30:.1f} GiB; that of a model is for float32 (half: `generate --half`)")
    if any("-NC-" in line.license for line in lines):
        print("NC: not for commercial use")


def _released() -> list[_Line]:
    """What comes with the package, then what the hub has."""
    from cadenza.apps.api import BUNDLED, list_bundled
    from cadenza.importers.catalog import MODELS

    own = [_saved(BUNDLED / name, name) for name in list_bundled()]
    return own + [
        _Line(name, model.license, model.about + (" (on this machine)" if _downloaded(name) else ""), model.parameters)
        for name, model in MODELS.items()
    ]


def _saved(folder: Path, name: str | None = None) -> _Line:
    """Describe a system's folder; parameters, those of frozen encoders included, are counted without reading them."""
    import torch
    from safetensors import SafetensorError, safe_open

    from cadenza.core.errors import CadenzaError
    from cadenza.system.store import ModelFolder
    from cadenza.system.system import System

    try:
        found = ModelFolder.open(folder)
        with torch.device("meta"):
            count = sum(p.numel() for p in System(found.spec).parameters())
        for path in sorted(folder.rglob("*.safetensors")):
            with safe_open(path, "pt") as file:  # raises if the file is damaged
                shapes = [file.get_slice(key).get_shape() for key in file.keys()]
            if path.parent != folder:  # of a frozen encoder
                count += sum(map(math.prod, shapes))
    except (SafetensorError, CadenzaError) as error:
        return _Line(name or str(folder), "unknown", f"damaged: {error}", 0)
    return _Line(name or str(folder), found.card.license, found.card.summary, count)


def _systems(folder: Path) -> list[Path]:
    from cadenza.system.store import SPEC_FILE

    return sorted(path.parent for path in folder.rglob(SPEC_FILE))


def _downloaded(name: str) -> bool:
    """Whether the hub's cache has the weights of a model."""
    from huggingface_hub import try_to_load_from_cache

    files = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "state_dict.bin")
    return any(isinstance(try_to_load_from_cache(name, file), str) for file in files)


def _memory() -> tuple[int, str]:
    """The bytes that a model may take here, and of what: the GPU's where there is one."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory, "the GPU"
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):  # of a container
        text = Path(limit).read_text().strip() if Path(limit).exists() else ""
        total = min(total, int(text)) if text.isdigit() else total
    return total, "this machine"


def _runs(parameters: int, memory: int) -> str:
    """How a model of so many parameters fits."""
    if 4 * parameters * SPARE <= memory:
        return "runs"
    return "runs half" if 2 * parameters * SPARE <= memory else "too large"


def _count(parameters: int) -> str:
    return f"{parameters / 1e9:.2f} G" if parameters >= 1e9 else f"{parameters / 1e6:.1f} M"
