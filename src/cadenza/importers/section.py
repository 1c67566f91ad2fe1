"""Section: one mapping of a foreign config, of which every key is used, known to be without effect, or refused by name."""

from collections.abc import Iterable, Mapping
from typing import Any

from cadenza.core.errors import CheckpointError
from cadenza.core.spec import did_you_mean

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
