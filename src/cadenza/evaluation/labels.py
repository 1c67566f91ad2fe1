"""Labels of rendered clips in the numbers and classes of the estimators."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from cadenza.core.errors import DataError
from cadenza.data.manifest import Manifest, ManifestClip
from cadenza.dsp.chords import parse_pitch_class
from cadenza.evaluation.estimator_net import LOWEST_PITCH, PITCH_HOP, SAMPLE_RATE, SEMITONES

UNKNOWN = -100  # class of a frame or clip without a label, which is neither trained on nor scored
NO_CHORD, NO_MELODY = 24, SEMITONES
_MAJOR, _MINOR = ("maj", "7", "maj7", "maj6", "9", "maj9", "6"), ("min", "min7", "min6", "min9", "minmaj7")


@dataclass(frozen=True)
class ClipLabels:
    """Labels of one clip; `key` and `chords` count 12 majors from C, then 12 minors, then (chords) none."""

    tempo: float  # beats per minute, 0 where unknown
    key: int
    families: Bool[Tensor, " n"]
    playing: Bool[Tensor, "n f"]  # frames with a note of a family, without its release
    lead: int
    chords: Int[Tensor, " f"]
    melody: Int[Tensor, " f"]  # semitones above the lowest, SEMITONES for none


def labelled_clips(manifest: Manifest) -> list[tuple[ManifestClip, dict[str, Any]]]:
    """Return the clips that have labels, with their metadata; raise DataError if no clip has any."""
    clips = [(clip, metadata) for clip in manifest.clips if "tempo" in (metadata := clip.metadata())]
    if not clips:
        raise DataError(f"{manifest.folder}: no clip has a sidecar with labels. Use 'cadenza corpus' to render labelled clips.")
    return clips


def labels_from_sidecar(sidecar: Mapping[str, Any], frames: int, *, families: Sequence[str]) -> ClipLabels:
    """Return the labels in a corpus sidecar at the middle of each of `frames` pitch frames (12.5 per second).

    Raises DataError for a family that is not in `families`, a key or a chord that cannot be parsed.
    """
    if unknown := set(sidecar.get("families", ())) - set(families):
        raise DataError(f"sidecar: families {sorted(unknown)} are not estimated. Expected {', '.join(families)}.")
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
            melody[(middle >= start) & (middle < end)] = min(max(int(pitch) - LOWEST_PITCH, 0), SEMITONES - 1)
    return ClipLabels(
        float(sidecar.get("tempo") or 0),
        UNKNOWN if sidecar.get("key") is None else key_class(sidecar["key"]),
        torch.tensor([name in sidecar.get("families", ()) for name in families]),
        playing,
        families.index(lead) if (lead := sidecar.get("lead_family")) in families else UNKNOWN,
        chords,
        melody,
    )


def key_class(name: str) -> int:
    """Return 0 to 11 for C major to B major, 12 to 23 for C minor to B minor; raise DataError for other names."""
    tonic, _, mode = name.strip().partition(" ")
    if mode not in {"major", "minor"}:
        raise DataError(f"'{name}' is not a key. Expected a name such as 'A minor' or 'F# major'.")
    return parse_pitch_class(tonic) + 12 * (mode == "minor")


def chord_class(name: str) -> int:
    """Return the major-minor class of a chord in Harte's syntax, UNKNOWN for other qualities (MIREX)."""
    if name in {"N", "none", ""}:
        return NO_CHORD
    root, _, quality = name.partition(":")
    quality = quality.partition("/")[0] or "maj"
    if quality in _MAJOR or quality in _MINOR:
        return parse_pitch_class(root) + 12 * (quality in _MINOR)
    return UNKNOWN
