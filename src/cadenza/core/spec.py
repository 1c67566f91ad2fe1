"""Specs: frozen descriptions of parts, with a registry by file name.

A family (codecs, conditioners, generators) is a package and a member is one module in it, whose name is the member's `type`:
`{"type": "encodec", ...}` among codecs is `codecs/encodec.py`.
"""

import difflib
import importlib
import json
import pkgutil
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from cadenza.core.errors import SpecError


class Spec(BaseModel):
    """Frozen description of a part; unknown fields are errors, equality is by value."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @classmethod
    def parse(cls, data: Any, *, source: str = "spec") -> Self:
        """Return the spec that `data` describes; raise SpecError with every mistake and its location."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise SpecError(format_validation_error(error, source)) from None

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Load the spec in a YAML or JSON file; raise SpecError with every mistake."""
        return cls.parse(read_data(path), source=str(path))

    @model_validator(mode="wrap")
    @classmethod
    def _suggest_fields(cls, data: Any, handler: Any) -> Any:
        """Name the closest field in the error for an unknown one."""
        try:
            return handler(data)
        except ValidationError as error:
            mistakes: list[Any] = error.errors()
            for mistake in mistakes:
                message = mistake["msg"]
                if mistake["type"] == "extra_forbidden" and len(mistake["loc"]) == 1:
                    message = f"unknown field.{did_you_mean(str(mistake['loc'][0]), list(cls.model_fields))}"
                mistake["type"] = PydanticCustomError(mistake["type"], message)  # type: ignore[arg-type]
            raise ValidationError.from_exception_data(cls.__name__, mistakes) from None

    def to_dict(self) -> dict[str, Any]:
        """Return plain data from which `parse` makes an equal spec."""
        return self.model_dump(mode="json", serialize_as_any=True, by_alias=True)

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), indent=2) + "\n"


def read_data(path: str | Path) -> Any:
    """Return the plain data in a YAML or JSON file; raise SpecError if it is not readable."""
    try:
        return yaml.safe_load(Path(path).read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SpecError(f"{path}: not readable as YAML or JSON: {error}") from None


class RegisteredSpec(Spec):
    """Spec of a member of a family; its `type` names the module that defines it."""

    family: ClassVar[str] = ""  # package of the members; set once, by the base class of the family
    registry: ClassVar[dict[str, Any]] = {}

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        if "family" in cls.__dict__:
            cls.registry = {}
        elif "type" in cls.model_fields:
            name = cls.model_fields["type"].default
            other = cls.registry.setdefault(name, cls)
            if other.__module__ != cls.__module__:
                raise SpecError(f"{cls.family}: '{name}' is defined twice, in {other.__module__} and {cls.__module__}")

    @classmethod
    def registered_names(cls) -> list[str]:
        """Return the names of all members, without importing them."""
        package = importlib.import_module(cls.family)
        modules = {name for _, name, _ in pkgutil.iter_modules(package.__path__) if not name.startswith("base")}
        plugins = {point.name for point in entry_points(group=cls.family)}
        return sorted(modules | plugins | set(cls.registry))

    @classmethod
    def lookup(cls, name: str) -> type[Self]:
        """Return the spec class of a member; raise ValueError, with similar names, if it does not exist."""
        if name not in cls.registry:
            for point in entry_points(group=cls.family, name=name):
                point.load()
        if name not in cls.registry and name in cls.registered_names():
            importlib.import_module(f"{cls.family}.{name}")
        if name not in cls.registry:
            kind = cls.family.rpartition(".")[2].removesuffix("s")
            raise ValueError(f"'{name}' is not a {kind}.{did_you_mean(name, cls.registered_names())}")
        return cls.registry[name]

    @model_validator(mode="wrap")
    @classmethod
    def _dispatch(cls, data: Any, handler: Any) -> Any:
        if "family" not in cls.__dict__ or not isinstance(data, dict):
            return handler(data)
        if "type" not in data:
            raise ValueError(f"'type' is missing.{did_you_mean('', cls.registered_names())}")
        return cls.lookup(str(data["type"])).model_validate(data)


def did_you_mean(name: str, names: list[str]) -> str:
    """Return the end of an error message: the closest known name, or all of them."""
    close = difflib.get_close_matches(name, names, n=1)
    return f" Did you mean '{close[0]}'?" if close else f" Choose from: {', '.join(names)}."


def format_validation_error(error: ValidationError, source: str) -> str:
    """Return the error message: every mistake with its location and the fix."""
    lines = [f"{source}: {error.error_count()} mistake{'s' if error.error_count() > 1 else ''}"]
    for mistake in error.errors():
        message = mistake["msg"].removeprefix("Value error, ")
        if mistake["type"] not in {"value_error", "missing", "extra_forbidden"}:
            message += f", got {mistake['input']!r}"
        lines.append(f"  {'.'.join(map(str, mistake['loc'])) or '(root)'}: {message}")
    return "\n".join(lines)
