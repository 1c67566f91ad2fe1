"""The card of a foreign model: its licence goes wherever its weights go."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from cadenza.system.store import ModelCard

SPDX = {  # as model hubs spell licences -> as the SPDX list does
    **{name.lower(): name for name in ("MIT", "Apache-2.0", "BSD-3-Clause", "GPL-3.0", "AGPL-3.0", "LGPL-3.0")},
    **{name.lower(): name for name in ("CC-BY-4.0", "CC-BY-SA-4.0", "CC-BY-NC-4.0", "CC-BY-NC-SA-4.0", "CC-BY-NC-ND-4.0")},
    **{"cc0-1.0": "CC0-1.0", "unlicense": "Unlicense", "openrail": "OpenRAIL", "wtfpl": "WTFPL"},
}
RELEASED = {  # weights whose licence is known by their name: Meta's, as their repositories say
    **dict.fromkeys(("musicgen", "audiogen", "magnet", "audio-magnet", "jasco"), "CC-BY-NC-4.0"),
    **dict.fromkeys(("encodec_24khz", "encodec_48khz"), "MIT"),
    **{"encodec_32khz": "CC-BY-NC-4.0"},
}


def model_card_for(folder: Path, *, name: str | None = None, summary: str) -> ModelCard:
    """What is known of the weights in a folder: from its own README first, then from the model's name."""
    front = _front_matter(folder / "README.md")
    called = str(name or front.get("name") or folder.name)
    told = front.get("license")
    if told == "other" and front.get("license_name"):
        told = front["license_name"]
    licence = SPDX.get(str(told).lower(), str(told)) if told else _by_name(called)
    where = "as its repository says" if told else "as is known of this model's release" if licence else ""
    if licence:
        notice = f"Imported from {called}; the weights are under {licence}, {where}."
    else:
        notice = f"Imported from {called}, which came without a licence: find it out before you publish or sell anything."
    return ModelCard(name=called.rpartition("/")[2], license=licence or "unknown", summary=summary, notice=notice)


def _by_name(name: str) -> str | None:
    """The licence of a release that is known by its name; a longer name counts before a shorter."""
    last = name.rpartition("/")[2].lower()
    known = [start for start in RELEASED if last == start or last.startswith(f"{start}-")]
    return RELEASED[max(known, key=len)] if known else None


def _front_matter(path: Path) -> Mapping[str, Any]:
    """The YAML head of a model card; nothing where there is none that can be read."""
    try:
        text = path.read_text()
        front = yaml.safe_load(text.split("---\n", 2)[1]) if text.startswith("---\n") else {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, IndexError):
        return {}
    return front if isinstance(front, Mapping) else {}
