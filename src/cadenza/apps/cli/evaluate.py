"""`cadenza evaluate`: adherence of a model to its controls, with intervals."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer


def evaluate_(
    model: Annotated[str, typer.Argument(help="Bundled model or folder.")],
    data: Annotated[Path, typer.Option(help="Held-out corpus (`cadenza corpus --held-out`).")],
    clips: Annotated[int, typer.Option(help="Held-out clips whose requests are generated, in each setting.")] = 200,
    out: Annotated[Path, typer.Option(help="Folder of the report.")] = Path("evaluation"),
    training: Annotated[Path | None, typer.Option(help="Training data of the model, to search for copies.")] = None,
    settings: Annotated[str | None, typer.Option(help="Settings, such as alone,together; default: all.")] = None,
    seeds: Annotated[int, typer.Option(help="Clips generated of each request.", min=1)] = 1,
    guidance: Annotated[float | None, typer.Option(help="Guidance scale; default: the model's.")] = None,
    quantize: Annotated[str | None, typer.Option(metavar="int8|int4", help="Quantise the weights first.")] = None,
    codec: Annotated[bool, typer.Option("--codec", help="Measure only the codec.")] = False,
) -> None:
    """Measure adherence, copying, loudness and speed, or the codec alone; write JSON, Markdown and plots."""
    from cadenza.apps.api import load
    from cadenza.core.device import choose_threads
    from cadenza.evaluation.codec_quality import evaluate_codec
    from cadenza.evaluation.report import EvaluationScope, evaluate

    system, progress = load(model, quantize=quantize), partial(print, flush=True)  # type: ignore[arg-type]
    choose_threads(system)
    if codec or system.generator is None:
        evaluate_codec(system, data, out=out, clips=clips, progress=progress)
    else:
        names = tuple(name.strip() for name in (settings or "").split(",") if name.strip())
        scope = EvaluationScope(clips, tuple(range(seeds)), names)
        evaluate(system, data, out=out, scope=scope, training=training, guidance=guidance, progress=progress)
