"""A package of AudioCraft: the weights and the YAML config of one model, in one file of torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from cadenza.core.errors import CheckpointError
from cadenza.importers.interpolation import InterpolatedConfig
from cadenza.importers.weights import as_state_dict, load_torch_file

LM, CODEC = "state_dict.bin", "compression_state_dict.bin"
_BOOKKEEPING = {"version", "exported"}


@dataclass(frozen=True)
class AudiocraftPackage:
    """What a file holds; `pretrained` is the name of another model where the file is only a pointer to that."""

    path: Path
    config: InterpolatedConfig
    weights: Mapping[str, Tensor]
    pretrained: str | None = None


def load_package(path: Path) -> AudiocraftPackage:
    """The package in a file; CheckpointError where it is none, and what to do with a training checkpoint."""
    held = load_torch_file(path)
    if not isinstance(held, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(held).__name__}, not a package of AudioCraft; export the model with AudioCraft"
        )
    empty = InterpolatedConfig({}, f"{path}: xp.cfg")
    if isinstance(held.get("pretrained"), str) and "best_state" not in held:
        _nothing_else(held, {"pretrained"}, path)
        return AudiocraftPackage(path, empty, {}, held["pretrained"])
    state, text = held.get("best_state"), held.get("xp.cfg")
    nested = isinstance(state, Mapping) and isinstance(state.get("model"), Mapping)
    if nested or {"optimizer", "history", "fsdp_best_state", "model"} & held.keys():
        raise CheckpointError(f"{path} is a checkpoint of a training run of AudioCraft. {EXPORT}")
    if state is None or text is None:
        missing = "best_state" if state is None else "xp.cfg"
        raise CheckpointError(
            f"{path} has no '{missing}' (it has: {', '.join(map(str, held)) or 'nothing'}), so it is no "
            f"package of AudioCraft. {EXPORT}"
        )
    _nothing_else(held, {"best_state", "xp.cfg"}, path)
    if not isinstance(text, str):
        raise CheckpointError(f"{path}: xp.cfg is a {type(text).__name__}, not the text of a YAML config. {EXPORT}")
    return AudiocraftPackage(
        path, InterpolatedConfig(_yaml(text, path), empty.source), as_state_dict(state, source=f"{path}: best_state")
    )


EXPORT = (
    "Export the model with AudioCraft: `audiocraft.utils.export.export_lm(checkpoint, 'state_dict.bin')`, or `export_encodec`"
)


def _yaml(text: str, path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise CheckpointError(f"{path}: xp.cfg is not YAML ({error}); export the model again") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: xp.cfg is not a mapping; export the model again")
    return config


def _nothing_else(held: Mapping[str, Any], used: set[str], path: Path) -> None:
    if unknown := [str(key) for key in held if key not in used | _BOOKKEEPING]:
        raise CheckpointError(f"{path}: holds '{unknown[0]}', which a package of AudioCraft does not; export the model again")
