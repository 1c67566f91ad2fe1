"""Attribute estimators: decode the logits of the bundled network, and compare estimates with labels."""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load
from torch import Tensor

from cadenza.core.errors import CheckpointError
from cadenza.dsp.audio import Audio
from cadenza.evaluation.audio_health import last_sound_seconds
from cadenza.evaluation.estimator_net import (
    LOWEST_PITCH,
    PITCH_HOP,
    SAMPLE_RATE,
    EstimatorNet,
    EstimatorOutputs,
    decode_tempo,
    dominant_pitch_class,
    extract_features,
    pitch_classes,
)
from cadenza.evaluation.labels import NO_MELODY, UNKNOWN, ClipLabels
from cadenza.evaluation.music_metrics import ChordTimeline, onset_strength, pick_onsets, track_beats

TOLERANCE = 0.04  # relative error of a correct tempo (Gouyon et al. 2006)


@dataclass(frozen=True)
class Estimate:
    """Estimated attributes of one clip; classes as in `ClipLabels`, melody and chroma as pitch classes, 12 for none."""

    tempo: float
    key: int
    families: Float[Tensor, " n"]  # 0.5 and more means present
    lead: int
    chords: Int[Tensor, " f"]
    melody: Int[Tensor, " f"]
    chroma: Int[Tensor, " f"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))  # loudest pitch class
    beats: Float[Tensor, " n"] = field(default_factory=lambda: torch.zeros(0))
    onsets: Float[Tensor, " n"] = field(default_factory=lambda: torch.zeros(0))
    seconds: float = math.nan  # end of the last sound

    @cached_property
    def chord_timeline(self) -> ChordTimeline:
        """Chords as intervals of time."""
        return ChordTimeline.of_frames(self.chords.tolist(), SAMPLE_RATE / PITCH_HOP)


def decode_outputs(
    outputs: EstimatorOutputs, lengths: Sequence[int], thresholds: Float[Tensor, " n"] | None = None
) -> list[Estimate]:
    """Return the most likely classes of every clip; `thresholds` are the family probabilities that map to 0.5."""
    families = outputs.families
    if thresholds is not None:
        families = families - torch.logit(thresholds.to(families))
    families, keys, leads = families.sigmoid(), outputs.key.argmax(1).tolist(), outputs.lead.argmax(1).tolist()
    melody, chords = pitch_classes(outputs.melody.softmax(1)).argmax(1), outputs.chords.argmax(1)
    return [
        Estimate(decode_tempo(outputs.tempo[i]), keys[i], families[i], leads[i], chords[i, :length], melody[i, :length])
        for i, length in enumerate(lengths)
    ]


def tempo_accuracy(estimated: float, expected: float) -> float:
    """Return 1 within 4 % of the expected tempo, else 0."""
    return float(abs(estimated - expected) <= TOLERANCE * expected)


def chord_accuracy(estimated: Int[Tensor, " f"], expected: Int[Tensor, " f"]) -> float:
    """Return the share of the labelled frames with the right major-minor class; NaN without labels."""
    return _share_correct(estimated, expected, expected != UNKNOWN)


def melody_accuracy(estimated: Int[Tensor, " f"], expected: Int[Tensor, " f"]) -> float:
    """Return the share of the frames with a melody that have its pitch class; NaN without any.

    `expected` counts semitones as in `ClipLabels` (raw pitch-class accuracy, Salamon et al. 2014).
    """
    return _share_correct(estimated, (expected + LOWEST_PITCH) % 12, (expected != UNKNOWN) & (expected != NO_MELODY))


def _share_correct(estimated: Int[Tensor, " f"], expected: Int[Tensor, " g"], mask: Bool[Tensor, " g"]) -> float:
    """Return the share of the frames in `mask` with the expected class; NaN without any."""
    frames = min(len(estimated), len(expected))
    return float((estimated[:frames] == expected[:frames])[mask[:frames]].float().mean())


@dataclass(frozen=True)
class Accuracy:
    """Accuracy of estimates in 0 to 1: means over clips, and F1 over all families and for each."""

    tempo: float
    key: float
    family: float  # micro F1
    family_macro: float
    families: tuple[float, ...]
    lead: float
    chords: float
    melody: float


def accuracy(estimates: Sequence[Estimate], labels: Sequence[ClipLabels]) -> Accuracy:
    """Compare estimates with the labels of the same clips."""
    pairs = list(zip(estimates, labels, strict=True))
    present = torch.stack([e.families >= 0.5 for e in estimates])
    expected = torch.stack([t.families for t in labels])
    per_family = f1(present, expected)
    occurs = expected.any(0)
    return Accuracy(
        mean_of_finite([tempo_accuracy(e.tempo, t.tempo) for e, t in pairs if t.tempo > 0]),
        mean_of_finite([float(e.key == t.key) for e, t in pairs if t.key != UNKNOWN]),
        float(f1(present.flatten()[:, None], expected.flatten()[:, None])),
        float(per_family[occurs].mean()) if occurs.any() else math.nan,
        tuple(per_family.tolist()),
        mean_of_finite([float(e.lead == t.lead) for e, t in pairs if t.lead != UNKNOWN]),
        mean_of_finite([chord_accuracy(e.chords, t.chords) for e, t in pairs]),
        mean_of_finite([melody_accuracy(e.melody, t.melody) for e, t in pairs]),
    )


def f1(present: Tensor, expected: Tensor) -> Float[Tensor, " n"]:
    """Return F1 of each column of two boolean tables [clips, n]; 1 where both are empty."""
    correct, total = (present & expected).sum(0), present.sum(0) + expected.sum(0)
    return torch.where(total > 0, 2 * correct / total.clamp(min=1), 1.0)


def mean_of_finite(values: Sequence[float]) -> float:
    """Return the mean of the finite values, NaN without any."""
    finite = [value for value in values if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.nan


FOLDER = Path(__file__).parent / "weights"
WEIGHTS_FILE, RECORD_FILE = "estimators.safetensors", "estimators.json"


@dataclass(frozen=True)
class AttributeEstimator:
    """A trained network with the names of its families and the probability above which each counts as present."""

    net: EstimatorNet
    families: tuple[str, ...]
    thresholds: Tensor
    sha256: str = ""

    @torch.inference_mode()
    def __call__(self, audio: Audio) -> list[Estimate]:
        """Estimate the attributes of every clip separately."""
        estimates = []
        for clip in audio:
            features = extract_features(clip)
            estimate = decode_outputs(self.net(features), features.lengths.tolist(), self.thresholds)[0]
            strength = onset_strength(features.bands[0])
            estimates.append(
                replace(
                    estimate,
                    chroma=dominant_pitch_class(features.pitch[0]),
                    beats=track_beats(strength, estimate.tempo),
                    onsets=pick_onsets(strength),
                    seconds=last_sound_seconds(clip.wave[0], clip.sample_rate),
                )
            )
        return estimates


def load_estimators(folder: Path = FOLDER) -> AttributeEstimator:
    """Load the estimators of a folder, the bundled ones by default.

    Raises CheckpointError if a file cannot be read or the weights differ from the recorded SHA-256.
    """
    try:
        record = json.loads((folder / RECORD_FILE).read_text())
        data = (folder / WEIGHTS_FILE).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{folder}: the estimators cannot be read: {error}. Install the package again.") from None
    digest = hashlib.sha256(data).hexdigest()
    if digest != record["sha256"]:
        raise CheckpointError(
            f"{folder / WEIGHTS_FILE}: sha256 is {digest}. Expected {record['sha256']} of {RECORD_FILE}. "
            "Scores of changed estimators cannot be compared. Restore the file."
        )
    net = EstimatorNet(len(record["families"]), width=record["width"], folded=record["folded"])
    net.load_state_dict({name: value.float() if value.is_floating_point() else value for name, value in load(data).items()})
    return AttributeEstimator(net.eval(), tuple(record["families"]), torch.tensor(record["thresholds"]), digest)
