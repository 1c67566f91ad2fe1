"""`cadenza models`: the models that can be loaded, and whether this machine can run them."""

import math
import os
from pathlib import Path
from typing import Annotated

import typer

_OVERHEAD = 1.15  # memory of a running model, relative to its weights


def models(
    folder: Annotated[Path | None, typer.Argument(help="List the models in this folder and in folders in it instead.")] = None,
) -> None:
    """List the models that can be loaded by name: licence, size, and whether this machine can run them."""
    from cadenza.apps.api import BUNDLED, list_bundled
    from cadenza.importers.catalog import MODELS
    from cadenza.system.store import SPEC_FILE

    if folder is not None:
        if not folder.is_dir():
            raise typer.BadParameter(f"'{folder}' is not a folder", param_hint="FOLDER")
        entries = [_read_entry(path.parent, str(path.parent)) for path in sorted(folder.rglob(SPEC_FILE))]
        if not entries:
            print(f"{folder} holds no model that `save`, `train` or `import` wrote")
            return
    else:
        entries = [_read_entry(BUNDLED / name, name) for name in list_bundled()]
        for name, model in MODELS.items():
            summary = model.about + (" (on this machine)" if _is_downloaded(name) else "")
            entries.append((name, model.license, summary, model.parameters))
    memory, owner = _total_memory()
    width, width_of_licence = (max(len(str(entry[i])) for entry in entries) for i in (0, 1))
    print(f"{'name':<{width}}  {'licence':<{width_of_licence}}  parameters  memory     here")
    for name, licence, summary, parameters in entries:
        count = f"{parameters / 1e9:.2f} G" if parameters >= 1e9 else f"{parameters / 1e6:.1f} M"
        sizes = {"runs": 4 * parameters, "runs half": 2 * parameters, "too large": 0}  # bytes of the weights
        fit = next(text for text, size in sizes.items() if size * _OVERHEAD <= memory)
        columns = f"{count:>10}  {4 * parameters / 2**30:4.1f} GiB  {fit:<9}"
        print(f"{name:<{width}}  {licence:<{width_of_licence}}  {columns}  {summary}")
    print(f"\nmemory of {owner}: {memory / 2**30:.1f} GiB; that of a model is for float32 (half: `generate --half`)")
    if any("-NC-" in licence for _, licence, _, _ in entries):
        print("NC: not for commercial use")


def _read_entry(folder: Path, name: str) -> tuple[str, str, str, int]:
    """Return name, licence, summary and number of parameters (with frozen encoders) of a system that is not loaded."""
    import torch

    from cadenza.core.checkpoint import open_safetensors
    from cadenza.core.errors import CadenzaError
    from cadenza.system.store import ModelFolder
    from cadenza.system.system import System

    try:
        model = ModelFolder.open(folder)
        with torch.device("meta"):
            count = sum(p.numel() for p in System(model.spec).parameters())
        for path in sorted(folder.rglob("*.safetensors")):
            weights = open_safetensors(path)  # raises if the file is damaged
            if path.parent != folder:  # of a frozen encoder
                count += sum(math.prod(weight.shape) for weight in weights.values())
    except CadenzaError as error:
        return name, "unknown", f"damaged: {error}", 0
    return name, model.card.license, model.card.summary, count


def _is_downloaded(name: str) -> bool:
    """Whether the weights of a model are in the cache of the hub."""
    from huggingface_hub import try_to_load_from_cache

    files = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "state_dict.bin")
    return any(isinstance(try_to_load_from_cache(name, file), str) for file in files)


def _total_memory() -> tuple[int, str]:
    """Return the bytes of memory of the GPU, or of this machine or container, and whose memory it is."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.get_device_properties(0).total_memory, "the GPU"
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for limit in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):  # of a container
        text = Path(limit).read_text().strip() if Path(limit).exists() else ""
        total = min(total, int(text)) if text.isdigit() else total
    return total, "this machine"
