"""Cadenza: controllable audio generation."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from cadenza.apps.api import load as load
    from cadenza.core.types import Codes as Codes
    from cadenza.core.types import Latents as Latents
    from cadenza.dsp.audio import Audio as Audio
    from cadenza.dsp.audio import load_audio as load_audio
    from cadenza.system.request import Request as Request
    from cadenza.system.spec import SystemSpec as SystemSpec
    from cadenza.system.system import System as System
    from cadenza.training.trainer import Trainer as Trainer

_HOME = {
    "load": "cadenza.apps.api",
    "load_audio": "cadenza.dsp.audio",
    "System": "cadenza.system.system",
    "SystemSpec": "cadenza.system.spec",
    "Request": "cadenza.system.request",
    "Trainer": "cadenza.training.trainer",
    "Audio": "cadenza.dsp.audio",
    "Codes": "cadenza.core.types",
    "Latents": "cadenza.core.types",
}
__all__ = ["Audio", "Codes", "Latents", "Request", "System", "SystemSpec", "Trainer", "load", "load_audio"]


def __getattr__(name: str) -> Any:
    name = "load_audio" if name == "read" else name  # the name of 0.1
    if name not in _HOME:
        raise AttributeError(f"module 'cadenza' has no attribute '{name}'")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
