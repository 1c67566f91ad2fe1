"""Layouts: which of our weights is made of which foreign ones, read in both directions."""

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
    """Our names, each with the foreign weights that it is, one below the other in equal shares."""

    names: Mapping[str, tuple[str, ...]]

    def shapes(self, ours: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
        """The foreign names and shapes for weights of ours, which may be on the meta device."""
        found = {}
        for name, theirs in self.names.items():
            rows, *rest = ours[name].shape
            assert rows % len(theirs) == 0, f"{name} has {rows} rows, which are not {len(theirs)} equal shares"
            found |= {one: (rows // len(theirs), *rest) for one in theirs}
        return found

    def import_weights(self, theirs: Mapping[str, Tensor], wanted: Mapping[str, Tensor], *, source: str) -> dict[str, Tensor]:
        """Our weights in float32, in memory of their own.

        CheckpointError unless the foreign ones are exactly those that `wanted` is made of.
        """
        check_state_dict(theirs, self.shapes(wanted), source=source)
        return {name: torch.cat([theirs[one] for one in parts]).float() for name, parts in self.names.items()}

    def export_weights(self, ours: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The foreign weights for ours."""
        split = {}
        for name, parts in self.names.items():
            split |= dict(zip(parts, ours[name].chunk(len(parts)), strict=True))
        return split


def musicgen_key_map(depth: int, rows: int, *, cross: bool, bias: bool = False) -> KeyMap:
    """A MusicGen language model as transformers names it, from `model.decoder.` and `lm_heads.` on."""
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
    """The names and shapes of the weights that a system has, on the meta device."""
    with torch.device("meta"):
        return System(spec).state_dict()


_MISSING = object()


class ConfigReader:
    """The keys of a foreign config that are still to be accounted for; mistakes are kept until `close` says them all."""

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
        """The value of a key that counts; without a default it must be there."""
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
        """Refuses a key that has a value other than these; a key that is not there has the first of them."""
        self.seen.add(key)
        value = self.data.get(key, allowed[0])
        if not any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in allowed):
            self.mistakes.append(f"{self.source}.{key}: {value!r} {why}; only {' or '.join(map(repr, allowed))} can be loaded")

    def subsection(self, key: str, default: Any = _MISSING) -> "ConfigReader":
        """The section under a key."""
        self.seen.add(key)
        value = self.data.get(key, default)
        if value is _MISSING:
            self.mistakes.append(f"{self.source}.{key}: is missing{did_you_mean_suffix(key, self.data)}")
            value = {}
        return ConfigReader(value, source=f"{self.source}.{key}", mistakes=self.mistakes)

    def unsupported(self, key: str, message: str) -> None:
        """Notes that a key cannot be honoured."""
        self.seen.add(key)
        self.mistakes.append(f"{self.source}.{key}: {message}")

    def ignore(self, keys: Iterable[str]) -> None:
        """Keys that change nothing of what the model computes."""
        self.seen.update(keys)

    def unread_keys(self) -> list[str]:
        """The keys that nothing has asked for."""
        return [key for key in self.data if key not in self.seen]

    def reject_unread(self) -> None:
        """Refuses, by name, every key that nothing has asked for."""
        for key in self.unread_keys():
            self.mistakes.append(f"{self.source}.{key}: {self.data[key]!r} is a setting that this release does not know")

    def raise_errors(self) -> None:
        """Raises CheckpointError with every mistake noted in this section and those within it."""
        if self.mistakes:
            count = f"{len(self.mistakes)} setting{'s' if len(self.mistakes) > 1 else ''} cannot be honoured"
            raise CheckpointError("\n  ".join([f"{count}:", *self.mistakes]))


def did_you_mean_suffix(key: str, data: Mapping[str, Any]) -> str:
    """What to say after 'is missing': the key that was perhaps meant."""
    hint = did_you_mean(key, list(data))
    return f".{hint}" if hint.startswith(" Did") else ""


def _blank(kind: type | tuple[type, ...]) -> Any:
    """Stands in for a value that was refused, so that the other mistakes are found too."""
    first = kind[0] if isinstance(kind, tuple) else kind
    return 1 if first in (int, float) else first()
