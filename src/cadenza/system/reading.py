"""Reading: what a text says exactly, such as '80 bpm', is given as a value too."""

import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import field_validator

from cadenza.conditioners.base import Conditioners
from cadenza.core.errors import RequestError
from cadenza.core.spec import Spec


class Reading(Spec):
    """Where the text under the id `of` matches `pattern`, its first group is the value of the id `to`.

    A pattern knows case; write (?i:...) where case does not matter. The last match in a text counts,
    and of several readings the first that finds something.
    """

    of: str
    to: str
    pattern: str

    @field_validator("pattern")
    @classmethod
    def _one_group(cls, value: str) -> str:
        try:
            groups = re.compile(value).groups
        except re.error as error:
            raise ValueError(f"is no regular expression: {error}") from None
        if groups != 1:
            raise ValueError(f"needs one group, around the value, but has {groups}; write (?:...) for the others")
        return value


def read(item: Mapping[str, Any], readings: Iterable[Reading], conditioners: Conditioners) -> dict[str, Any]:
    """The item with what its texts say; a value that it has itself stays, one that its conditioner refuses is left out."""
    found = dict(item)
    for reading in readings:
        text = item.get(reading.of)
        if found.get(reading.to) is not None or not isinstance(text, str):
            continue
        for match in re.findall(reading.pattern, text)[-1:]:
            value = _value(match)
            if _usable(conditioners, reading.to, value):
                found[reading.to] = value
    return found


def _value(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def _usable(conditioners: Conditioners, name: str, value: Any) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said when the value is used
            conditioners[name].prepare([value])  # type: ignore[operator]
    except RequestError:
        return False
    return True
