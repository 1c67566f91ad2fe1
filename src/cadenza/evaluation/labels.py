"""The exact truth of a rendered clip, as the numbers and classes that the estimators give."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from cadenza.core.errors import DataError
from cadenza.data.manifest import Manifest, ManifestClip
from cadenza.dsp.chords import parse_pitch_class
from cadenza.evaluation.estimator_net import LOWEST, PITCH_HOP, SAMPLE_RATE, SEMITONES

UNKNOWN = -100  # a frame or clip without a truth: neither trained nor scored
NO_CHORD, NO_MELODY = 24, SEMITONES
_MAJOR, _MINOR = ("maj", "7", "maj7", "maj6", "9", "maj9", "6"), ("min", "min7", "min6", "min9", "minmaj7")


@dataclass(frozen=True)
class ClipLabels:
    """What is true of one clip; `key` and `chords` count majors from C, then minors from C, then no chord."""

    tempo: float  # beats a minute, 0 where unknown
    key: int
    families: Bool[Tensor, " n"]
    playing: Bool[Tensor, "n f"]  # the families' notes, without what rings on after them
    lead: int
    chords: Int[Tensor, " f"]
    melody: Int[Tensor, " f"]  # semitones above the lowest, SEMITONES where none sounds


def labelled_clips(manifest: Manifest) -> list[tuple[ManifestClip, dict[str, Any]]]:
    """Return the clips that have labels, with their metadata; raise DataError if the manifest has none."""
    clips = [(clip, metadata) for clip in manifest.clips if "tempo" in (metadata := clip.metadata())]
    if not clips:
        raise DataError(f"{manifest.folder}: no clip has a sidecar with labels; make a corpus with 'cadenza corpus'")
    return clips


def labels_from_sidecar(sidecar: Mapping[str, Any], frames: int, *, families: Sequence[str]) -> ClipLabels:
    """The truth in a corpus sidecar; times are looked up in the middle of each pitch frame."""
    lead = sidecar.get("lead_family")
    unknown = set(sidecar.get("families", ())) - set(families)
    if unknown:
        raise DataError(f"sidecar: families {sorted(unknown)} are not among those estimated: {', '.join(families)}")
    middle = (torch.arange(frames) + 0.5) * PITCH_HOP / SAMPLE_RATE
    chords = torch.full((frames,), NO_CHORD if sidecar.get("chords") else UNKNOWN)
    for start, end, name in sidecar.get("chords") or ():
        chords[(middle >= start) & (middle < end)] = chord_class(name)
    melody = torch.full((frames,), NO_MELODY if sidecar.get("notes") else UNKNOWN)
    notes: list[list[Any]] = sorted(sidecar.get("notes") or [], key=lambda note: note[0])
    playing = torch.zeros(len(families), frames, dtype=torch.bool)
    family = {player["role"]: families.index(player["family"]) for player in sidecar.get("instruments") or ()}
    for start, end, pitch, _, role in notes:
        first, last = (round(second * SAMPLE_RATE / PITCH_HOP) for second in (start, end))
        if role in family:
            playing[family[role], first : last + 1] = True
        if role == "melody":
            melody[(middle >= start) & (middle < end)] = min(max(int(pitch) - LOWEST, 0), SEMITONES - 1)
    return ClipLabels(
        float(sidecar.get("tempo") or 0),
        UNKNOWN if sidecar.get("key") is None else key_class(sidecar["key"]),
        torch.tensor([name in sidecar.get("families", ()) for name in families]),
        playing,
        families.index(lead) if lead in families else UNKNOWN,
        chords,
        melody,
    )


def key_class(name: str) -> int:
    """0 to 11 for C major to B major, 12 to 23 for C minor to B minor."""
    tonic, _, mode = name.strip().partition(" ")
    if mode not in {"major", "minor"}:
        raise DataError(f"'{name}' is not a key such as 'A minor' or 'F# major'")
    return parse_pitch_class(tonic) + 12 * (mode == "minor")


def chord_class(name: str) -> int:
    """The major-minor class of a chord in Harte's syntax; UNKNOWN for those that are neither, as in MIREX."""
    if name in {"N", "none", ""}:
        return NO_CHORD
    root, _, quality = name.partition(":")
    quality = quality.partition("/")[0] or "maj"
    if quality in _MAJOR or quality in _MINOR:
        return parse_pitch_class(root) + 12 * (quality in _MINOR)
    return UNKNOWN
