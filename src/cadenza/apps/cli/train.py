"""`cadenza train` and `cadenza finetune`: training from a config, and of a pretrained generator."""

from pathlib import Path
from typing import Annotated

import typer

from cadenza.apps.cli import CANCELLED


def train(
    config: Annotated[Path, typer.Argument(help="Training config (YAML); see configs/.")],
    data: Annotated[Path, typer.Option(help="Folder of audio, manifest, or store of codes.")],
    out: Annotated[Path, typer.Option(help="Folder of the run; an unfinished run is continued.")] = Path("runs/run"),
    set_: Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override, such as steps=1000.")] = [],
) -> None:
    """Train a codec or a generator."""
    import torch

    from cadenza.apps.api import load
    from cadenza.training.config import resolve_config
    from cadenza.training.trainer import Trainer

    training = resolve_config(config, set_, {})
    torch.manual_seed(training.seed)  # of the initial weights; other draws have generators of their own
    init_from = None if training.init_from is None else load(training.init_from)
    if Trainer(training, data, out=out, init_from=init_from).train().reason == "stopped":
        raise typer.Exit(CANCELLED)  # by Ctrl-C or SIGTERM, after a checkpoint


def finetune_(
    model: Annotated[str, typer.Argument(help="Bundled model, folder (also of transformers or AudioCraft), or hub name.")],
    data: Annotated[
        Path, typer.Argument(help="Folder of audio with captions (NAME.txt or .json), manifest, or store of codes.")
    ],
    out: Annotated[Path | None, typer.Option(help="Folder of the run. Default: runs/MODEL-finetuned.")] = None,
    steps: Annotated[int, typer.Option(help="Optimizer steps in all, of 4 clips each.", min=1)] = 1000,
    minutes: Annotated[float | None, typer.Option(help="Stop after this time; the run can be continued.")] = None,
    set_: Annotated[
        list[str],
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Change another setting, any number of times: lr (1e-4; 3e-5 from 1e9 weights on), seconds (of a clip; the "
            "model's context), batch (4), accumulation (1), warmup (steps; a tenth, at most 100), ema (0.99; null: off), "
            "task.guidance_dropout (0.1), precision (bf16 on a GPU, else fp32), validate_every (steps; a tenth), ...",
        ),
    ] = [],
) -> None:
    """Train all weights of a generator on your own audio; the licence of the model applies to the result.

    A quarter of the clips, at most 16, is held out; the loss on them before and after is printed at the end. The folder of
    the run has the contents that `cadenza train` writes: log.jsonl, samples, checkpoints, and the models `best` and `final`.
    """
    import torch

    from cadenza.apps.api import load
    from cadenza.data.sources import load_manifest
    from cadenza.training.finetune import finetune, finetune_config

    if not data.exists():
        load_manifest(data)  # raises before a large model is loaded
    system = load(model, device="cpu")
    config = finetune_config(system, steps=steps, minutes=minutes, overrides=set_)
    weights = sum(p.numel() for part in (system.generator, system.conditioners) for p in part.parameters())  # type: ignore[union-attr]
    print(f"{system.card.name}: {weights / 1e6:.1f} M weights to train, licence {system.card.license}")
    ema = "no average" if config.ema is None else f"average {config.ema:g}"
    print(
        f"{config.steps} steps of {config.batch * config.accumulation} pieces of up to {config.seconds:g} s, "
        f"lr {config.lr:g} after {config.warmup} steps, {ema}, guidance dropout {config.task.cfg_dropout:g}, "  # type: ignore[attr-defined]
        f"{config.precision}",
        flush=True,
    )
    torch.manual_seed(config.seed)
    result = finetune(system, data, config, out=Path("runs") / config.name if out is None else out)
    if result.before is None:
        print("no loss was measured, as no clip was held out; give 4 clips or more")
    elif result.after is None:
        print(f"loss on held-out clips: {result.before:.4f} before; not measured since, see --set validate_every")
    else:
        print(f"loss on held-out clips: {result.before:.4f} before, {result.after:.4f} at its best")
        if result.after >= result.before:
            print("the loss has not fallen; try a lower lr, more steps or more clips")
    if result.folder is not None:
        print(f"{result.folder}: {config.name}, licence of the weights: {system.card.license}")
    if result.outcome.reason == "stopped":
        raise typer.Exit(CANCELLED)  # by Ctrl-C or SIGTERM, after a checkpoint
