"""`cadenza corpus`: music with exact labels, composed and rendered here."""

from pathlib import Path
from typing import Annotated

import typer


def corpus(
    out: Annotated[Path, typer.Argument(help="The folder to fill; an unfinished one is continued.")],
    hours: Annotated[float, typer.Option(help="Hours of audio in all.")] = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed composes the same pieces.")] = 1,
    held_out: Annotated[bool, typer.Option("--held-out", help="Captions in words that training never sees.")] = False,
    workers: Annotated[int | None, typer.Option(help="Processes; all cores by default.")] = None,
) -> None:
    """Compose and render a corpus of short pieces with exact labels and captions."""
    from cadenza.corpus.build import build_corpus

    split = "held_out" if held_out else "train"
    report = build_corpus(out, hours=hours, seed=seed, split=split, workers=workers, progress=_print_progress)
    print(f"{out}: {report.clips} clips, {report.rendered} of them rendered now ({report.seconds / 3600:.2f} hours)")


def _print_progress(done: int, total: int) -> None:
    if done == total or done % 100 == 0:
        print(f"{done} of {total} clips", flush=True)
