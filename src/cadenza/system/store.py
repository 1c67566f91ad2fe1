"""Folder of a saved system: `system.json`, weights in safetensors files, and a model card."""

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from safetensors import SafetensorError
from torch import Tensor

from cadenza.conditioners.base import ConditionerSpec
from cadenza.core.checkpoint import check_finite, open_safetensors, save_shards
from cadenza.core.errors import CheckpointError
from cadenza.core.migrations import migrate_weight_name
from cadenza.core.spec import Spec, read_data
from cadenza.system.spec import SystemSpec

SPEC_FILE, CARD_FILE = "system.json", "README.md"
SHARD_BYTES = 15 * 2**20  # shards of models below LARGE_SHARD_BYTES, small enough for any file host
LARGE_SHARD_BYTES = 2**30  # shards of larger models


class ModelCard(Spec):
    """Front matter and text of a model card."""

    name: str = "unnamed"
    license: str = "unknown"  # SPDX id of the licence of the weights, which may differ from that of the code
    summary: str = ""
    notice: str = ""  # origin of the weights and permitted use

    def to_markdown(self) -> str:
        """Return the card as Markdown with YAML front matter."""
        front = {"name": self.name, "license": self.license, "library_name": "cadenza", "pipeline_tag": "text-to-audio"}
        head = yaml.safe_dump({**front, "summary": self.summary}, sort_keys=False, allow_unicode=True)
        return f"---\n{head}---\n\n# {self.name}\n\n{self.summary}\n\n{self.notice}\n"

    @classmethod
    def from_folder(cls, folder: Path) -> "ModelCard":
        """Read the card in a folder; without one, return a card of unknown licence named after the folder."""
        path = folder / CARD_FILE
        if not path.exists():
            return cls(name=folder.name)
        _, head, text = [*path.read_text().split("---\n", 2), "", ""][:3]
        try:
            front = yaml.safe_load(head) or {}
            if not isinstance(front, dict):
                raise yaml.YAMLError("not a mapping")
        except yaml.YAMLError as error:
            raise CheckpointError(f"{path}: the front matter is not YAML ({error}); fix or remove the file") from None
        fields = {name: str(front[name]) for name in ("name", "license", "summary") if name in front}
        body = text.strip().removeprefix(f"# {fields.get('name', '')}").strip().removeprefix(fields.get("summary", ""))
        return cls(**fields, notice=body.strip())


@dataclass(frozen=True)
class SavedSystem:
    """Contents of a system's folder."""

    spec: SystemSpec
    card: ModelCard
    weights: dict[str, Tensor]


@dataclass(frozen=True)
class ModelFolder:
    """Folder of a model whose weights are not loaded; `layout` is the library that wrote it."""

    folder: Path
    layout: str
    spec: SystemSpec
    card: ModelCard
    load: Callable[[], SavedSystem]  # raises CheckpointError unless the weights are finite and match the spec

    @classmethod
    def open(cls, folder: Path) -> "ModelFolder":
        """Open the folder of a saved system; raise SpecError or CheckpointError if its spec or card is not readable.

        Paths that its conditioners keep in the folder are resolved.
        """
        if not (folder / SPEC_FILE).exists():
            raise CheckpointError(f"{folder} has no {SPEC_FILE}; use the folder that `save` or training wrote")
        data = read_data(folder / SPEC_FILE)
        spec = SystemSpec.parse(data, source=str(folder / SPEC_FILE))
        resolved = {name: part.resolve_paths(folder) for name, part in spec.conditioners.items()}
        spec, card = spec.model_copy(update={"conditioners": resolved}), ModelCard.from_folder(folder)
        rename = migrate_weight_name if data.get("format", 1) == 1 else str
        return cls(folder, "Cadenza", spec, card, lambda: SavedSystem(spec, card, _read_weights(folder, rename)))


def save_system(
    system: SavedSystem, folder: Path, save_assets: Callable[[Path], Mapping[str, ConditionerSpec]], dtype: torch.dtype | None
) -> None:
    """Write the whole folder or nothing; replace an earlier system there, refuse to replace anything else.

    `save_assets` writes what conditioners need in addition to their weights, and returns the specs to save.
    """
    if folder.exists() and not (folder / SPEC_FILE).exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise CheckpointError(f"{folder} exists and is not a saved system; choose an empty or a new folder")
    with write_folder(folder) as new:
        spec = system.spec.model_copy(update={"conditioners": dict(save_assets(new))})
        (new / SPEC_FILE).write_text(spec.to_json())
        (new / CARD_FILE).write_text(system.card.to_markdown())
        dtypes = _stored_dtypes(system.weights, dtype)
        total = sum(x.numel() * dtypes[name].itemsize for name, x in system.weights.items())
        max_bytes = SHARD_BYTES if total < LARGE_SHARD_BYTES else LARGE_SHARD_BYTES
        save_shards(system.weights, new, max_bytes=max_bytes, dtypes=dtypes)


@contextmanager
def write_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that replaces `folder` if the block succeeds; raise CheckpointError if that fails."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
            new, old = Path(temporary) / folder.name, Path(f"{temporary}-old")  # the old folder outlives an error
            new.mkdir()
            yield new
            if folder.exists():
                os.replace(folder, old)
            os.replace(new, folder)
            if old.exists():
                shutil.rmtree(old)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{folder}: cannot save the system: {error}; free space or choose another folder") from None


def _read_weights(folder: Path, rename: Callable[[str], str]) -> dict[str, Tensor]:
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise CheckpointError(f"{folder} has no weights (model.safetensors); copy the whole folder again")
    if match := re.fullmatch(r"model-\d+-of-(\d+)\.safetensors", files[0].name):
        if len(files) != int(match[1]):
            raise CheckpointError(f"{folder} has {len(files)} of {int(match[1])} weight files; copy the missing ones")
    weights = {rename(name): tensor.load() for file in files for name, tensor in open_safetensors(file).items()}
    check_finite(weights, source=str(folder))
    return weights


def _stored_dtypes(weights: Mapping[str, Tensor], dtype: torch.dtype | None) -> dict[str, torch.dtype]:
    """Return the dtype to store each weight in; those of quantised layers keep theirs."""
    quantized = {name.removesuffix("packed") for name in weights if name.endswith(".packed")}
    cast = {name for name, x in weights.items() if x.is_floating_point() and f"{name.rpartition('.')[0]}." not in quantized}
    return {name: dtype if dtype is not None and name in cast else x.dtype for name, x in weights.items()}
