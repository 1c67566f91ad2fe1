"""`cadenza train`: a config and a folder in, a model out."""

from pathlib import Path
from typing import Annotated

import typer

from cadenza.apps.cli import CANCELLED


def train(
    config: Annotated[Path, typer.Argument(help="A training config (YAML); see configs/.")],
    data: Annotated[Path, typer.Option(help="A folder of audio, a manifest, or a store of codes.")],
    out: Annotated[Path, typer.Option(help="The run's folder; an unfinished run there is continued.")] = Path("runs/run"),
    set_: Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override, such as steps=1000.")] = [],
) -> None:
    """Train a codec or a generator."""
    import torch

    from cadenza.apps.api import load
    from cadenza.training.config import resolve_config
    from cadenza.training.trainer import Trainer

    chosen = resolve_config(config, set_, {})
    torch.manual_seed(chosen.seed)  # of the first weights; all other draws have generators of their own
    init_from = None if chosen.init_from is None else load(chosen.init_from)
    outcome = Trainer(chosen, data, out=out, init_from=init_from).train()
    if outcome.reason == "stopped":
        raise typer.Exit(CANCELLED)  # by Ctrl-C or SIGTERM, after a checkpoint
