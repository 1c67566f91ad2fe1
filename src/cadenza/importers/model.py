"""Foreign: another library's model, understood from its config, its weights not yet read."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cadenza.system.card import Card
from cadenza.system.spec import SystemSpec
from cadenza.system.store import Stored


@dataclass(frozen=True)
class Foreign:
    """What `inspect` shows of a folder (`spec`, `card`, `layout`), and `read`, which gives the system in it."""

    folder: Path
    layout: str  # which library's files these are
    spec: SystemSpec
    card: Card
    read: Callable[[], Stored]  # CheckpointError unless the weights are exactly those of the spec, and finite
