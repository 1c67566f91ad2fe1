"""`cadenza evaluate`: how well a model obeys, with intervals."""

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    model: Annotated[str, typer.Argument(help="A bundled model or a folder.")],
    data: Annotated[Path, typer.Option(help="A held-out corpus (`cadenza corpus --held-out`).")],
    clips: Annotated[int, typer.Option(help="Clips to generate in each setting.")] = 200,
    out: Annotated[Path, typer.Option(help="The folder of the report.")] = Path("evaluation"),
) -> None:
    """Measure adherence, copying, loudness and speed; write JSON, Markdown and plots."""
    from cadenza.apps.api import load
    from cadenza.evaluation.report import evaluate as measure

    measure(load(model), data, clips=clips, out=out, progress=lambda line: print(line, flush=True))
