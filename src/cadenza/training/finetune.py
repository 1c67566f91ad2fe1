"""Fine-tune all weights of a trained generator, with settings derived from the model."""

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

LARGE_MODEL = 10**9  # trained weights from which the learning rate is lower


@dataclass(frozen=True)
class FinetuneResult:
    """Result of a fine-tuning; losses are those of the holdout, None if there is none."""

    outcome: TrainingResult
    before: float | None  # loss of the original model
    after: float | None  # lowest loss of the run, with EMA weights
    folder: Path | None  # of the system with that loss, or of the newest without a holdout


def finetune_config(
    system: System, *, steps: int = 1000, minutes: float | None = None, overrides: Sequence[str] = ()
) -> TrainingConfig:
    """Return a config with segments of the model's context, a low learning rate and EMA.

    `overrides` are `key=value` lines that take precedence. Raises TrainingError for a codec.
    """
    if system.generator is None:
        raise TrainingError(
            "this model is a codec, but finetune trains generators; to continue training a codec, choose a config "
            "of its shape (configs/training/encodec_*.yaml) and run: cadenza train CONFIG --data DATA --set init_from=MODEL "
            "--set task.unquantized_steps=0"
        )
    trained = sum(p.numel() for part in (system.generator, system.conditioners) for p in part.parameters())
    half = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    fields: dict[str, Any] = {
        "name": f"{re.sub(r'[^a-zA-Z0-9._-]+', '-', system.card.name.rpartition('/')[2]).strip('-') or 'model'}-finetuned",
        "task": {"cfg_dropout": 0.1, "attribute_dropout": 0.1 if len(system.conditioners) > 1 else 0.0},
        "steps": steps,
        "minutes": minutes,
        "batch": 4,
        "seconds": system.generator.spec.max_frames / system.codec.frame_format.frame_rate,
        "lr": 1e-4 if trained < LARGE_MODEL else 3e-5,
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
        raise TrainingError("finetune trains a model, not its system; remove the overrides of system.*, or train a new model")
    context, rate = system.generator.spec.max_frames, system.codec.frame_format.frame_rate
    if round(config.seconds * rate) > context:
        raise TrainingError(f"seconds: {config.seconds:g} is longer than the model's context; use at most {context / rate:g}")
    return config


def finetune(system: System, data: Any, config: TrainingConfig, *, out: str | Path, cpu: bool = False) -> FinetuneResult:
    """Train a copy of a system with the config of `finetune_config`; an unfinished run in `out` is continued.

    The holdout is that of `Trainer`. The license of the model applies to the new weights.
    """
    trainer = Trainer(system, data, out=out, cpu=cpu, **config.to_dict())
    notice = f"{system.card.notice}\n\nFine-tuned from {system.card.name}, whose licence applies to these weights.".strip()
    trainer.system.card = ModelCard(name=config.name, license=system.card.license, summary=system.card.summary, notice=notice)
    names, metadata = dict.fromkeys(name for _, name in system.spec.fusion.slot_ids()), trainer.metadata()
    if missing := [name for name in names if all(item.get(name) is None for item in metadata)]:
        warnings.warn(_advice(missing), stacklevel=2)
    before = trainer.validate().get(trainer.task.selection_metric)
    outcome = trainer.train()
    if outcome.reason == "out of time" and trainer.engine.main:
        trainer.system.save(outcome.folder / "last")
    folders = [outcome.folder / name for name in ("best", "final", "last")]
    after = outcome.best if math.isfinite(outcome.best) else None
    return FinetuneResult(outcome, before, after, next((folder for folder in folders if folder.exists()), None))


def _advice(missing: list[str]) -> str:
    advice = f"no clip has a value for {', '.join(missing)}: the model may stop following these conditions; "
    advice += f'write NAME.json next to NAME.wav, such as {{"{missing[0]}": ...}}'
    if "prompt" in missing:
        advice += ", or only the text in NAME.txt, or set music={} if the text is under `description`, as in AudioCraft"
    return advice
