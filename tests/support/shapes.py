"""The type checker of the tests: beartype, except for `Self`, which it can read only on whole classes."""

from collections.abc import Callable
from typing import Any, Self

from beartype import BeartypeConf, beartype

_CHECK = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int is a float


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    hints = getattr(function, "__annotations__", {})
    for name in [name for name, hint in hints.items() if hint is Self]:
        hints[name] = Any
    return _CHECK(function)
