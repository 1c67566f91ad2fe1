"""`cadenza train`: a trained model from a config and a folder."""

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
