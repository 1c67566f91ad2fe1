"""`${a.b}` in a YAML config: another key's value, looked up only where it is asked for (as OmegaConf has it)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cadenza.core.errors import CheckpointError

_REFERENCE = re.compile(r"\$\{([^${}]*)\}")
_DEPTH = 32  # references to references


@dataclass(frozen=True)
class InterpolatedConfig:
    """A config whose values may refer to each other.

    `${a.b}` counts from the root, `${.b}` and `${..b}` from where it stands. A reference that is the whole of a text
    gives the value itself, one within a text its words. Functions such as `${oc.env:USER}` are never called.
    """

    root: Mapping[str, Any]
    source: str

    def __contains__(self, key: str) -> bool:
        return key in self.root

    def __getitem__(self, key: str) -> Any:
        """The value of a key of the root, with the references in it replaced; CheckpointError where one cannot be."""
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
                raise CheckpointError(f"{self._at(path)}: refers to '${{{reference}}}', which is not there") from None
        return self._resolved(node, names, depth - 1)

    def _at(self, path: tuple[str, ...]) -> str:
        return ".".join([self.source, *path])
