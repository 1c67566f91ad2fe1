"""Foreign: another library's model, understood from its config, its weights not yet read."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from cadenza.system.card import ModelCard
from cadenza.system.spec import SystemSpec
from cadenza.system.store import SavedSystem


@dataclass(frozen=True)
class ForeignModel:
    """What `inspect` shows of a folder (`spec`, `card`, `layout`), and `read`, which gives the system in it."""

    folder: Path
    layout: str  # which library's files these are
    spec: SystemSpec
    card: ModelCard
    load: Callable[[], SavedSystem]  # CheckpointError unless the weights are exactly those of the spec, and finite
