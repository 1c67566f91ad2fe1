"""`cadenza finetune`: a model that generates, and sound of one's own; a model that has learned it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cadenza.apps.cli import CANCELLED

if TYPE_CHECKING:
    from cadenza.system.system import System
    from cadenza.training.config import TrainingConfig
    from cadenza.training.finetune import FinetuneResult


def finetune(
    model: Annotated[
        str,
        typer.Argument(help="What to start from: a bundled model, a folder (ours, transformers', AudioCraft's), a hub name."),
    ],
    data: Annotated[
        Path,
        typer.Argument(
            help="A folder of audio with captions (NAME.txt, NAME.json), a manifest, or what `cadenza encode` made."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="The run's folder; an unfinished run there is continued.", show_default="runs/MODEL-finetuned"),
    ] = None,
    steps: Annotated[int, typer.Option(help="Optimiser steps in all; each sees 4 pieces.", min=1)] = 1000,
    minutes: Annotated[
        float | None, typer.Option(help="Stop after so many minutes, to be continued.", show_default="no limit")
    ] = None,
    set_: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change another setting, any number of times: lr (1e-4; 3e-5 from 1e9 weights on), seconds (of a piece; what "
            "the model makes at once), batch (4), accumulation (1), warmup (steps; a tenth, at most 100), ema (0.99; null: "
            "off), task.guidance_dropout (0.1), precision (bf16 on a GPU, else fp32), validate_every (steps; a tenth), ...",
        ),
    ] = [],
) -> None:
    """Train all weights of a model that generates on sound of your own; its licence stays.

    A quarter of the clips, at most 16, is held out: the loss on them before and after is said at the end. The run's folder
    holds what `cadenza train` writes: log.jsonl, samples, checkpoints, and as models `best` and `final`.
    """
    import torch

    from cadenza.apps.api import load
    from cadenza.data.sources import load_manifest
    from cadenza.training.finetune import finetune as run
    from cadenza.training.finetune import finetune_config

    if not data.exists():
        load_manifest(data)  # says so, before a large model is read
    system = load(model, device="cpu")
    config = finetune_config(system, steps=steps, minutes=minutes, overrides=set_)
    _begin(system, config)
    torch.manual_seed(config.seed)
    done = run(system, data, config, out=Path("runs") / config.name if out is None else out)
    _end(done, config.name, system.card.license)
    if done.outcome.reason == "stopped":
        raise typer.Exit(CANCELLED)  # by Ctrl-C or SIGTERM, after a checkpoint


def _begin(system: "System", config: "TrainingConfig") -> None:
    weights = sum(p.numel() for part in (system.generator, system.conditioners) for p in part.parameters())  # type: ignore[union-attr]
    print(f"{system.card.name}: {weights / 1e6:.1f} M weights to train, licence {system.card.license}")
    ema = "no average" if config.ema is None else f"average {config.ema:g}"
    print(
        f"{config.steps} steps of {config.batch * config.accumulation} pieces of up to {config.seconds:g} s, "
        f"lr {config.lr:g} after {config.warmup} steps, {ema}, guidance dropout {config.task.cfg_dropout:g}, "  # type: ignore[attr-defined]
        f"{config.precision}",
        flush=True,
    )


def _end(done: "FinetuneResult", name: str, licence: str) -> None:
    if done.before is None:
        print("no loss was measured: nothing was held out; give 4 clips or more")
    elif done.after is None:
        print(f"loss on held-out clips: {done.before:.4f} before; not measured yet since, see --set validate_every")
    else:
        print(f"loss on held-out clips: {done.before:.4f} before, {done.after:.4f} at its best")
        if done.after >= done.before:
            print("it has not fallen: the model knew as much before; try a lower lr, more steps or more clips")
    if done.folder is not None:
        print(f"{done.folder}: {name}, licence of the weights: {licence}")
