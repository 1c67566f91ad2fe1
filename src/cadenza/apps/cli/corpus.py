"""`cadenza corpus`: composed and rendered music with exact labels."""

from pathlib import Path
from typing import Annotated

import typer


def corpus(
    out: Annotated[Path, typer.Argument(help="Folder to fill; an unfinished one is continued.")],
    hours: Annotated[float, typer.Option(help="Hours of audio in all.")] = 1.0,
    seed: Annotated[int, typer.Option(help="The same seed composes the same pieces.")] = 1,
    held_out: Annotated[bool, typer.Option("--held-out", help="Captions in words that are not used for training.")] = False,
    workers: Annotated[int | None, typer.Option(help="Processes; default: all cores.")] = None,
) -> None:
    """Compose and render a corpus of short pieces with exact labels and captions."""
    from cadenza.corpus.build import build_corpus

    def print_progress(done: int, total: int) -> None:
        if done == total or done % 100 == 0:
            print(f"{done} of {total} clips", flush=True)

    split = "held_out" if held_out else "train"
    report = build_corpus(out, hours=hours, seed=seed, split=split, workers=workers, progress=print_progress)
    print(f"{out}: {report.clips} clips, {report.rendered} of them rendered now ({report.seconds / 3600:.2f} hours)")
