"""The Python face: `cadenza.load`."""

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from cadenza.core.device import Precision, select_device
from cadenza.core.errors import CheckpointError
from cadenza.core.spec import did_you_mean
from cadenza.nn.kernels import cpu_kernel_unavailable_reason
from cadenza.nn.weight_quantization import Kind, check_device_supports
from cadenza.system import store
from cadenza.system.feature_cache import PLACE, FeatureCache, cache_dir
from cadenza.system.system import System

if TYPE_CHECKING:
    from cadenza.importers.base import ForeignModel

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
    chosen = select_device(device, dtype)
    found = resolve(name)
    if isinstance(found, Path):
        system = System.load(found)
    else:
        system = System.from_saved(found.load(), source=str(found.folder))
    if quantize is not None:
        system.quantize(quantize)
    if system.quantization is not None:
        check_device_supports(system.quantization, chosen.device)
    system = system.to(device=chosen.device, dtype=chosen.dtype)
    if system.quantization and chosen.device.type == "cpu":
        cpu_kernel_unavailable_reason()  # compiles what is needed first, or finds it on disk, now rather than at the first request
    if os.environ.get(PLACE) and cache_dir() is not None:
        system.cache = FeatureCache()
    return system


def resolve(name: str | Path) -> "Path | ForeignModel":
    """What `name` stands for: the folder of a system, or another library's model, whose weights are not read yet."""
    path = Path(name).expanduser()
    if (path / store.SPEC).exists():
        return path
    if str(name) in list_bundled():
        return BUNDLED / str(name)
    from cadenza.core import hub
    from cadenza.importers import detect
    from cadenza.importers.audiocraft_package import PACKAGE_FILES
    from cadenza.importers.catalog import MODELS

    if path.is_dir():
        return detect.detect_model(path)
    if path.is_file():
        raise detect.single_file_error(path)
    if not isinstance(name, Path) and _REPOSITORY.fullmatch(name) and (name in MODELS or not path.parent.is_dir()):
        folder = hub.download_snapshot(name, weight_files=PACKAGE_FILES)
        if (folder / store.SPEC).exists():
            return folder
        return detect.detect_model(folder, name=name.partition("@")[0])
    raise CheckpointError(_nowhere(str(name)))


def list_bundled() -> list[str]:
    """The systems that come with the package."""
    return sorted(path.parent.name for path in BUNDLED.glob(f"*/{store.SPEC}"))


def _nowhere(name: str) -> str:
    from cadenza.importers.catalog import MODELS

    released = [model for model in MODELS if model.rpartition("/")[2] == name]
    if released:
        return f"there is no folder and no bundled model called '{name}'; in the hub it is '{released[0]}'"
    return f"there is no folder and no bundled model called '{name}'.{did_you_mean(name, [*list_bundled(), *MODELS])}"
