"""`cadenza export`: a model in the layout of another library."""

from pathlib import Path
from typing import Annotated

import typer


def export_(
    model: Annotated[str, typer.Argument(help="Bundled model, folder, or name on the hub.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; it must be new or empty.")],
) -> None:
    """Write a MusicGen or EnCodec model in the layout of transformers."""
    from cadenza.apps.api import load
    from cadenza.importers.export import export

    for line in export(load(model, device="cpu"), out):
        print(line)
