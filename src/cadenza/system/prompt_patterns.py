"""Reading: what a text says exactly, such as '80 bpm', is given as a value too."""

import re
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

from pydantic import field_validator

from cadenza.conditioners.base import ConditionerSet
from cadenza.core.errors import RequestError
from cadenza.core.spec import Spec
from cadenza.core.timeline import Timeline


class PromptPattern(Spec):
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


def extract_prompt_values(
    item: Mapping[str, Any], readings: Iterable[PromptPattern], conditioners: ConditionerSet
) -> dict[str, Any]:
    """The item with what its texts say; a value that it has itself stays, one that its conditioner refuses is left out."""
    found = dict(item)
    for reading in readings:
        given = item.get(reading.of)
        if found.get(reading.to) is not None:
            continue
        line = None if isinstance(given, str) else Timeline.parse(given)
        if line is None:
            value = _said(reading, given, conditioners)
        else:
            spans = tuple(span._replace(value=_said(reading, span.value, conditioners)) for span in line.spans)
            value = Timeline(spans, line.fade) if any(span.value is not None for span in spans) else None
        if value is not None:
            found[reading.to] = value
    return found


def _said(reading: PromptPattern, text: Any, conditioners: ConditionerSet) -> str | float | None:
    """What a text says last, if it is one and that can be used."""
    for match in re.findall(reading.pattern, text)[-1:] if isinstance(text, str) else ():
        value = _value(match)
        if _usable(conditioners, reading.to, value):
            return value
    return None


def _value(text: str) -> str | float:
    try:
        return float(text)
    except ValueError:
        return text


def _usable(conditioners: ConditionerSet, name: str, value: Any) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said when the value is used
            conditioners[name].prepare([value])  # type: ignore[operator]
    except RequestError:
        return False
    return True
