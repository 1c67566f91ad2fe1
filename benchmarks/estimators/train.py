"""Train the estimators behind `cadenza evaluate`; takes minutes on a CPU.

cadenza corpus estimator --hours 4 --seed 500001
cadenza corpus estimator-val --hours 0.5 --seed 600001
python benchmarks/estimators/train.py configs/evaluation/estimators.yaml estimator --validation estimator-val --out weights
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))

from cadenza.core.atomic import atomic_write
from cadenza.core.spec import Spec
from cadenza.data.sources import load_manifest
from cadenza.evaluation.estimator_net import (
    MIN_TEMPO,
    NUM_TEMPI,
    TEMPI_PER_OCTAVE,
    EstimatorFeatures,
    EstimatorNet,
    EstimatorOutputs,
)
from cadenza.evaluation.estimators import RECORD_FILE, WEIGHTS_FILE, AttributeEstimator, Estimate, accuracy, decode_outputs
from cadenza.evaluation.labels import NO_CHORD, NO_MELODY, UNKNOWN, ClipLabels
from cadenza.evaluation.report_files import json_safe
from estimators.augmentation import FeatureAugmentation, augment_features, augment_labels, sample_augmentation
from estimators.features import FeatureDataset, collate_features, load_features


class EstimatorTrainingConfig(Spec):
    """How the estimators are trained; `families` are those of the corpus, in the order of the answers."""

    families: tuple[str, ...]
    width: int = 16
    folded: int = 40
    epochs: int = 12
    batch: int = 16
    lr: float = 3e-3
    weight_decay: float = 0.02
    seed: int = 1


@dataclass(frozen=True)
class EstimatorTargets:
    """Targets of a batch, UNKNOWN where there is none."""

    tempo: Tensor  # [b] beats a minute
    key: Tensor  # [b]
    families: Tensor  # [b n]
    playing: Tensor  # [b n g]
    lead: Tensor  # [b]
    chords: Tensor  # [b f]
    melody: Tensor  # [b f]


def train_estimators(
    config: EstimatorTrainingConfig,
    data: FeatureDataset,
    *,
    validation: FeatureDataset,
    report: Callable[[dict[str, float]], None] = lambda row: None,
) -> tuple[EstimatorNet, Tensor]:
    """The trained network with the probability at which each family counts as present."""
    rng = torch.Generator().manual_seed(config.seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(config.seed)  # initial weights and dropout
        net = EstimatorNet(len(config.families), width=config.width, folded=config.folded)
        net.train()
        optimiser = torch.optim.AdamW(net.parameters(), lr=config.lr, weight_decay=config.weight_decay)
        steps = config.epochs * (len(data) // config.batch)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, config.lr, total_steps=steps, pct_start=0.15)
        began = time.monotonic()
        for epoch in range(config.epochs):
            total = 0.0
            order = torch.randperm(len(data), generator=rng).tolist()
            for start in range(0, len(order) - config.batch + 1, config.batch):
                heard, wanted = _drawn(data, order[start : start + config.batch], rng)
                with torch.autocast("cpu", torch.bfloat16):
                    guesses = net(heard)
                losses = loss_terms(guesses, wanted)
                loss = torch.stack(list(losses.values())).sum()
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                torch.nn.utils.clip_grad_norm_(net.parameters(), 2.0)
                optimiser.step()
                schedule.step()
                total += float(loss.detach())
            if epoch % 3 == 2 or epoch == config.epochs - 1:
                scores = asdict(accuracy(predict(net, validation), validation.truths))
                scores.pop("families")
                row = {"epoch": epoch + 1, "minutes": (time.monotonic() - began) / 60, "loss": total / (steps // config.epochs)}
                report({**row, **scores})
                net.train()
    net.eval()
    return net, tune_thresholds(net, data)


def loss_terms(guesses: EstimatorOutputs, wanted: EstimatorTargets) -> dict[str, Tensor]:
    """Cross-entropy of every answer, tempo against a bell of 2 % around the truth."""
    step = TEMPI_PER_OCTAVE * torch.log2(wanted.tempo.clamp(min=1) / MIN_TEMPO)
    bell = torch.exp(-0.5 * ((torch.arange(NUM_TEMPI) - step[:, None]) / 1.2).square())
    known = (wanted.tempo > 0) & (step > -2) & (step < NUM_TEMPI + 1)
    bell = bell / bell.sum(-1, keepdim=True).clamp(min=1e-6)
    tempo = -(bell * guesses.tempo.float().log_softmax(-1)).sum(-1)
    return {
        "tempo": (tempo * known).sum() / known.sum().clamp(min=1),
        "key": _cross_entropy(guesses.key, wanted.key),
        "families": 3 * F.binary_cross_entropy_with_logits(guesses.families.float(), wanted.families),
        "playing": 3 * _playing(guesses.playing.float(), wanted.playing),
        "lead": 0.5 * _cross_entropy(guesses.lead, wanted.lead),
        "chords": _cross_entropy(guesses.chords, wanted.chords),
        "melody": _cross_entropy(guesses.melody, wanted.melody),
    }


def _playing(logits: Tensor, wanted: Tensor) -> Tensor:
    known = wanted >= 0
    loss = F.binary_cross_entropy_with_logits(logits, wanted.clamp(min=0), reduction="none")
    return (loss * known).sum() / known.sum().clamp(min=1)


def _cross_entropy(logits: Tensor, classes: Tensor) -> Tensor:
    total = F.cross_entropy(logits.float(), classes, ignore_index=UNKNOWN, reduction="sum")
    return total / (classes != UNKNOWN).sum().clamp(min=1)


@torch.inference_mode()
def predict(net: EstimatorNet, data: FeatureDataset, at: Tensor | None = None) -> list[Estimate]:
    """Return the input features of every clip."""
    net.eval()
    found = []
    for i in range(len(data)):
        heard = collate_features([data.features(i)])
        found += decode_outputs(net(heard), heard.lengths.tolist(), at)
    return found


@torch.inference_mode()
def tune_thresholds(net: EstimatorNet, data: FeatureDataset, most: int = 400) -> Tensor:
    """Return the best threshold of each family, on a part of the training clips with new augmentation."""
    net.eval()
    rng = torch.Generator().manual_seed(0)
    chances, truths = [], []
    for start in range(0, min(len(data), most), 16):
        heard, wanted = _drawn(data, range(start, min(start + 16, len(data))), rng)
        chances.append(net(heard).families.sigmoid())
        truths.append(wanted.families > 0.5)
    chance, truth = torch.cat(chances), torch.cat(truths)
    frame_format = torch.linspace(0.2, 0.8, 25)
    right = ((chance[None] >= frame_format[:, None, None]) & truth).sum(1)
    total = (chance[None] >= frame_format[:, None, None]).sum(1) + truth.sum(0)
    score = 2 * right / total.clamp(min=1)
    smooth = F.avg_pool1d(score.T[:, None], 5, 1, 2, count_include_pad=False)[:, 0]
    return frame_format[smooth.argmax(-1)]


def _drawn(data: FeatureDataset, which: Sequence[int], rng: torch.Generator) -> tuple[EstimatorFeatures, EstimatorTargets]:
    """A batch of changed clips with what is true of them now."""
    features, truths, changes = [], [], []
    for i in which:
        pitch, bands = data.features(i)
        change = sample_augmentation(pitch.shape[-1], rng)
        features.append(augment_features(pitch, bands, change, rng))
        truths.append(data.truths[i])
        changes.append(change)
    heard = collate_features(features)
    frames = heard.pitch.shape[-1]
    rows = [_wanted(truth, change, frames) for truth, change in zip(truths, changes, strict=True)]
    return heard, EstimatorTargets(*(torch.stack(column) for column in zip(*rows, strict=True)))


def _wanted(truth: ClipLabels, change: FeatureAugmentation, frames: int) -> tuple[Tensor, ...]:
    chords, melody = (
        F.pad(augment_labels(x, change), (0, frames), value=UNKNOWN)[:frames] for x in (truth.chords, truth.melody)
    )
    up = change.semitones
    key = truth.key if truth.key == UNKNOWN else (truth.key % 12 + up) % 12 + truth.key // 12 * 12
    harmonic = (chords != UNKNOWN) & (chords != NO_CHORD)
    chords = torch.where(harmonic, (chords % 12 + up) % 12 + chords // 12 * 12, chords)
    sounds = (melody != UNKNOWN) & (melody != NO_MELODY)
    melody = torch.where(sounds, (melody + up).clamp(0, NO_MELODY - 1), melody)
    tempo = torch.tensor(truth.tempo * change.speed)
    playing = torch.stack([augment_labels(row, change) for row in truth.playing]).float()
    playing = F.pad(playing, (0, frames), value=UNKNOWN)[:, :frames:2]
    return tempo, torch.tensor(key), truth.families.float(), playing, torch.tensor(truth.lead), chords, melody


def save_estimators(estimators: AttributeEstimator, folder: Path, *, notes: dict[str, Any]) -> str:
    """Write the weights as float16, with a record of their hash and `notes`; return the SHA-256."""
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
    with atomic_write(folder / WEIGHTS_FILE) as file:
        file.write(data)
    with atomic_write(folder / RECORD_FILE) as file:
        file.write((json.dumps(record, indent=2) + "\n").encode())
    return digest


def train_and_freeze(
    config: str | Path, corpus: str | Path, *, validation: str | Path, out: str | Path, progress: Callable[[str], None] = print
) -> str:
    """Trains on a corpus and writes the weights with their record into `out`; returns the hash. Features stay in `out`."""
    settings, out = EstimatorTrainingConfig.load(config), Path(out)
    data, unseen = (
        load_features(load_manifest(folder)[0], settings.families, cache=out / f"features-{name}")
        for name, folder in (("training", corpus), ("validation", validation))
    )
    net, at = train_estimators(settings, data, validation=unseen, report=lambda row: progress(_line(row)))
    net = net.half().float()  # as it is stored
    score = accuracy(predict(net, unseen, at), unseen.truths)
    progress(_line({name: value for name, value in asdict(score).items() if isinstance(value, float)}))
    notes = {
        "config": settings.to_dict(),
        "trained_on": corpus_record(corpus),
        "validation": {**corpus_record(validation), **json_safe(asdict(score))},
    }
    return save_estimators(AttributeEstimator(net, settings.families, at), out, notes=notes)


def corpus_record(corpus: str | Path) -> dict[str, Any]:
    """Seed, hours and split of a corpus, as its own record says."""
    record = json.loads((Path(corpus) / "corpus.json").read_text())
    return {name: record[name] for name in ("seed", "hours", "split")}


def _line(row: dict[str, float]) -> str:
    return "  ".join(f"{name} {value:.3f}" for name, value in row.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--validation", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    print(train_and_freeze(options.config, options.corpus, validation=options.validation, out=options.out))


if __name__ == "__main__":
    main()
