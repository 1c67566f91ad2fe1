"""A tiny system with random weights, for tests of what is around a model."""

from typing import Any

import torch

from cadenza.core.types import Codes
from cadenza.system.spec import SystemSpec
from cadenza.system.store import ModelCard
from cadenza.system.system import System

TINY: dict[str, Any] = {
    "codec": {"type": "encodec", "sample_rate": 8000, "strides": [4, 4], "codebooks": 2, "bins": 16, "filters": 4},
    "conditioners": {
        "prompt": {"type": "text", "output_dim": 16, "dim": 16, "depth": 1, "heads": 2, "vocabulary": 300},
        "tempo": {"type": "number", "output_dim": 16, "min": 40, "max": 200},
        "key": {"type": "category", "output_dim": 16, "values": ["C major", "A minor"]},
    },
    "prompt_patterns": [{"of": "prompt", "to": "tempo", "pattern": r"(\d+) bpm"}],
    "fusion": {"cross": ["prompt", "tempo"], "prepend": ["key"]},
    "generator": {"type": "codec_lm", "width": 16, "depth": 2, "heads": 2, "max_frames": 1000, "end_of_sequence": False},
    "defaults": {"seconds": 0.5, "guidance": 3.0, "sampling": {"top_k": 0}},
}


def tiny_system(seed: int = 0, *, max_frames: int = 1000, **defaults: Any) -> System:
    """A system whose conditions and codes matter, though it was never trained."""
    torch.manual_seed(seed)
    changed = {"generator": {**TINY["generator"], "max_frames": max_frames}, "defaults": {**TINY["defaults"], **defaults}}
    spec = SystemSpec.parse({**TINY, **changed})
    system = System(spec, ModelCard(name="tiny", license="MIT", summary="For tests.", notice="Random weights."))
    for parameter in system.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return system.eval().requires_grad_(False)


def lively(system: System, peak: float = 0.5) -> System:
    """The same with a codec whose audio changes from sample to sample, of about this peak."""
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in system.codec.decoder.named_parameters():  # type: ignore[union-attr]
            parameter.copy_(1.5 if name.endswith("original0") else torch.randn(parameter.shape, generator=rng))
        wave = system.codec.decode(
            Codes(
                torch.randint(
                    system.codec.frame_format.cardinality, (1, system.codec.frame_format.channels, 100), generator=rng
                )
            )
        ).wave
        last = system.codec.decoder.layers[-1].conv  # type: ignore[union-attr]
        for parameter in (last.bias, last.parametrizations.weight.original0):
            parameter.mul_(peak / wave.abs().max())
    return system
