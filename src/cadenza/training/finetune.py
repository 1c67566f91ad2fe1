"""Fine-tuning: all weights of a trained generator, from where they are, by settings that follow from the model."""

import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from cadenza.core.errors import TrainingError
from cadenza.system.store import ModelCard
from cadenza.system.system import System
from cadenza.training.config import TrainingConfig, resolve_config
from cadenza.training.loop import TrainingResult
from cadenza.training.trainer import Trainer

LARGE = 10**9  # learned weights from which on the rate is lower


@dataclass(frozen=True)
class FinetuneResult:
    """How a fine-tuning ended; losses are of the held-out items, None where nothing is held out."""

    outcome: TrainingResult
    before: float | None  # of the model as it was
    after: float | None  # the least of the run, under the averaged weights
    folder: Path | None  # of the system with that loss; of the newest where none was measured


def finetune_config(
    system: System, *, steps: int = 1000, minutes: float | None = None, overrides: Sequence[str] = ()
) -> TrainingConfig:
    """A run over pieces as long as the model makes at once: a low rate that rises and falls, the average of the weights kept.

    `overrides` are `key=value` lines that count more. Raises TrainingError for a codec alone.
    """
    if system.generator is None:
        raise TrainingError(
            "this model is a codec alone, and finetune is for models that generate; to train a codec on, choose a config "
            "of its shape (configs/training/encodec_*.yaml) and run: cadenza train CONFIG --data DATA --set init_from=MODEL "
            "--set task.unquantized_steps=0"
        )
    learned = sum(p.numel() for part in (system.generator, system.conditioners) for p in part.parameters())
    half = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    fields: dict[str, Any] = {
        "name": f"{re.sub(r'[^a-zA-Z0-9._-]+', '-', system.card.name.rpartition('/')[2]).strip('-') or 'model'}-finetuned",
        "task": {"cfg_dropout": 0.1, "attribute_dropout": 0.1 if len(system.conditioners) > 1 else 0.0},
        "steps": steps,
        "minutes": minutes,
        "batch": 4,
        "seconds": system.generator.spec.max_frames / system.codec.frame_format.frame_rate,
        "lr": 1e-4 if learned < LARGE else 3e-5,
        "warmup": min(100, steps // 10),
        "final_lr_ratio": 0.1,
        "precision": "bf16" if half else "fp32",
        "ema": 0.99,
        "validate_every": max(1, steps // 10),
        "samples_every": steps,  # at the end
        "sample_items": 2,
        "checkpoint_every": max(1, steps // 4),
        "keep_last": 1,
    }
    config = resolve_config(resolve_config(system.spec, (), fields), overrides, {})
    if config.system != system.spec:
        raise TrainingError(
            "finetune changes the weights of a model and not what it is made of; leave out system.*, or train that anew"
        )
    context, rate = system.generator.spec.max_frames, system.codec.frame_format.frame_rate
    if round(config.seconds * rate) > context:
        raise TrainingError(
            f"seconds: pieces of {config.seconds:g} s are longer than this model makes at once; use up to {context / rate:g}"
        )
    return config


def finetune(system: System, data: Any, config: TrainingConfig, *, out: str | Path, cpu: bool = False) -> FinetuneResult:
    """Trains a copy of a system by a config that `config_for` made; an unfinished run in `out` is continued.

    The held-out items are those that `Trainer` holds out. What was trained keeps the licence of what it was.
    """
    trainer = Trainer(system, data, out=out, cpu=cpu, **config.to_dict())
    trainer.system.card = _card(system.card, config.name)
    if unsaid := _unsaid(trainer):
        warnings.warn(_advice(unsaid), stacklevel=2)
    before = trainer.validate().get(trainer.task.selection_metric)
    outcome = trainer.train()
    if outcome.reason == "out of time" and trainer.engine.main:
        trainer.system.save(outcome.folder / "last")
    found = [outcome.folder / name for name in ("best", "final", "last")]
    after = outcome.best if math.isfinite(outcome.best) else None
    return FinetuneResult(outcome, before, after, next((folder for folder in found if folder.exists()), None))


def _card(card: ModelCard, name: str) -> ModelCard:
    notice = f"{card.notice}\n\nFine-tuned from {card.name}, whose licence holds for these weights too.".strip()
    return ModelCard(name=name, license=card.license, summary=card.summary, notice=notice)


def _unsaid(trainer: Trainer) -> list[str]:
    """The conditions that the model listens to and of which no clip knows a value."""
    heard = dict.fromkeys(name for _, name in trainer.system.spec.fusion.slot_ids())
    known = trainer.metadata()
    return [name for name in heard if not any(item.get(name) is not None for item in known)]


def _advice(unsaid: list[str]) -> str:
    lines = [
        f"no clip says anything of {', '.join(unsaid)}: the model learns the sound, and may forget what it was told that way; "
        f'write NAME.json beside NAME.wav, such as {{"{unsaid[0]}": ...}}'
    ]
    if "prompt" in unsaid:
        lines.append("or the words alone in NAME.txt, or set music={} where they are under `description`, as AudioCraft has it")
    return ", ".join(lines)
