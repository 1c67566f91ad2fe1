"""Python interface: `cadenza.load`."""

import os
import re
from pathlib import Path

import torch

from cadenza.core.atomic import CACHE_VARIABLE, cache_dir
from cadenza.core.device import Precision, select_device
from cadenza.core.errors import CheckpointError
from cadenza.core.spec import did_you_mean
from cadenza.nn.kernels import cpu_kernel_unavailable_reason
from cadenza.nn.weight_quantization import Kind, check_device_supports
from cadenza.system.feature_cache import FeatureCache
from cadenza.system.store import SPEC_FILE, ModelFolder
from cadenza.system.system import System

BUNDLED = Path(__file__).parents[1] / "bundled"  # systems that come with the package
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")


def load(
    name: str | Path | ModelFolder,
    *,
    device: str | torch.device | None = None,
    dtype: Precision | None = None,
    quantize: Kind | None = None,
) -> System:
    """Load a system: a bundled one (`starter`), a folder, a model on the hub, or an open ModelFolder.

    Models of transformers and AudioCraft are converted. `device` and `dtype` are chosen by `core.device.select_device`.
    `quantize` converts weights that are not quantised to int8 or int4. If CADENZA_CACHE names a folder, outputs of frozen
    encoders are cached there. Raises CheckpointError if the model is not found, not complete or of an unknown kind,
    RequestError for a device or dtype that is not available.
    """
    choice = select_device(device, dtype)
    model = name if isinstance(name, ModelFolder) else resolve(name)
    system = System.from_saved(model.load(), source=str(model.folder))
    if quantize is not None:
        system.quantize(quantize)
    if system.quantization is not None:
        check_device_supports(system.quantization, choice.device)
    system = system.to(device=choice.device, dtype=choice.dtype)
    if system.quantization and choice.device.type == "cpu":
        cpu_kernel_unavailable_reason()  # compiles the kernel now, or loads it from disk, and not at the first request
    if os.environ.get(CACHE_VARIABLE) and cache_dir() is not None:
        system.cache = FeatureCache()
    return system


def resolve(name: str | Path) -> ModelFolder:
    """Find a bundled system, a folder or a model on the hub, and open it; weights are not read.

    Raises CheckpointError if nothing has this name, or the folder is not that of a model.
    """
    path = Path(name).expanduser()
    if (path / SPEC_FILE).exists():
        return ModelFolder.open(path)
    if str(name) in list_bundled():
        return ModelFolder.open(BUNDLED / str(name))
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
        if (folder / SPEC_FILE).exists():
            return ModelFolder.open(folder)
        return detect.detect_model(folder, name=name.partition("@")[0])
    message = f"'{name}' is neither a folder nor a bundled model."
    if released := [model for model in MODELS if model.rpartition("/")[2] == str(name)]:
        raise CheckpointError(f"{message} Use its name on the hub, '{released[0]}'.")
    raise CheckpointError(message + did_you_mean(str(name), [*list_bundled(), *MODELS]))


def list_bundled() -> list[str]:
    """Return the names of the systems that come with the package."""
    return sorted(path.parent.name for path in BUNDLED.glob(f"*/{SPEC_FILE}"))
