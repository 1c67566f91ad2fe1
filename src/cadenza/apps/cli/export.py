"""`cadenza export`: a model as another library's folder."""

from pathlib import Path
from typing import Annotated

import typer


def export(
    model: Annotated[str, typer.Argument(help="A bundled model, a folder, or a name in the hub.")],
    out: Annotated[Path, typer.Argument(help="The folder to write; it must be new or empty.")],
) -> None:
    """Write a MusicGen or an EnCodec in the layout of transformers."""
    from cadenza.apps.api import load
    from cadenza.importers.export import export as write

    system = load(model, device="cpu")
    for line in write(system, out):
        print(line)
