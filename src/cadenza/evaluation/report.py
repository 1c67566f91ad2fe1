"""Generation of the clips of every control setting, in batches with fixed seeds, and their scores in one report."""

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from cadenza.core.errors import RequestError
from cadenza.data.manifest import Manifest
from cadenza.data.sources import load_manifest
from cadenza.dsp.audio import Audio, load_audio
from cadenza.evaluation.adherence import AttributeResult, Interval, control_effects, score_settings
from cadenza.evaluation.audio_health import AudioHealth, audio_health
from cadenza.evaluation.estimators import load_estimators
from cadenza.evaluation.memorization import MemorizationReport, audio_fingerprints, memorization_rate
from cadenza.evaluation.report_files import NUM_PLOTTED, save_report
from cadenza.evaluation.settings import TEXT, ControlSetting, EvaluationSet, Reference, sample_references, settings
from cadenza.system.system import System

BATCH_SIZE = 8
SEED_STRIDE = 10_000  # clip i of seed s is generated with seed s * 10,000 + i in every setting

Progress = Callable[[str], None]


@dataclass(frozen=True)
class ClipGenerator:
    """A system and the folder in which its generated clips are cached."""

    system: System
    folder: Path
    guidance: float | None = None

    def generate_cached(self, setting: ControlSetting, seed: int, *, progress: Progress = lambda line: None) -> list[Audio]:
        """Return the clips of a setting, each a batch of one; generate only those without a file in the folder."""
        generator, folder = self, self._cache_folder(setting)
        if not setting.extracts_values:  # the same system, which does not extract values from texts
            system = copy(self.system)
            system.spec = self.system.spec.model_copy(update={"prompt_patterns": ()})
            generator = replace(self, system=system)
        paths = [folder / f"{i:04d}-{seed}.wav" for i in range(len(setting.items))]
        missing = [i for i, path in enumerate(paths) if not path.exists()]
        for start in range(0, len(missing), BATCH_SIZE):
            batch = missing[start : start + BATCH_SIZE]
            seeds = [seed * SEED_STRIDE + i for i in batch]
            clips = generator.generate([setting.items[i] for i in batch], [setting.seconds[i] for i in batch], seeds)
            for i, clip in zip(batch, clips, strict=True):
                clip.save(paths[i], subtype="FLOAT")
            done = len(paths) - len(missing) + start + len(batch)
            progress(f"{setting.name}, seed {seed}: {done} of {len(paths)} clips")
        return [load_audio(path) for path in paths]

    def generate(self, items: list[dict[str, Any]], seconds: Sequence[float], seeds: Sequence[int]) -> Audio:
        """Return one clip per item, generated as one batch."""
        return self.system.generate(items, seconds=list(seconds), seed=list(seeds), guidance=self.guidance)

    def realtime_factor(self, item: dict[str, Any], seconds: float, *, clips: int) -> float:
        """Return seconds of audio per second of computation for `clips` in one batch, after a warm-up."""
        self.generate([item], [min(1.0, seconds)], [0])
        start = time.perf_counter()
        audio = self.generate([item] * clips, [seconds] * clips, list(range(clips)))
        return int(audio.lengths.sum()) / audio.sample_rate / (time.perf_counter() - start)

    def _cache_folder(self, setting: ControlSetting) -> Path:
        """Create a folder named by a hash of system, guidance, items and lengths."""
        request = json.dumps(
            [setting.items, setting.seconds, setting.extracts_values, self.guidance], sort_keys=True, default=str
        )
        digest = hashlib.sha256((request + system_hash(self.system)).encode()).hexdigest()[:12]
        folder = self.folder / f"{setting.name}-{digest}"
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def system_hash(system: System) -> str:
    """Return the SHA-256 of a system's spec and weights, in hexadecimal."""
    digest = hashlib.sha256(system.spec.to_json().encode())
    for name, value in sorted(system.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class EvaluationReport:
    """All measurements of one system."""

    system: str
    estimators: str  # SHA-256 of the estimator weights
    clips: int
    seeds: tuple[int, ...]
    guidance: float
    scores: dict[str, dict[str, AttributeResult]]  # by setting, then by attribute
    changes: dict[str, dict[str, Interval]]  # by the control that is added to all others, then by attribute, as parts of A
    off: dict[str, float]  # by setting, the mean difference from the requested length, in seconds
    soundness: dict[str, AudioHealth]  # by setting, and of the references
    copies: MemorizationReport | None
    speed: dict[str, float]  # seconds of audio per second, alone and in a batch


@dataclass(frozen=True)
class EvaluationScope:
    """Number of held-out clips in each setting, seeds, and names of settings (all if empty)."""

    clips: int = 200
    seeds: tuple[int, ...] = (0,)
    settings: tuple[str, ...] = ()


def evaluate(
    system: System,
    held_out: str | Path | Manifest,
    *,
    out: str | Path,
    scope: EvaluationScope = EvaluationScope(),  # noqa: B008
    training: str | Path | Manifest | None = None,
    guidance: float | None = None,
    progress: Progress = lambda line: None,
) -> EvaluationReport:
    """Generate clips from the values of held-out clips, score them, write JSON, Markdown and plots into `out`.

    `training` is the training set, for the copy rate. An interrupted evaluation resumes from the cached clips. Raises
    RequestError for a codec without a generator or an unknown setting, DataError for fewer than two labelled clips.
    """
    if system.generator is None:
        raise RequestError("The system is a codec without a generator. Use evaluate_codec to measure it.")
    out, estimator = Path(out), load_estimators()
    references = sample_references(held_out, scope.clips)
    max_seconds = system.spec.generator.max_frames / system.codec.frame_format.frame_rate if system.spec.generator else 0.0
    controls, extracts_values = list(system.conditioners), bool(system.spec.prompt_patterns)
    dataset = EvaluationSet(references, estimator.families, controls, max_seconds, extracts_values)
    chosen = settings(dataset, scope.settings)
    generator = ClipGenerator(system, out / "clips", guidance)
    training_set = training if training is None or isinstance(training, Manifest) else load_manifest(training)[0]
    progress("reference renders through the codec")
    codec = system.codec
    coded = [codec.decode(codec.encode(r.load_audio(codec).to(system.device))).to("cpu") for r in references]
    ceiling = [estimator(clip)[0] for clip in coded]
    estimates, health, length_errors, plotted, fingerprints = {}, {}, {}, {}, []
    for setting in chosen:
        batches = [generator.generate_cached(setting, seed, progress=progress) for seed in scope.seeds]
        clips = [clip for batch in batches for clip in batch]
        estimates[setting.name] = [[estimator(clip)[0] for clip in batch] for batch in batches]
        pairs = [pair for batch in estimates[setting.name] for pair in zip(batch, setting.seconds, strict=True)]
        length_errors[setting.name] = fmean(abs(estimate.seconds - seconds) for estimate, seconds in pairs)
        health[setting.name] = audio_health(clips)
        plotted[setting.name] = batches[0][:NUM_PLOTTED]
        if training is not None:
            fingerprints += [windows for clip in clips for windows in audio_fingerprints(clip)]
        progress(f"{setting.name}: estimated")
    captions = [targets for _, targets in dataset.captions] if TEXT in dataset.measured else []
    scores = score_settings(chosen, estimates, ceiling=ceiling, captions=captions)
    last = chosen[-1]
    health["reference"] = audio_health([load_audio(r.clip.audio) for r in references])
    report = EvaluationReport(
        system=system.card.name,
        estimators=estimator.sha256,
        clips=len(references),
        seeds=scope.seeds,
        guidance=system.spec.defaults.guidance if guidance is None else guidance,
        scores=scores,
        changes=control_effects(chosen, estimates, scores),
        off=length_errors,
        soundness=health,
        copies=None if training_set is None else _memorization(fingerprints, references, training_set, progress),
        speed={
            name: generator.realtime_factor(last.items[0], last.seconds[0], clips=clips)
            for name, clips in (("alone", 1), ("batch of 8", 8))
        },
    )
    save_report(report, out, plotted, coded[:NUM_PLOTTED], chosen)
    progress(f"report in {out}")
    return report


def _memorization(
    generated: Sequence[Tensor], references: Sequence[Reference], training: Manifest, progress: Progress
) -> MemorizationReport:
    unseen = [windows for ref in references for windows in audio_fingerprints(load_audio(ref.clip.audio))]
    known = []
    for done, clip in enumerate(training.clips, 1):
        known += audio_fingerprints(load_audio(clip.audio))
        if done % max(1, len(training) // 20) == 0:
            progress(f"copies: {done} of {len(training)} training clips")
    result = memorization_rate(generated, unseen, known)
    return replace(result, nearest=sorted(result.nearest)[:20])
