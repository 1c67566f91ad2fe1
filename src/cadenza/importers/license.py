"""Model card of an imported model, with the licence of its weights."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from cadenza.system.store import ModelCard

SPDX = {  # spelling of model hubs -> SPDX id
    **{name.lower(): name for name in ("MIT", "Apache-2.0", "BSD-3-Clause", "GPL-3.0", "AGPL-3.0", "LGPL-3.0")},
    **{name.lower(): name for name in ("CC-BY-4.0", "CC-BY-SA-4.0", "CC-BY-NC-4.0", "CC-BY-NC-SA-4.0", "CC-BY-NC-ND-4.0")},
    **{"cc0-1.0": "CC0-1.0", "unlicense": "Unlicense", "openrail": "OpenRAIL", "wtfpl": "WTFPL"},
}
RELEASED = {  # by model name, from the repositories of Meta
    **dict.fromkeys(("musicgen", "audiogen", "magnet", "audio-magnet", "jasco"), "CC-BY-NC-4.0"),
    **dict.fromkeys(("encodec_24khz", "encodec_48khz"), "MIT"),
    **{"encodec_32khz": "CC-BY-NC-4.0"},
}


def model_card_for(folder: Path, *, name: str | None = None, summary: str) -> ModelCard:
    """Return the card of the weights in a folder, from its README, else from the model's name."""
    front = _front_matter(folder / "README.md")
    model_name = str(name or front.get("name") or folder.name)
    declared = front.get("license")
    if declared == "other" and front.get("license_name"):
        declared = front["license_name"]
    licence = SPDX.get(str(declared).lower(), str(declared)) if declared else _by_name(model_name)
    origin = "as its repository states" if declared else "as this model was released"
    if licence:
        notice = f"Imported from {model_name}; the weights are under {licence}, {origin}."
    else:
        notice = f"Imported from {model_name}, which has no licence: find it out before you publish or sell anything."
    return ModelCard(name=model_name.rpartition("/")[2], license=licence or "unknown", summary=summary, notice=notice)


def _by_name(name: str) -> str | None:
    """Return the licence of a release by its name; the longest match counts."""
    last = name.rpartition("/")[2].lower()
    known = [start for start in RELEASED if last == start or last.startswith(f"{start}-")]
    return RELEASED[max(known, key=len)] if known else None


def _front_matter(path: Path) -> Mapping[str, Any]:
    """Return the YAML front matter of a model card; empty if it is missing or not readable."""
    try:
        text = path.read_text()
        front = yaml.safe_load(text.split("---\n", 2)[1]) if text.startswith("---\n") else {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError, IndexError):
        return {}
    return front if isinstance(front, Mapping) else {}
