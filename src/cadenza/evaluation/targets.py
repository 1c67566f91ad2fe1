"""Wishes: what a request asks for in terms the estimators can check, and how well an estimate meets it."""

import json
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from cadenza.corpus.tables import load_tables
from cadenza.evaluation.estimator_net import PITCH_HOP, SAMPLE_RATE
from cadenza.evaluation.estimators import NO_PITCH_CLASS, TOLERANCE, Estimate
from cadenza.evaluation.labels import key_class
from cadenza.evaluation.music_metrics import (
    BEAT,
    ONSET,
    ChordTimeline,
    chart_iou,
    events_f1,
    majmin_accuracy,
    pitch_class_cosine,
)


@dataclass(frozen=True)
class AttributeTargets:
    """What a request says; None for what it leaves open.

    `tempo` is a number of beats a minute and `pace` the range that a word such as 'slow' stands for. `families`
    are wanted; `open` ones may play or not. `melody` and `chroma` are pitch classes at each of the estimators' frames,
    12 for none: those of the melody's notes, and the loudest ones of the reference. Times are in seconds.
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


def score_tempo(estimate: Estimate, wish: AttributeTargets) -> float:
    """1 within 4 % of the wanted number."""
    return math.nan if wish.tempo is None else float(abs(estimate.tempo - wish.tempo) <= TOLERANCE * wish.tempo)


def score_tempo_range(estimate: Estimate, wish: AttributeTargets) -> float:
    """1 within 4 % of the range that the tempo word stands for."""
    if wish.tempo_range is None:
        return math.nan
    low, high = wish.tempo_range
    return float(low * (1 - TOLERANCE) <= estimate.tempo <= high * (1 + TOLERANCE))


def score_key(estimate: Estimate, wish: AttributeTargets) -> float:
    """1 for exactly the wanted key."""
    return math.nan if wish.key is None else float(estimate.key == wish.key)


def score_families(estimate: Estimate, wish: AttributeTargets) -> float:
    """F1 of the families heard against those wanted, the open ones left out."""
    if wish.families is None or wish.optional_families is None:
        return math.nan
    heard = (estimate.families >= 0.5) & ~wish.optional_families
    right = int((heard & wish.families).sum())
    total = int(heard.sum() + wish.families.sum())
    return 2 * right / total if total else 1.0


def score_beats(estimate: Estimate, wish: AttributeTargets) -> float:
    """F1 of the beats within 70 ms."""
    return math.nan if wish.beats is None else events_f1(estimate.beats.numpy(), wish.beats, BEAT)


def score_chords(estimate: Estimate, wish: AttributeTargets) -> float:
    """The share of time with the right major-minor class."""
    return math.nan if wish.chords is None else majmin_accuracy(estimate.chord_timeline, wish.chords)


def score_chord_iou(estimate: Estimate, wish: AttributeTargets) -> float:
    """Intersection over union of the wanted chords and those heard."""
    return math.nan if wish.chords is None else chart_iou(estimate.chord_timeline, wish.chords)


def score_melody(estimate: Estimate, wish: AttributeTargets) -> float:
    """The share of frames with the right melody pitch class, of those in which a melody is wanted (Salamon et al. 2014)."""
    return math.nan if wish.melody is None else pitch_class_cosine(estimate.melody.numpy(), wish.melody, NO_PITCH_CLASS)


def score_chroma(estimate: Estimate, wish: AttributeTargets) -> float:
    """The mean cosine of the loudest pitch classes with the reference's, as MusicGen measures (arXiv:2306.05284)."""
    return math.nan if wish.chroma is None else pitch_class_cosine(estimate.chroma.numpy(), wish.chroma, NO_PITCH_CLASS)


def score_onsets(estimate: Estimate, wish: AttributeTargets) -> float:
    """F1 of all onsets against those of the melody, within 50 ms."""
    return math.nan if wish.onsets is None else events_f1(estimate.onsets.numpy(), wish.onsets, ONSET)


def score_duration(estimate: Estimate, wish: AttributeTargets) -> float:
    """1 less the share of the wanted length by which the sound ends early or late, 0 at worst."""
    return math.nan if wish.seconds is None else max(0.0, 1 - abs(estimate.seconds - wish.seconds) / wish.seconds)


ATTRIBUTES = {
    "tempo": score_tempo,
    "pace": score_tempo_range,
    "beat": score_beats,
    "key": score_key,
    "chords": score_chords,
    "chord IoU": score_chord_iou,
    "melody": score_melody,
    "chroma": score_chroma,
    "onset": score_onsets,
    "family": score_families,
    "duration": score_duration,
}


def targets_from_values(
    sidecar: Mapping[str, Any], controls: Collection[str], *, seconds: float, chroma: np.ndarray | None = None
) -> AttributeTargets:
    """What the values of these controls ask of a clip of so many seconds; a tempo asks for its beats too."""
    told = {name for name in controls if sidecar.get(name) is not None}
    notes = sorted((note for note in sidecar.get("notes") or () if note[4] == "melody"), key=lambda note: note[0])
    beats = np.array(sidecar.get("beats") or (), float) if "tempo" in told else np.zeros(0)
    melody = "melody" in controls and bool(notes)
    frames = math.ceil(seconds * SAMPLE_RATE / PITCH_HOP)
    return AttributeTargets(
        tempo=float(sidecar["tempo"]) if "tempo" in told else None,
        key=key_class(sidecar["key"]) if "key" in told else None,
        beats=beats[beats < seconds] if len(beats) else None,
        chords=ChordTimeline.of(sidecar["chords"]).truncate(seconds) if "chords" in told else None,
        melody=_pitch_classes(notes, frames) if melody else None,
        chroma=chroma[:frames] if melody and chroma is not None else None,
        onsets=np.unique([note[0] for note in notes if note[0] < seconds]) if melody else None,
    )


def _pitch_classes(notes: Sequence[Sequence[Any]], frames: int) -> np.ndarray:
    """The pitch class in the middle of each frame, of the note that began last."""
    middle = (np.arange(frames) + 0.5) * PITCH_HOP / SAMPLE_RATE
    found = np.full(frames, NO_PITCH_CLASS)
    for start, end, pitch, *_ in notes:
        found[(middle >= start) & (middle < end)] = pitch % 12
    return found


def targets_from_caption(
    text: str, mentions: Sequence[str], sidecar: Mapping[str, Any], families: Sequence[str]
) -> AttributeTargets:
    """The wish that a corpus caption expresses: the truths it mentions, its players as far as they are named.

    Families that truly play but go unmentioned are open; those that neither play nor are named are unwanted.
    """
    said = set(mentions)
    wanted = torch.zeros(len(families), dtype=torch.bool)
    if said & {"players", "lead"}:
        for player in sidecar["instruments"]:
            if _named(player["name"], text):
                wanted[families.index(player["family"])] = True
    plays = torch.tensor([name in sidecar["families"] for name in families])
    tempo = float(sidecar["tempo"])
    return AttributeTargets(
        tempo=tempo if "bpm" in said else None,
        tempo_range=_pace(text, tempo) if "tempo" in said else None,
        key=key_class(sidecar["key"]) if "key" in said else None,
        families=wanted if wanted.any() else None,
        optional_families=plays & ~wanted if wanted.any() else None,
    )


def _named(instrument: str, text: str) -> bool:
    """Whether a text holds one of an instrument's names as whole words."""
    phrases = load_tables().phrases["instrument"][instrument]
    return any(_holds(text, name) for name in (*phrases.train, *phrases.held_out))


def _pace(text: str, tempo: float) -> tuple[float, float] | None:
    """The range of the longest tempo phrase in a text that is true of the tempo."""
    found = [
        (len(phrase), float(term.low), float(term.high))
        for term in load_tables().tempo_terms
        if term.low <= tempo <= term.high
        for phrase in (*term.phrases.train, *term.phrases.held_out)
        if _holds(text, phrase)
    ]
    return max(found)[1:] if found else None


def _holds(text: str, phrase: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(phrase)}(?![\w-])", text, re.IGNORECASE) is not None


@cache
def handwritten_prompts() -> tuple[dict[str, Any], ...]:
    """Sixty sentences as a musician would write them, with what each asks for."""
    return tuple(json.loads(Path(__file__).with_name("prompts.json").read_text()))


def targets_from_handwritten(entry: Mapping[str, Any], families: Sequence[str]) -> AttributeTargets:
    """The wish that a hand-written prompt expresses; with `only`, families that it does not name are unwanted."""
    wanted = torch.tensor([name in entry["families"] for name in families])
    pace = entry.get("pace")
    return AttributeTargets(
        tempo=entry.get("tempo"),
        tempo_range=None if pace is None else (pace[0], pace[1]),
        key=key_class(entry["key"]) if "key" in entry else None,
        families=wanted,
        optional_families=torch.zeros_like(wanted) if entry["only"] else ~wanted,
    )
