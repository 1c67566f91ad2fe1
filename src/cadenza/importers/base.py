"""Maps between our weight names and foreign ones, and the strict reader of foreign configs."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cadenza.core.checkpoint import check_state_dict
from cadenza.core.errors import CheckpointError
from cadenza.core.spec import did_you_mean
from cadenza.system.spec import SystemSpec
from cadenza.system.system import System


@dataclass(frozen=True)
class KeyMap:
    """Map of our weight names to the foreign weights that are concatenated along the first dimension, in equal parts."""

    names: Mapping[str, tuple[str, ...]]

    def shapes(self, ours: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """Return the foreign names and shapes for our weights, which may be on the meta device."""
        shapes = {}
        for name, theirs in self.names.items():
            rows, *rest = ours[name].shape
            assert rows % len(theirs) == 0, f"{name} has {rows} rows, which cannot be split into {len(theirs)} equal parts"
            shapes |= {one: (rows // len(theirs), *rest) for one in theirs}
        return shapes

    def import_weights(self, theirs: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, source: str) -> dict[str, Tensor]:
        """Return our weights as float32 copies; raise CheckpointError unless `theirs` are exactly the parts of `expected`."""
        check_state_dict(theirs, self.shapes(expected), source=source)
        return {name: torch.cat([theirs[one] for one in parts]).float() for name, parts in self.names.items()}

    def export_weights(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the foreign weights for ours, as views."""
        split = {}
        for name, parts in self.names.items():
            split |= dict(zip(parts, ours[name].chunk(len(parts)), strict=True))
        return split


def musicgen_key_map(depth: int, rows: int, *, cross: bool, bias: bool = False) -> KeyMap:
    """Return the map of a MusicGen language model of `rows` codebooks to the names of transformers' decoder."""
    ends = ("weight", "bias") if bias else ("weight",)
    stem = "model.decoder."
    names: dict[str, tuple[str, ...]] = {
        "embedding.weight": tuple(f"{stem}embed_tokens.{k}.weight" for k in range(rows)),
        "head.weight": tuple(f"lm_heads.{k}.weight" for k in range(rows)),
    }
    for i in range(depth):
        ours, theirs = f"transformer.blocks.{i}.", f"{stem}layers.{i}."
        for end in ends:
            names[f"{ours}attention.qkv.{end}"] = tuple(f"{theirs}self_attn.{x}_proj.{end}" for x in "qkv")
            names[f"{ours}attention.out.{end}"] = (f"{theirs}self_attn.out_proj.{end}",)
            names[f"{ours}up.{end}"] = (f"{theirs}fc1.{end}",)
            names[f"{ours}down.{end}"] = (f"{theirs}fc2.{end}",)
            if cross:
                names[f"{ours}cross.q.{end}"] = (f"{theirs}encoder_attn.q_proj.{end}",)
                names[f"{ours}cross.kv.{end}"] = tuple(f"{theirs}encoder_attn.{x}_proj.{end}" for x in "kv")
                names[f"{ours}cross.out.{end}"] = (f"{theirs}encoder_attn.out_proj.{end}",)
        norms = {"norm1": "self_attn_layer_norm", "norm2": "final_layer_norm"}
        norms |= {"norm_cross": "encoder_attn_layer_norm"} if cross else {}
        names |= {f"{ours}{a}.{end}": (f"{theirs}{b}.{end}",) for a, b in norms.items() for end in ("weight", "bias")}
    names |= {f"transformer.norm.{end}": (f"{stem}layer_norm.{end}",) for end in ("weight", "bias")}
    return KeyMap(names)


def expected_state_dict(spec: SystemSpec) -> dict[str, Tensor]:
    """Return the weights of a system on the meta device."""
    with torch.device("meta"):
        return System(spec).state_dict()


_MISSING = object()


class ConfigReader:
    """Strict reader of a foreign config: every key must be read or ignored; `raise_errors` reports all mistakes at once."""

    def __init__(self, data: Any, *, source: str, mistakes: list[str] | None = None) -> None:
        self.source = source
        self.mistakes = [] if mistakes is None else mistakes
        if not isinstance(data, Mapping):
            self.mistakes.append(f"{source}: a mapping of keys is needed, got {data!r}")
            data = {}
        self.data = {str(key): value for key, value in data.items()}
        self.seen: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self.data

    def get(self, key: str, kind: type | tuple[type, ...], default: Any = _MISSING) -> Any:
        """Return the value of a key, of type `kind`; without a default it is required."""
        self.seen.add(key)
        value = self.data.get(key, default)
        if value is _MISSING:
            self.mistakes.append(f"{self.source}.{key}: is missing{did_you_mean_suffix(key, self.data)}")
            return _blank(kind)
        if value is default:
            return value
        kinds = kind if isinstance(kind, tuple) else (kind,)
        wider = {float: (int, float)}.get(kinds[0], kinds)
        if not isinstance(value, wider) or (isinstance(value, bool) and bool not in kinds):
            self.mistakes.append(f"{self.source}.{key}: must be {' or '.join(k.__name__ for k in kinds)}, got {value!r}")
            return _blank(kind)
        return value

    def require_value(self, key: str, *allowed: Any, why: str = "is not supported") -> None:
        """Note a mistake unless the value of a key is one of `allowed`; a missing key has the first of them."""
        self.seen.add(key)
        value = self.data.get(key, allowed[0])
        if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in allowed):
            self.mistakes.append(f"{self.source}.{key}: {value!r} {why}; only {' or '.join(map(repr, allowed))} can be loaded")

    def subsection(self, key: str, default: Any = _MISSING) -> "ConfigReader":
        """Return the section under a key; mistakes are shared."""
        self.seen.add(key)
        value = self.data.get(key, default)
        if value is _MISSING:
            self.mistakes.append(f"{self.source}.{key}: is missing{did_you_mean_suffix(key, self.data)}")
            value = {}
        return ConfigReader(value, source=f"{self.source}.{key}", mistakes=self.mistakes)

    def unsupported(self, key: str, message: str) -> None:
        """Note a mistake: the key is not supported."""
        self.seen.add(key)
        self.mistakes.append(f"{self.source}.{key}: {message}")

    def ignore(self, keys: Iterable[str]) -> None:
        """Mark keys as read that do not change what the model computes."""
        self.seen.update(keys)

    def unread_keys(self) -> list[str]:
        """Return the keys that were not read."""
        return [key for key in self.data if key not in self.seen]

    def reject_unread(self) -> None:
        """Note a mistake for every key that was not read."""
        for key in self.unread_keys():
            self.mistakes.append(f"{self.source}.{key}: {self.data[key]!r} is a setting that this release does not know")

    def raise_errors(self) -> None:
        """Raise CheckpointError with every mistake noted in this section and those that share its list."""
        if self.mistakes:
            count = f"{len(self.mistakes)} setting{'s' if len(self.mistakes) > 1 else ''} cannot be honoured"
            raise CheckpointError("\n  ".join([f"{count}:", *self.mistakes]))


def did_you_mean_suffix(key: str, data: Mapping[str, Any]) -> str:
    """Return the end of an 'is missing' message: a similar key of `data`, or nothing."""
    hint = did_you_mean(key, list(data))
    return f".{hint}" if hint.startswith(" Did") else ""


def _blank(kind: type | tuple[type, ...]) -> Any:
    """Return a placeholder for a refused value, so that the other mistakes are found, too."""
    first = kind[0] if isinstance(kind, tuple) else kind
    return 1 if first in (int, float) else first()
