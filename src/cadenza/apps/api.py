"""The Python face: `cadenza.load`."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from cadenza.core.device import Precision, choose
from cadenza.core.errors import CheckpointError
from cadenza.core.spec import near
from cadenza.nn.native import obstacle
from cadenza.nn.quantized import Kind, suits
from cadenza.system import store
from cadenza.system.features import PLACE, FeatureCache, place
from cadenza.system.system import System

if TYPE_CHECKING:
    from cadenza.importers.model import Foreign

BUNDLED = Path(__file__).parents[1] / "bundled"  # systems that come with the package
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")


def load(
    name: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: Precision | None = None,
    quantize: Kind | None = None,
) -> System:
    """The system called `name`: one that comes with the package (`starter`), a folder, or a model in the hub.

    A folder is one that was saved here, or one of transformers or AudioCraft, whose model is then imported. On the GPU
    where one answers, and in float32, unless `device` and `dtype` say otherwise (`core.device.choose`), RequestError where
    that is not to be had. `quantize` makes weights that are not so yet int8 or int4
    (`System.quantize`). Raises CheckpointError for what is not there, not whole, or of a kind that cannot be loaded.
    Where CADENZA_CACHE names a folder, what frozen encoders make of values is kept there.
    """
    chosen = choose(device, dtype)
    found = find(name)
    if isinstance(found, Path):
        system = System.load(found)
    else:
        system = System.of(found.read(), source=str(found.folder))
    if quantize is not None:
        system.quantize(quantize)
    if system.quantized is not None:
        suits(system.quantized, chosen.device)
    system = system.to(device=chosen.device, dtype=chosen.dtype)
    if system.quantized and chosen.device.type == "cpu":
        obstacle()  # compiles what is needed first, or finds it on disk, now rather than at the first request
    if os.environ.get(PLACE) and place() is not None:
        system.cache = FeatureCache()
    return system


def find(name: str | Path) -> "Path | Foreign":
    """What `name` stands for: the folder of a system, or another library's model, whose weights are not read yet."""
    path = Path(name).expanduser()
    if (path / store.SPEC).exists():
        return path
    if str(name) in bundled_names():
        return BUNDLED / str(name)
    from cadenza.importers import foreign, hub
    from cadenza.importers.published import MODELS

    if path.is_dir():
        return foreign.look(path)
    if path.is_file():
        raise foreign.refuse_file(path)
    if not isinstance(name, Path) and _REPOSITORY.fullmatch(name) and (name in MODELS or not path.parent.is_dir()):
        folder = hub.fetch(name)
        if (folder / store.SPEC).exists():
            return folder
        return foreign.look(folder, name=name.partition("@")[0])
    raise CheckpointError(_nowhere(str(name)))


def bundled_names() -> list[str]:
    """The systems that come with the package."""
    return sorted(path.parent.name for path in BUNDLED.glob(f"*/{store.SPEC}"))


def _nowhere(name: str) -> str:
    from cadenza.importers.published import MODELS

    released = [model for model in MODELS if model.rpartition("/")[2] == name]
    if released:
        return f"there is no folder and no bundled model called '{name}'; in the hub it is '{released[0]}'"
    return f"there is no folder and no bundled model called '{name}'.{near(name, [*bundled_names(), *MODELS])}"
