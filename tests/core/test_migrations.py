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


@pytest.mark.parametrize("kind", ["t5", "clap", "lut"])
@pytest.mark.parametrize(("old", "new"), [("absent", "null"), ("read", "encode")])
def test_values_of_empty_text_are_migrated(kind: str, old: str, new: str) -> None:
    migrated = migrate_spec({"conditioners": {"prompt": {"type": kind, "empty": old}}})
    assert migrated["conditioners"]["prompt"] == {"type": kind, "empty_text": new}
    present = {"format": FORMAT, "conditioners": {"prompt": {"type": kind, "empty_text": new}}}
    assert migrate_spec(present) == present
