"""Prompt patterns: values that a text states, such as '80 bpm', are passed to their own conditioner as well."""

import re
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from pydantic import field_validator

from cadenza.conditioners.base import ConditionerSet
from cadenza.core.errors import RequestError
from cadenza.core.spec import Spec
from cadenza.core.timeline import Timeline


class PromptPattern(Spec):
    """Regular expression for the text with the id `of`, whose group is a value with the id `to`.

    Case matters; write (?i:...) to ignore it. The last match in a text counts, and the first of several patterns with a
    usable value.
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
            raise ValueError(f"is not a regular expression: {error}") from None
        if groups != 1:
            raise ValueError(f"needs one group, around the value, but has {groups}; write (?:...) for the others")
        return value

    def extract(self, text: Any, conditioners: ConditionerSet) -> str | float | None:
        """Return the value in a text; None without a match, or if the conditioner `to` cannot use it."""
        matches = re.findall(self.pattern, text) if isinstance(text, str) else []
        if not matches:
            return None
        value: str | float = matches[-1]
        with suppress(ValueError):
            value = float(value)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # they are shown when the value is used
                conditioners[self.to].prepare([value])
        except RequestError:
            return None
        return value


def extract_prompt_values(
    item: Mapping[str, Any], patterns: Iterable[PromptPattern], conditioners: ConditionerSet
) -> dict[str, Any]:
    """Return the item with the values that its texts state added; values that it has itself stay."""
    values = dict(item)
    for pattern in patterns:
        if values.get(pattern.to) is not None:
            continue
        text = item.get(pattern.of)
        timeline = None if isinstance(text, str) else Timeline.parse(text)
        if timeline is None:
            value = pattern.extract(text, conditioners)
        else:
            spans = tuple(span._replace(value=pattern.extract(span.value, conditioners)) for span in timeline.spans)
            value = Timeline(spans, timeline.fade) if any(span.value is not None for span in spans) else None
        if value is not None:
            values[pattern.to] = value
    return values
