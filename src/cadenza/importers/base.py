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

_MISSING = object()
_ANY = (dict, object, bool)  # kinds of `ConfigReader.get`
_WEIGHT_NORM = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}
CODEBOOK_NAMES = {"embed": "embed", "usage": "cluster_size", "total": "embed_avg"}  # ours -> AudioCraft's and transformers'


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
            shapes |= dict.fromkeys(theirs, (rows // len(theirs), *rest))
        return shapes

    def import_weights(self, theirs: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, source: str) -> dict[str, Tensor]:
        """Return our weights as float32 copies; raise CheckpointError unless `theirs` are exactly the parts of `expected`."""
        check_state_dict(theirs, self.shapes(expected), source=source)
        return {name: torch.cat([theirs[part] for part in parts]).float() for name, parts in self.names.items()}

    def import_codebooks(
        self, theirs: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, source: str
    ) -> dict[str, Tensor]:
        """Return our weights with EMA codebooks: counts become shares; raise CheckpointError if one was never trained."""
        books = [name.removesuffix("embed") for name in expected if name.endswith(".embed")]
        flags = [self.names[f"{book}embed"][0].removesuffix("embed") + "inited" for book in books]
        check_state_dict(theirs, self.shapes(expected) | dict.fromkeys(flags, (1,)), source=source)
        ours = self.import_weights({name: x for name, x in theirs.items() if name not in flags}, expected, source=source)
        for k, (book, flag) in enumerate(zip(books, flags, strict=True)):
            if not bool(theirs[flag]):
                raise CheckpointError(f"{source}: codebook {k} was never trained (inited is 0); take a trained checkpoint")
            embed, usage, total = (f"{book}{end}" for end in ("embed", "usage", "total"))
            if (count := ours[usage].sum()) > 0:
                ours[usage], ours[total] = ours[usage] / count, ours[total] / count
            else:  # the program that wrote it stores no averages
                bins = len(ours[embed])
                ours[usage], ours[total] = torch.full_like(ours[usage], 1 / bins), ours[embed] / bins
        return ours

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


def modern_weight_norm_name(name: str) -> str:
    """Return the name of a weight with torch's present names of weight normalization."""
    stem, dot, end = name.rpartition(".")
    return f"{stem}{dot}{_WEIGHT_NORM.get(end, end)}"


def merge_tied_embedding(state_dict: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Return the weights of a T5 with its token embedding as `shared.weight`; transformers may store it under two names."""
    state_dict = dict(state_dict)
    tied = state_dict.pop(f"{prefix}encoder.embed_tokens.weight", None)
    return state_dict if tied is None else {f"{prefix}shared.weight": tied, **state_dict}


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
        kinds = kind if isinstance(kind, tuple) else (kind,)
        if value is _MISSING:
            hint = did_you_mean(key, list(self.data))
            self.mistakes.append(f"{self.source}.{key}: is missing{f'.{hint}' if hint.startswith(' Did') else ''}")
        elif value is default:
            return value
        elif isinstance(value, (int, float) if kinds[0] is float else kinds) and (bool in kinds or not isinstance(value, bool)):
            return value
        else:
            self.mistakes.append(f"{self.source}.{key}: must be {' or '.join(k.__name__ for k in kinds)}, got {value!r}")
        return 1 if kinds[0] in (int, float) else kinds[0]()  # a placeholder, so that the other mistakes are found, too

    def require_value(self, key: str, *allowed: Any, why: str = "is not supported") -> Any:
        """Return the value of a key; note a mistake unless it is one of `allowed`. A missing key has the first of them."""
        self.seen.add(key)
        value = self.data.get(key, allowed[0])
        if not any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in allowed):
            self.mistakes.append(f"{self.source}.{key}: {value!r} {why}; only {' or '.join(map(repr, allowed))} can be loaded")
        return value

    def subsection(self, key: str, default: Any = _MISSING) -> "ConfigReader":
        """Return the section under a key; mistakes are shared."""
        return ConfigReader(self.get(key, _ANY, default), source=f"{self.source}.{key}", mistakes=self.mistakes)

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
