"""Saved specs of older formats, brought up to the present one; the only leniency in loading."""

from typing import Any

FORMAT = 1


def migrated(data: dict[str, Any]) -> dict[str, Any]:
    """The same system in the present format; raises ValueError for a format of a newer release."""
    written = data.get("format", FORMAT)
    if not isinstance(written, int) or not 1 <= written <= FORMAT:
        raise ValueError(f"format {written!r} is not known to this release, which reads 1 to {FORMAT}; upgrade cadenza")
    return data
