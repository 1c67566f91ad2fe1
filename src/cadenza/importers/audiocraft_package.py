"""Packages of AudioCraft: a torch file of weights and a YAML config with OmegaConf references such as `${a.b}`."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from cadenza.core.checkpoint import as_state_dict, load_torch_file
from cadenza.core.errors import CheckpointError

LM, CODEC = PACKAGE_FILES = ("state_dict.bin", "compression_state_dict.bin")
EXPORT = (
    "Export the model with AudioCraft: `audiocraft.utils.export.export_lm(checkpoint, 'state_dict.bin')`, or `export_encodec`"
)
_BOOKKEEPING = {"version", "exported"}
_REFERENCE = re.compile(r"\$\{([^${}]*)\}")
_DEPTH = 32  # references to references


@dataclass(frozen=True)
class InterpolatedConfig:
    """Config whose values may refer to each other; references are resolved when a value is read.

    `${a.b}` is absolute, `${.b}` and `${..b}` are relative. A reference that is the whole text is replaced by the value,
    one within a text by its string. Functions such as `${oc.env:USER}` are never called.
    """

    root: Mapping[str, Any]
    source: str

    def __contains__(self, key: str) -> bool:
        return key in self.root

    def __getitem__(self, key: str) -> Any:
        """Return the value of a key of the root with its references resolved; raise CheckpointError if one cannot be."""
        return self._resolved(self.root[key], (key,), _DEPTH)

    def get(self, key: str, default: Any = None) -> Any:
        return self[key] if key in self.root else default

    def _resolved(self, value: Any, path: tuple[str, ...], depth: int) -> Any:
        if not depth:
            raise CheckpointError(f"{self._at(path)}: refers to itself")
        if isinstance(value, Mapping):
            return {key: self._resolved(inner, (*path, str(key)), depth) for key, inner in value.items()}
        if isinstance(value, list):
            return [self._resolved(inner, (*path, str(i)), depth) for i, inner in enumerate(value)]
        return self._text(value, path, depth) if isinstance(value, str) else value

    def _text(self, value: str, path: tuple[str, ...], depth: int) -> Any:
        if value == "???":
            raise CheckpointError(f"{self._at(path)}: has no value ('???'); write one into the config")
        if whole := _REFERENCE.fullmatch(value):
            return self._lookup(whole[1].strip(), path, depth)
        filled = _REFERENCE.sub(lambda match: str(self._lookup(match[1].strip(), path, depth)), value)
        return filled if filled == value else self._resolved(filled, path, depth - 1)

    def _lookup(self, reference: str, path: tuple[str, ...], depth: int) -> Any:
        if ":" in reference:
            raise CheckpointError(f"{self._at(path)}: calls '${{{reference}}}', which is never run; write its value instead")
        dots = len(reference) - len(reference.lstrip("."))
        names = (*(path[:-dots] if dots else ()), *re.findall(r"[^.\[\]]+", reference))
        node: Any = self.root
        for name in names:
            try:
                node = node[int(name)] if isinstance(node, list) else node[name]
            except (KeyError, IndexError, TypeError, ValueError):
                raise CheckpointError(f"{self._at(path)}: refers to '${{{reference}}}', which does not exist") from None
        return self._resolved(node, names, depth - 1)

    def _at(self, path: tuple[str, ...]) -> str:
        return ".".join([self.source, *path])


@dataclass(frozen=True)
class AudiocraftPackage:
    """Content of a file; `pretrained` is the name of another model if the file only refers to it."""

    path: Path
    config: InterpolatedConfig
    weights: Mapping[str, Tensor]
    pretrained: str | None = None


def load_package(path: Path) -> AudiocraftPackage:
    """Load the package in a file; raise CheckpointError, with the fix, for other files and training checkpoints."""
    content, source = load_torch_file(path), f"{path}: xp.cfg"
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a package of AudioCraft. {EXPORT}")
    if isinstance(content.get("pretrained"), str) and "best_state" not in content:
        _reject_others(content, {"pretrained"}, path)
        return AudiocraftPackage(path, InterpolatedConfig({}, source), {}, content["pretrained"])
    state, text = content.get("best_state"), content.get("xp.cfg")
    nested = isinstance(state, Mapping) and isinstance(state.get("model"), Mapping)
    if nested or {"optimizer", "history", "fsdp_best_state", "model"} & content.keys():
        raise CheckpointError(f"{path} is a checkpoint of a training run of AudioCraft. {EXPORT}")
    if state is None or text is None:
        missing = "best_state" if state is None else "xp.cfg"
        raise CheckpointError(
            f"{path} has no '{missing}' (it has: {', '.join(map(str, content)) or 'nothing'}), so it is not a "
            f"package of AudioCraft. {EXPORT}"
        )
    _reject_others(content, {"best_state", "xp.cfg"}, path)
    if not isinstance(text, str):
        raise CheckpointError(f"{path}: xp.cfg is a {type(text).__name__}, not the text of a YAML config. {EXPORT}")
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise CheckpointError(f"{path}: xp.cfg is not YAML ({error}); export the model again") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path}: xp.cfg is not a mapping; export the model again")
    return AudiocraftPackage(path, InterpolatedConfig(config, source), as_state_dict(state, source=f"{path}: best_state"))


def _reject_others(content: Mapping[str, Any], used: set[str], path: Path) -> None:
    if unknown := [str(key) for key in content if key not in used | _BOOKKEEPING]:
        raise CheckpointError(f"{path}: holds '{unknown[0]}', which a package of AudioCraft does not; export the model again")
