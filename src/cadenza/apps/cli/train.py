"""`cadenza train`: a config and a folder in, a model out."""

from pathlib import Path
from typing import Annotated

import typer


def train(
    config: Annotated[Path, typer.Argument(help="A training config (YAML); see configs/.")],
    data: Annotated[Path, typer.Option(help="A folder of audio, a manifest, or a store of codes.")],
    out: Annotated[Path, typer.Option(help="The run's folder; an unfinished run there is continued.")] = Path("runs/run"),
    set_: Annotated[list[str], typer.Option("--set", metavar="KEY=VALUE", help="Override, such as steps=1000.")] = [],
) -> None:
    """Train a codec or a generator."""
    from cadenza.training.trainer import Trainer

    Trainer(config, data=data, out=out, overrides=set_).train()
