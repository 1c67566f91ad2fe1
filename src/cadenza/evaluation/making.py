"""Making the clips of a setting in batches with fixed seeds; what is there already is not made again."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from cadenza.dsp import files
from cadenza.dsp.audio import Audio, load_audio
from cadenza.evaluation.settings import ControlSetting
from cadenza.system.system import System

BATCH = 8
SEED_STEP = 10_000  # clip i of seed s is made with seed s * 10,000 + i in every setting


@dataclass(frozen=True)
class ClipGenerator:
    """A system with a folder for what it makes."""

    system: System
    folder: Path
    guidance: float | None = None

    def generate_cached(self, setting: ControlSetting, seed: int, *, progress: Callable[[int, int], None]) -> list[Audio]:
        """The clips of a setting, each a batch of one."""
        folder = self._folder(setting)
        maker = self if setting.reads else self._unread()
        paths = [folder / f"{i:04d}-{seed}.wav" for i in range(len(setting.items))]
        missing = [i for i, path in enumerate(paths) if not path.exists()]
        for start in range(0, len(missing), BATCH):
            batch = missing[start : start + BATCH]
            made = maker.generate(
                [setting.items[i] for i in batch], [setting.seconds[i] for i in batch], [seed * SEED_STEP + i for i in batch]
            )
            for i, clip in zip(batch, made, strict=True):
                files.write(paths[i], clip.wave[0].float().cpu().numpy().T, clip.sample_rate, subtype="FLOAT")
            progress(len(paths) - len(missing) + start + len(batch), len(paths))
        return [load_audio(path) for path in paths]

    def generate(self, items: list[dict[str, Any]], seconds: Sequence[float], seeds: Sequence[int]) -> Audio:
        """Clips of these items, together."""
        return self.system.generate(items, seconds=list(seconds), seed=list(seeds), guidance=self.guidance)

    def _unread(self) -> "ClipGenerator":
        """The same system, but for values in texts, which it does not read."""
        system = copy(self.system)
        system.spec = self.system.spec.model_copy(update={"reads": ()})
        return replace(self, system=system)

    def realtime_factor(self, item: dict[str, Any], seconds: float, *, clips: int) -> float:
        """Seconds of audio made per second of time, for `clips` at once, after one that does not count."""
        self.generate([item], [min(1.0, seconds)], [0])
        began = time.perf_counter()
        made = self.generate([item] * clips, [seconds] * clips, list(range(clips)))
        return int(made.lengths.sum()) / made.sample_rate / (time.perf_counter() - began)

    def _folder(self, setting: ControlSetting) -> Path:
        """A folder for exactly this system, guidance, items and lengths."""
        asked = json.dumps([setting.items, setting.seconds, setting.reads, self.guidance], sort_keys=True, default=str)
        name = hashlib.sha256((asked + system_hash(self.system)).encode()).hexdigest()[:12]
        folder = self.folder / f"{setting.name}-{name}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def system_hash(system: System) -> str:
    """A hash of a system's spec and weights."""
    digest = hashlib.sha256(system.spec.to_json().encode())
    for name, value in sorted(system.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
