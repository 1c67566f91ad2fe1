"""Card: who made the weights of a system and under which licence; kept by every save."""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from cadenza.conditioners.base import ConditionerSpec
from cadenza.core.checkpoint import open_safetensors
from cadenza.core.errors import CheckpointError
from cadenza.core.migrations import migrate_weight_name
from cadenza.core.spec import Spec, read_data
from cadenza.system.spec import SystemSpec

FILE = "README.md"


class ModelCard(Spec):
    """The front matter of a model card, and its text."""

    name: str = "unnamed"
    license: str = "unknown"  # SPDX id of the weights' licence, which may differ from the code's
    summary: str = ""
    notice: str = ""  # where the weights come from, what they may be used for

    def to_markdown(self) -> str:
        front = {"name": self.name, "license": self.license, "library_name": "cadenza", "pipeline_tag": "text-to-audio"}
        head = yaml.safe_dump({**front, "summary": self.summary}, sort_keys=False, allow_unicode=True)
        return f"---\n{head}---\n\n# {self.name}\n\n{self.summary}\n\n{self.notice}\n"

    @classmethod
    def from_folder(cls, folder: Path) -> "ModelCard":
        """The card in a system's folder; an unnamed one of unknown licence where there is none."""
        path = folder / FILE
        if not path.exists():
            return cls(name=folder.name)
        _, head, text = [*path.read_text().split("---\n", 2), "", ""][:3]
        try:
            front = yaml.safe_load(head) or {}
            if not isinstance(front, dict):
                raise yaml.YAMLError("not a mapping")
        except yaml.YAMLError as error:
            raise CheckpointError(f"{path}: the front matter is not YAML ({error}); mend or remove the file") from None
        known = {name: str(front[name]) for name in ("name", "license", "summary") if name in front}
        body = text.strip().removeprefix(f"# {known.get('name', '')}").strip().removeprefix(known.get("summary", ""))
        return cls(**known, notice=body.strip())


SPEC = "system.json"
SHARD_BYTES = 15 * 2**20  # of files that shall be easy to carry; larger weights are split
MANY_BYTES = 2**30  # weights that are not easy to carry anyhow are split into files of this size


@dataclass(frozen=True)
class SavedSystem:
    """What a system's folder holds."""

    spec: SystemSpec
    card: ModelCard
    weights: dict[str, Tensor]


Keep = Callable[[Path], Mapping[str, ConditionerSpec]]  # of Conditioners: puts files into a folder, gives the specs to save


def save_system(stored: SavedSystem, folder: str | Path, *, dtype: torch.dtype | None = None, keep: Keep | None = None) -> None:
    """Writes the folder whole or not at all; an earlier system there is replaced, anything else is refused.

    `keep` puts there what conditioners need beside their weights.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / SPEC).exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists and holds no system; choose an empty or a new folder")
    temporary: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
        spec = stored.spec if keep is None else stored.spec.model_copy(update={"conditioners": dict(keep(temporary))})
        (temporary / SPEC).write_text(spec.to_json())
        (temporary / FILE).write_text(stored.card.to_markdown())
        for name, shard in _shards(stored.weights, dtype):
            save_file(shard, temporary / name)
            (temporary / name).chmod(0o644)
        temporary.chmod(0o755)
        if folder.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{folder.name}-old-", dir=folder.parent))
            os.replace(folder, old / folder.name)
            os.replace(temporary, folder)
            shutil.rmtree(old)
        else:
            os.replace(temporary, folder)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{folder}: the system could not be saved: {error}; free space or choose another folder"
        ) from None
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)


def load_system(folder: str | Path) -> SavedSystem:
    """What a folder holds; raises CheckpointError where something is missing, damaged or not finite."""
    folder = Path(folder)
    if not (folder / SPEC).exists():
        raise CheckpointError(f"{folder} holds no {SPEC}; give the folder that `save` or training wrote")
    spec, weights = load_spec(folder), _weights(folder)
    if read_data(folder / SPEC).get("format", 1) == 1:
        weights = {migrate_weight_name(name): value for name, value in weights.items()}
    for name, value in weights.items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise CheckpointError(f"{folder}: weight '{name}' is not finite; the training that wrote it had failed")
    return SavedSystem(spec, ModelCard.from_folder(folder), weights)


def load_spec(folder: str | Path) -> SystemSpec:
    """The spec of the system in a folder, with what its conditioners keep there found."""
    folder = Path(folder)
    spec = SystemSpec.read(folder / SPEC)
    here = {name: part.resolve_paths(folder) for name, part in spec.conditioners.items()}
    return spec.model_copy(update={"conditioners": here})


def check_state_dict(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str) -> None:
    """Raises CheckpointError unless every wanted weight is there in its shape, and no other."""
    missing, unknown = sorted(wanted.keys() - weights.keys()), sorted(weights.keys() - wanted.keys())
    shapes = [
        f"{name} is {tuple(weights[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in sorted(wanted.keys() & weights.keys())
        if weights[name].shape != wanted[name].shape
    ]
    if missing or unknown or shapes:
        raise CheckpointError(
            f"{source}: weights and {SPEC} do not belong together: "
            f"{len(missing)} missing {missing[:5]}, {len(unknown)} unknown {unknown[:5]}, {len(shapes)} misshapen {shapes[:5]}"
        )


def _weights(folder: Path) -> dict[str, Tensor]:
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder} holds no weights (model.safetensors); copy the whole folder again")
    if match := re.fullmatch(r"model-\d+-of-(\d+)\.safetensors", files[0].name):
        if len(files) != int(match[1]):
            raise CheckpointError(f"{folder} holds {len(files)} of {int(match[1])} weight files; copy the missing ones")
    return {name: record.load() for file in files for name, record in open_safetensors(file).items()}


def _copy(x: Tensor, dtype: torch.dtype) -> Tensor:
    """A copy, as tensors that share memory are stored one by one."""
    return x.detach().to("cpu", dtype, copy=True).contiguous()


def _dtypes(weights: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, torch.dtype]:
    """What each weight is stored as; those of a quantised layer as they are."""
    narrow = {name.removesuffix("packed") for name in weights if name.endswith(".packed")}
    kept = {name for name in weights if f"{name.rpartition('.')[0]}." in narrow}
    cast = {name for name, x in weights.items() if x.is_floating_point()} - kept
    return {name: dtype if dtype is not None and name in cast else x.dtype for name, x in weights.items()}


def _shards(weights: Mapping[str, Tensor], dtype: torch.dtype | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """The files to write one after the other, and what each holds."""
    dtypes = _dtypes(weights, dtype)
    sizes = {name: x.numel() * dtypes[name].itemsize for name, x in weights.items()}
    most = SHARD_BYTES if sum(sizes.values()) < MANY_BYTES else MANY_BYTES
    shards: list[list[str]] = [[]]
    size = 0
    for name in weights:
        size += sizes[name]
        if size > most and shards[-1]:
            shards.append([])
            size = sizes[name]
        shards[-1].append(name)
    for i, names in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{i:05d}-of-{len(shards):05d}.safetensors"
        yield file, {name: _copy(weights[name], dtypes[name]) for name in names}
