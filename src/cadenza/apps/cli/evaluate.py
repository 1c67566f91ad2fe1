"""`cadenza evaluate`: how well a model obeys, with intervals."""

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    model: Annotated[str, typer.Argument(help="A bundled model or a folder.")],
    data: Annotated[Path, typer.Option(help="A held-out corpus (`cadenza corpus --held-out`).")],
    clips: Annotated[int, typer.Option(help="Held-out clips whose requests are made, in each setting.")] = 200,
    out: Annotated[Path, typer.Option(help="The folder of the report.")] = Path("evaluation"),
    training: Annotated[Path | None, typer.Option(help="What the model was trained on, to look for copies.")] = None,
    settings: Annotated[
        str | None,
        typer.Option(help="Only these of the settings, such as alone,together; by default all that the model can be asked in."),
    ] = None,
    seeds: Annotated[int, typer.Option(help="Clips made of each request.", min=1)] = 1,
    guidance: Annotated[float | None, typer.Option(help="How strongly to follow the controls; the model's own.")] = None,
    quantize: Annotated[str | None, typer.Option(metavar="int8|int4", help="Evaluate it with weights of 8 or 4 bits.")] = None,
    codec: Annotated[bool, typer.Option("--codec", help="Measure only what survives the codec.")] = False,
) -> None:
    """Measure adherence, copying, loudness and speed, or the codec alone; write JSON, Markdown and plots."""
    from cadenza.apps.api import load
    from cadenza.core.device import choose_threads
    from cadenza.evaluation.codec_quality import evaluate_codec
    from cadenza.evaluation.report import EvaluationScope
    from cadenza.evaluation.report import evaluate as evaluate_system

    system = load(model, quantize=quantize)  # type: ignore[arg-type]
    choose_threads(system)
    if codec or system.generator is None:
        evaluate_codec(system, data, out=out, clips=clips, progress=_say)
    else:
        names = tuple(name.strip() for name in (settings or "").split(",") if name.strip())
        scope = EvaluationScope(clips, tuple(range(seeds)), names)
        evaluate_system(system, data, out=out, scope=scope, training=training, guidance=guidance, progress=_say)


def _say(line: str) -> None:
    print(line, flush=True)
