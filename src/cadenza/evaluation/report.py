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
from torch import Tensor

from cadenza.core.errors import RequestError
from cadenza.data.manifest import Manifest
from cadenza.data.sources import load_manifest
from cadenza.dsp import audio_io
from cadenza.dsp.audio import Audio, load_audio
from cadenza.evaluation.adherence import AttributeResult, Interval, control_effects, score_settings
from cadenza.evaluation.audio_health import AudioHealth, audio_health
from cadenza.evaluation.estimators import AttributeEstimator, Estimate, load_estimators
from cadenza.evaluation.memorization import MemorizationReport, audio_fingerprints, memorization_rate
from cadenza.evaluation.report_files import SHOWN, save_report
from cadenza.evaluation.settings import TEXT, ControlSetting, EvaluationSet, Reference, sample_references, settings
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
                audio_io.write(paths[i], clip.wave[0].float().cpu().numpy().T, clip.sample_rate, subtype="FLOAT")
            progress(len(paths) - len(missing) + start + len(batch), len(paths))
        return [load_audio(path) for path in paths]

    def generate(self, items: list[dict[str, Any]], seconds: Sequence[float], seeds: Sequence[int]) -> Audio:
        """Clips of these items, together."""
        return self.system.generate(items, seconds=list(seconds), seed=list(seeds), guidance=self.guidance)

    def _unread(self) -> "ClipGenerator":
        """The same system, but for values in texts, which it does not read."""
        system = copy(self.system)
        system.spec = self.system.spec.model_copy(update={"prompt_patterns": ()})
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


Progress = Callable[[str], None]


@dataclass(frozen=True)
class EvaluationReport:
    """Everything that was measured of a system."""

    system: str
    estimators: str  # sha256 of the weights that listened
    clips: int
    seeds: tuple[int, ...]
    guidance: float
    scores: dict[str, dict[str, AttributeResult]]  # by setting, then by attribute
    changes: dict[str, dict[str, Interval]]  # by the control that is added to all others, then by attribute, as parts of A
    off: dict[str, float]  # by setting, the seconds by which clips end early or late
    soundness: dict[str, AudioHealth]  # by setting, and of the references
    copies: MemorizationReport | None
    speed: dict[str, float]  # seconds of audio per second, alone and in a batch


@dataclass(frozen=True)
class EvaluationScope:
    """How much is asked: held-out clips in each setting, with each seed, in the settings of these names or in all."""

    clips: int = 200
    seeds: tuple[int, ...] = (0,)
    settings: tuple[str, ...] = ()


@dataclass(frozen=True)
class SettingResult:
    """What is kept of the clips of a setting, by seed and clip, once they have been heard."""

    estimates: list[list[Estimate]]
    soundness: AudioHealth
    prints: list[Tensor]  # for the search for copies
    shown: list[Audio]


def evaluate(
    system: System,
    held_out: str | Path | Manifest,
    *,
    out: str | Path,
    extent: EvaluationScope = EvaluationScope(),  # noqa: B008
    training: str | Path | Manifest | None = None,
    guidance: float | None = None,
    progress: Progress = lambda line: None,
) -> EvaluationReport:
    """Generates from the requests of held-out clips, listens, scores; writes JSON, Markdown and plots into `out`.

    `training` is what the system was trained on, for the copy rate. Interrupted, it goes on where it was.
    """
    if system.generator is None:
        raise RequestError("this system is a codec alone: measure it with evaluate_codec")
    out, listen = Path(out), load_estimators()
    refs = sample_references(_manifest(held_out), extent.clips)
    longest = system.spec.generator.max_frames / system.codec.frame_format.frame_rate if system.spec.generator else 0.0
    asking = EvaluationSet(refs, listen.families, list(system.conditioners), longest, bool(system.spec.prompt_patterns))
    asked = settings(asking, extent.settings)
    maker, trained_on = ClipGenerator(system, out / "clips", guidance), None if training is None else _manifest(training)
    progress("reference renders through the codec")
    through = [_through(system, ref) for ref in refs]
    ceiling = [_heard(listen, clip) for clip in through]
    results = {}
    for setting in asked:
        made = [_made(maker, setting, seed, progress) for seed in extent.seeds]
        results[setting.name] = _listened(listen, made, prints=training is not None)
        progress(f"{setting.name}: heard")
    heard = {name: result.estimates for name, result in results.items()}
    captions = [wish for _, wish in asking.captions] if TEXT in asking.measured else []
    found = score_settings(asked, heard, ceiling=ceiling, captions=captions)
    report = EvaluationReport(
        system=system.card.name,
        estimators=listen.sha256,
        clips=len(refs),
        seeds=extent.seeds,
        guidance=system.spec.defaults.guidance if guidance is None else guidance,
        scores=found,
        changes=control_effects(asked, heard, found),
        off={s.name: _off(s, heard[s.name]) for s in asked},
        soundness={
            **{name: result.soundness for name, result in results.items()},
            "reference": audio_health([load_audio(r.clip.audio) for r in refs]),
        },
        copies=None if trained_on is None else _copies([r.prints for r in results.values()], refs, trained_on, progress),
        speed=_speed(maker, asked),
    )
    save_report(report, out, made={name: r.shown for name, r in results.items()}, through=through[:SHOWN], asked=asked)
    progress(f"report in {out}")
    return report


def _listened(listen: AttributeEstimator, made: Sequence[Sequence[Audio]], *, prints: bool) -> SettingResult:
    clips = [clip for batch in made for clip in batch]
    return SettingResult(
        [[_heard(listen, clip) for clip in batch] for batch in made],
        audio_health(clips),
        [one for clip in clips for one in audio_fingerprints(clip)] if prints else [],
        list(made[0][:SHOWN]),
    )


def _made(maker: ClipGenerator, setting: ControlSetting, seed: int, progress: Progress) -> list[Audio]:
    return maker.generate_cached(
        setting, seed, progress=lambda done, total: progress(f"{setting.name}, seed {seed}: {done} of {total} clips")
    )


def _off(setting: ControlSetting, batches: Sequence[Sequence[Estimate]]) -> float:
    """The mean of how far the lengths heard are from those asked for."""
    gaps = [abs(e.seconds - seconds) for batch in batches for e, seconds in zip(batch, setting.seconds, strict=True)]
    return sum(gaps) / len(gaps)


def _heard(listen: AttributeEstimator, clip: Audio) -> Estimate:
    return listen(clip)[0]


def _through(system: System, reference: Reference) -> Audio:
    """A reference render through the codec."""
    codec = system.codec
    clip = load_audio(reference.clip.audio).resample(codec.spec.sample_rate).to_channels(codec.spec.channels)
    return codec.decode(codec.encode(clip.to(system.device))).to("cpu")


def _copies(
    made: Sequence[list[Tensor]], refs: Sequence[Reference], training: Manifest, progress: Progress
) -> MemorizationReport:
    generated = [one for prints in made for one in prints]
    unseen = [prints for ref in refs for prints in audio_fingerprints(load_audio(ref.clip.audio))]
    every = max(1, len(training) // 20)

    def told(done: int) -> None:
        if done % every == 0:
            progress(f"copies: {done} of {len(training)} training clips")

    known = (audio_fingerprints(load_audio(clip.audio))[0] for clip in training.clips)
    found = memorization_rate(generated, unseen, known, progress=told)
    return replace(found, nearest=sorted(found.nearest)[:20])


def _speed(maker: ClipGenerator, asked: Sequence[ControlSetting]) -> dict[str, float]:
    setting = asked[-1]
    item, seconds = setting.items[0], setting.seconds[0]
    return {"alone": maker.realtime_factor(item, seconds, clips=1), "batch of 8": maker.realtime_factor(item, seconds, clips=8)}


def _manifest(given: str | Path | Manifest) -> Manifest:
    return given if isinstance(given, Manifest) else load_manifest(given)[0]
