"""Estimates: what was heard in a clip, decoded from the network's logits and compared with a truth."""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import load, save
from torch import Tensor

from cadenza.core.atomic import atomic_write
from cadenza.core.errors import CheckpointError
from cadenza.dsp.audio import Audio
from cadenza.evaluation.audio_health import last_sound_seconds
from cadenza.evaluation.estimator_net import (
    LOWEST,
    PITCH_HOP,
    SAMPLE_RATE,
    SEMITONES,
    SLOWEST,
    STEPS,
    TEMPI,
    EstimatorNet,
    EstimatorOutputs,
    dominant_pitch_class,
    extract_features,
)
from cadenza.evaluation.labels import NO_MELODY, UNKNOWN, ClipLabels
from cadenza.evaluation.music_metrics import ChordTimeline, onset_strength, pick_onsets, track_beats

TOLERANCE = 0.04  # a tempo is right within 4 % (Gouyon et al. 2006)
NO_PITCH_CLASS = 12


@dataclass(frozen=True)
class Estimate:
    """One clip as heard; classes as in `Truth`, but melody as pitch class with 12 for none; times in seconds."""

    tempo: float
    key: int
    families: Float[Tensor, " n"]  # 0.5 and more means present
    lead: int
    chords: Int[Tensor, " f"]
    melody: Int[Tensor, " f"]
    chroma: Int[Tensor, " f"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))  # the loudest, 12 for none
    beats: Float[Tensor, " n"] = field(default_factory=lambda: torch.zeros(0))
    onsets: Float[Tensor, " n"] = field(default_factory=lambda: torch.zeros(0))
    seconds: float = math.nan  # until nothing sounds any more

    @cached_property
    def chord_timeline(self) -> ChordTimeline:
        """Its chords as spans of time."""
        return ChordTimeline.of_frames(self.chords.tolist(), SAMPLE_RATE / PITCH_HOP)


def decode_outputs(
    guesses: EstimatorOutputs, lengths: Sequence[int], thresholds: Float[Tensor, " n"] | None = None
) -> list[Estimate]:
    """The most likely classes of every clip; `thresholds` are the families' probabilities that count as 0.5."""
    families = guesses.families
    if thresholds is not None:
        families = families - torch.logit(thresholds.to(families))
    melody = pitch_classes(guesses.melody.softmax(1)).argmax(1)
    chords = guesses.chords.argmax(1)
    return [
        Estimate(
            decode_tempo(guesses.tempo[i]),
            int(guesses.key[i].argmax()),
            families[i].sigmoid(),
            int(guesses.lead[i].argmax()),
            chords[i, :length],
            melody[i, :length],
        )
        for i, length in enumerate(lengths)
    ]


def decode_tempo(logits: Float[Tensor, " tempi"]) -> float:
    """The centre of the 4 % of the tempo axis that holds the most probability, in beats a minute."""
    chances = logits.float().softmax(-1)
    around = torch.nn.functional.avg_pool1d(chances[None], 5, 1, 2, count_include_pad=True)[0]
    best = int(around.argmax())
    low, high = max(best - 2, 0), min(best + 3, TEMPI)
    there = chances[low:high]
    place = float((torch.arange(low, high) * there).sum() / there.sum())
    return SLOWEST * 2 ** (place / STEPS)


def pitch_classes(chances: Float[Tensor, "b semitones f"]) -> Float[Tensor, "b 13 f"]:
    """Probabilities of melody pitches as those of twelve pitch classes and none."""
    folded = chances.new_zeros(chances.shape[0], NO_PITCH_CLASS + 1, chances.shape[-1])
    place = (torch.arange(SEMITONES) + LOWEST) % 12
    place = torch.cat([place, torch.tensor([NO_PITCH_CLASS])]).to(chances.device)
    return folded.index_add(1, place, chances)


def tempo_accuracy(estimated: float, wanted: float) -> float:
    """1 within 4 % of the wanted tempo, else 0."""
    return float(abs(estimated - wanted) <= TOLERANCE * wanted)


def chord_accuracy(estimated: Int[Tensor, " f"], wanted: Int[Tensor, " f"]) -> float:
    """The share of frames with the right major-minor class, of those whose truth is known; NaN without any."""
    frames = min(len(estimated), len(wanted))
    known = wanted[:frames] != UNKNOWN
    if not known.any():
        return float("nan")
    return float((estimated[:frames] == wanted[:frames])[known].float().mean())


def melody_accuracy(estimated: Int[Tensor, " f"], wanted: Int[Tensor, " f"]) -> float:
    """The share of frames with the right melody pitch class, of those in which a melody sounds; NaN without any.

    `wanted` counts semitones as in `Truth` (raw pitch-class accuracy, Salamon et al. 2014).
    """
    frames = min(len(estimated), len(wanted))
    sounds = (wanted[:frames] != UNKNOWN) & (wanted[:frames] != NO_MELODY)
    if not sounds.any():
        return float("nan")
    return float((estimated[:frames] == (wanted[:frames] + LOWEST) % 12)[sounds].float().mean())


@dataclass(frozen=True)
class Accuracy:
    """How well estimates meet truths: means over clips, and F1 over all families and for each."""

    tempo: float
    key: float
    family: float  # micro F1
    family_macro: float
    families: tuple[float, ...]
    lead: float
    chords: float
    melody: float


def accuracy(estimates: Sequence[Estimate], truths: Sequence[ClipLabels]) -> Accuracy:
    """The scores of estimates on clips whose truth is known."""
    pairs = list(zip(estimates, truths, strict=True))
    present = torch.stack([e.families >= 0.5 for e in estimates])
    wanted = torch.stack([t.families for t in truths])
    each = f1(present, wanted)
    there = wanted.any(0)
    return Accuracy(
        _mean([tempo_accuracy(e.tempo, t.tempo) for e, t in pairs if t.tempo > 0]),
        _mean([float(e.key == t.key) for e, t in pairs if t.key != UNKNOWN]),
        float(f1(present.flatten()[:, None], wanted.flatten()[:, None])),
        float(each[there].mean()) if there.any() else float("nan"),
        tuple(each.tolist()),
        _mean([float(e.lead == t.lead) for e, t in pairs if t.lead != UNKNOWN]),
        _mean([chord_accuracy(e.chords, t.chords) for e, t in pairs]),
        _mean([melody_accuracy(e.melody, t.melody) for e, t in pairs]),
    )


def f1(present: Tensor, wanted: Tensor) -> Float[Tensor, " n"]:
    """F1 of each column of two boolean tables; 1 where nothing was wanted or found."""
    right, found, all_ = (present & wanted).sum(0), present.sum(0), wanted.sum(0)
    return torch.where(found + all_ > 0, 2 * right / (found + all_).clamp(min=1), 1.0)


def _mean(values: Sequence[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else float("nan")


FOLDER = Path(__file__).parent / "weights"
_WEIGHTS, _RECORD = "estimators.safetensors", "estimators.json"


@dataclass(frozen=True)
class AttributeEstimator:
    """A trained network, what its family answers mean and from which probability on they count."""

    net: EstimatorNet
    families: tuple[str, ...]
    thresholds: Tensor
    sha256: str = ""

    @torch.inference_mode()
    def __call__(self, audio: Audio, progress: Callable[[int], None] | None = None) -> list[Estimate]:
        """What is heard in every clip, each by itself."""
        found = []
        for done, clip in enumerate(audio, 1):
            heard = extract_features(clip)
            estimate = decode_outputs(self.net(heard), heard.lengths.tolist(), self.thresholds)[0]
            strength = onset_strength(heard.bands[0])
            found.append(
                replace(
                    estimate,
                    chroma=dominant_pitch_class(heard.pitch[0]),
                    beats=track_beats(strength, estimate.tempo),
                    onsets=pick_onsets(strength),
                    seconds=last_sound_seconds(clip.wave[0], clip.sample_rate),
                )
            )
            if progress is not None:
                progress(done)
        return found


def load_estimators(folder: Path = FOLDER) -> AttributeEstimator:
    """The estimators in a folder, the bundled ones by default; CheckpointError if a byte of the weights is not as recorded."""
    try:
        record = json.loads((folder / _RECORD).read_text())
        data = (folder / _WEIGHTS).read_bytes()
    except OSError as error:
        raise CheckpointError(f"{folder}: the estimators cannot be read: {error}; install the package again") from None
    found = hashlib.sha256(data).hexdigest()
    if found != record["sha256"]:
        raise CheckpointError(
            f"{folder / _WEIGHTS}: sha256 is {found}, but {_RECORD} says {record['sha256']}: "
            "scores of changed estimators compare with nothing; restore the file"
        )
    net = EstimatorNet(len(record["families"]), width=record["width"], folded=record["folded"])
    net.load_state_dict({name: value.float() if value.is_floating_point() else value for name, value in load(data).items()})
    return AttributeEstimator(net.eval(), tuple(record["families"]), torch.tensor(record["thresholds"]), found)


def save_estimators(estimators: AttributeEstimator, folder: Path, *, notes: dict[str, Any]) -> str:
    """Writes weights as float16 with a record of their hash and of how they were made; returns the hash."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.half() if v.is_floating_point() else v for k, v in estimators.net.state_dict().items()}
    data = save({name: value.contiguous() for name, value in state.items()})
    digest = hashlib.sha256(data).hexdigest()
    record = {
        "sha256": digest,
        "families": list(estimators.families),
        "thresholds": [round(x, 3) for x in estimators.thresholds.tolist()],
        "width": estimators.net.width,
        "folded": estimators.net.folded,
        **notes,
    }
    with atomic_write(folder / _WEIGHTS) as file:
        file.write(data)
    with atomic_write(folder / _RECORD) as file:
        file.write((json.dumps(record, indent=2) + "\n").encode())
    return digest
