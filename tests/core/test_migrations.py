"""Formats of saved specs."""

from typing import Any

import pytest

from cadenza.core.migrations import FORMAT, migrate_spec


def test_the_present_format_is_left_alone() -> None:
    data = {"format": FORMAT, "codec": {"type": "encodec"}}
    assert migrate_spec(data) == data and migrate_spec({"codec": {}}) == {"format": FORMAT, "codec": {}}


@pytest.mark.parametrize("written", [FORMAT + 1, 0, -1, "1", None, 1.5])
def test_other_formats_are_refused(written: Any) -> None:
    with pytest.raises(ValueError, match=f"which reads 1 to {FORMAT}; upgrade"):
        migrate_spec({"format": written})
