"""Targets of a request in the units of the estimators, and scores of estimates against them."""

import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from cadenza.corpus.tables import load_tables
from cadenza.evaluation import music_metrics as metrics
from cadenza.evaluation.estimator_net import NO_PITCH_CLASS, PITCH_HOP, SAMPLE_RATE
from cadenza.evaluation.estimators import TOLERANCE, Estimate, tempo_accuracy
from cadenza.evaluation.labels import key_class
from cadenza.evaluation.music_metrics import ChordTimeline


@dataclass(frozen=True)
class AttributeTargets:
    """Targets of one request; None where it has none.

    `tempo` is in beats per minute, `tempo_range` the range that a word such as 'slow' means. `families` are requested,
    `optional_families` are not scored. `melody` (of the notes) and `chroma` (the loudest of the reference) are pitch
    classes 0 to 11 per estimator frame, 12 for none. Times are in seconds.
    """

    tempo: float | None = None
    tempo_range: tuple[float, float] | None = None
    key: int | None = None
    families: Bool[Tensor, " n"] | None = None
    optional_families: Bool[Tensor, " n"] | None = None
    chords: ChordTimeline | None = None
    melody: np.ndarray | None = None
    chroma: np.ndarray | None = None
    beats: np.ndarray | None = None
    onsets: np.ndarray | None = None
    seconds: float | None = None


def _score(field: str, metric: Callable[[Estimate, Any], float]) -> Callable[[Estimate, AttributeTargets], float]:
    """Score of an estimate against one field of the targets, NaN where that is None."""

    def score(estimate: Estimate, targets: AttributeTargets) -> float:
        target = getattr(targets, field)
        return math.nan if target is None else metric(estimate, target)

    return score


def score_families(estimate: Estimate, targets: AttributeTargets) -> float:
    """F1 of the estimated families without the optional ones; NaN without a target."""
    if targets.families is None or targets.optional_families is None:
        return math.nan
    present = (estimate.families >= 0.5) & ~targets.optional_families
    total = int(present.sum() + targets.families.sum())
    return 2 * int((present & targets.families).sum()) / total if total else 1.0


ATTRIBUTES: dict[str, Callable[[Estimate, AttributeTargets], float]] = {  # scores in 0 to 1, NaN without a target
    "tempo": _score("tempo", lambda e, tempo: tempo_accuracy(e.tempo, tempo)),
    "pace": _score("tempo_range", lambda e, x: float(x[0] * (1 - TOLERANCE) <= e.tempo <= x[1] * (1 + TOLERANCE))),
    "beat": _score("beats", lambda e, beats: metrics.events_f1(e.beats.numpy(), beats, metrics.BEAT_TOLERANCE)),
    "key": _score("key", lambda e, key: float(e.key == key)),
    "chords": _score("chords", lambda e, chords: metrics.majmin_accuracy(e.chord_timeline, chords)),
    "chord IoU": _score("chords", lambda e, chords: metrics.chart_iou(e.chord_timeline, chords)),
    # raw pitch-class accuracy (Salamon et al. 2014), and chroma cosine as in MusicGen (arXiv:2306.05284)
    "melody": _score("melody", lambda e, melody: metrics.pitch_class_cosine(e.melody.numpy(), melody)),
    "chroma": _score("chroma", lambda e, chroma: metrics.pitch_class_cosine(e.chroma.numpy(), chroma)),
    # the estimated onsets are those of all instruments, the targets those of the melody
    "onset": _score("onsets", lambda e, onsets: metrics.events_f1(e.onsets.numpy(), onsets, metrics.ONSET_TOLERANCE)),
    "family": score_families,
    "duration": _score("seconds", lambda e, seconds: max(0.0, 1 - abs(e.seconds - seconds) / seconds)),
}


def targets_from_values(
    sidecar: Mapping[str, Any], controls: Collection[str], *, seconds: float, chroma: np.ndarray | None = None
) -> AttributeTargets:
    """Return the targets of a clip of `seconds` for the values of `controls`; a tempo also gives targets for beats."""
    known = {name for name in controls if sidecar.get(name) is not None}
    notes = sorted((note for note in sidecar.get("notes") or () if note[4] == "melody"), key=lambda note: note[0])
    beats = np.array(sidecar.get("beats") or (), float) if "tempo" in known else np.zeros(0)
    melody = "melody" in controls and bool(notes)
    frames = math.ceil(seconds * SAMPLE_RATE / PITCH_HOP)
    return AttributeTargets(
        tempo=float(sidecar["tempo"]) if "tempo" in known else None,
        key=key_class(sidecar["key"]) if "key" in known else None,
        beats=beats[beats < seconds] if len(beats) else None,
        chords=ChordTimeline.of(sidecar["chords"]).truncate(seconds) if "chords" in known else None,
        melody=_pitch_classes(notes, frames) if melody else None,
        chroma=chroma[:frames] if melody and chroma is not None else None,
        onsets=np.unique([note[0] for note in notes if note[0] < seconds]) if melody else None,
    )


def _pitch_classes(notes: Sequence[Sequence[Any]], frames: int) -> np.ndarray:
    """Pitch class at the middle of each frame, of the note that starts last; 12 for none."""
    middle = (np.arange(frames) + 0.5) * PITCH_HOP / SAMPLE_RATE
    classes = np.full(frames, NO_PITCH_CLASS)
    for start, end, pitch, *_ in notes:
        classes[(middle >= start) & (middle < end)] = pitch % 12
    return classes


def targets_from_caption(
    text: str, mentions: Sequence[str], sidecar: Mapping[str, Any], families: Sequence[str]
) -> AttributeTargets:
    """Return the targets that a corpus caption mentions, with the families of the instruments it names.

    Families that play but are not named are optional; a family that does neither counts as an error if present.
    """
    mentioned = set(mentions)
    named = torch.zeros(len(families), dtype=torch.bool)
    if mentioned & {"players", "lead"}:
        for player in sidecar["instruments"]:
            phrases = load_tables().phrases["instrument"][player["name"]]
            if any(_contains(text, name) for name in (*phrases.train, *phrases.held_out)):
                named[families.index(player["family"])] = True
    plays = torch.tensor([name in sidecar["families"] for name in families])
    tempo = float(sidecar["tempo"])
    return AttributeTargets(
        tempo=tempo if "bpm" in mentioned else None,
        tempo_range=_tempo_range(text, tempo) if "tempo" in mentioned else None,
        key=key_class(sidecar["key"]) if "key" in mentioned else None,
        families=named if named.any() else None,
        optional_families=plays & ~named if named.any() else None,
    )


def _tempo_range(text: str, tempo: float) -> tuple[float, float] | None:
    """Range of the longest tempo phrase in a text among those that include the tempo."""
    ranges = [
        (len(phrase), float(term.low), float(term.high))
        for term in load_tables().tempo_terms
        if term.low <= tempo <= term.high
        for phrase in (*term.phrases.train, *term.phrases.held_out)
        if _contains(text, phrase)
    ]
    return max(ranges)[1:] if ranges else None


def _contains(text: str, phrase: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(phrase)}(?![\w-])", text, re.IGNORECASE) is not None


@cache
def handwritten_prompts() -> tuple[dict[str, Any], ...]:
    """Return the sixty handwritten prompts of `prompts.json`, with the targets of each."""
    return tuple(json.loads(Path(__file__).with_name("prompts.json").read_text()))


def targets_from_handwritten(entry: Mapping[str, Any], families: Sequence[str]) -> AttributeTargets:
    """Return the targets of a handwritten prompt; with `only`, a family that it does not name is an error."""
    named, pace = torch.tensor([name in entry["families"] for name in families]), entry.get("pace")
    return AttributeTargets(
        tempo=entry.get("tempo"),
        tempo_range=None if pace is None else (pace[0], pace[1]),
        key=key_class(entry["key"]) if "key" in entry else None,
        families=named,
        optional_families=torch.zeros_like(named) if entry["only"] else ~named,
    )
