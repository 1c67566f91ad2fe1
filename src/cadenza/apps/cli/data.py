"""`cadenza corpus` and `cadenza data`: a procedural corpus; checks, packing and cached features of a data set."""

import math
import sys
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(name="data", help="Check data before training, and pack it.", rich_markup_mode=None, no_args_is_help=True)


@app.command("check")
def check(
    data: Annotated[Path, typer.Argument(help="Folder of audio, manifest, shards or dataset config.")],
    sample_rate: Annotated[int | None, typer.Option(min=1, help="Expected Hz of every file; default: the most common.")] = None,
    channels: Annotated[int | None, typer.Option(min=1, help="Expected channels; default: the most common number.")] = None,
    min_seconds: Annotated[float | None, typer.Option(help="Shortest length without an issue; default: at most 0.5.")] = None,
    json: Annotated[Path | None, typer.Option(help="Also write the report as JSON.")] = None,
) -> None:
    """Find files that would impair training; the exit status is 1 if there are any, else 0.

    Unreadable, missing or truncated; silent, clipped, with a DC offset, a dead channel or channels out of phase;
    duplicates, also re-encoded; captions missing or constant; odd sample rates, channels and lengths.
    """
    from cadenza.data.validation import validate_dataset

    if min_seconds is not None and not 0 <= min_seconds < math.inf:
        raise typer.BadParameter(f"{min_seconds} is not a number of seconds", param_hint="--min-seconds")
    report = validate_dataset(data, sample_rate=sample_rate, channels=channels, min_seconds=min_seconds, progress=_progress)
    print(report)
    if json is not None:
        report.write(json)
    if report.issues:
        raise typer.Exit(1)


@app.command("pack")
def pack(
    data: Annotated[Path, typer.Argument(help="Folder of audio, manifest or dataset config.")],
    out: Annotated[Path, typer.Argument(help="New folder of shards.")],
    clips: Annotated[int, typer.Option(min=1, help="Clips in each shard.")] = 1000,
) -> None:
    """Pack audio and metadata into WebDataset shards, which can be trained on and checked like a folder."""
    from cadenza.data.sources import load_manifest
    from cadenza.data.webdataset import write_shards

    manifest, files = load_manifest(data)
    if files.broken:
        print(files, file=sys.stderr)
    report = write_shards(manifest, out, clips=clips, on_broken_file="skip", progress=partial(_progress, "packing"))
    print(f"{out}: {report}")
    if files.broken or report.broken:
        raise typer.Exit(1)


@app.command("cache")
def cache(
    data: Annotated[Path, typer.Argument(help="Folder of audio, manifest, shards, or store of codes.")],
    model: Annotated[str, typer.Option(help="Model of the frozen encoders: a training config (YAML), or as for generate.")],
    folder: Annotated[Path | None, typer.Option(help="Folder.", show_default="that of CADENZA_CACHE, or the user's")] = None,
    limit: Annotated[float, typer.Option(min=0.001, help="GB at most; the oldest features are removed first.")] = 20.0,
) -> None:
    """Compute the features of frozen encoders (T5, CLAP) for every prompt of the data before training.

    An interrupted run is continued. Training uses the features with `cache: true` in its config, generation if CADENZA_CACHE
    names the folder.
    """
    from cadenza.apps.api import load
    from cadenza.system.feature_cache import FeatureCache
    from cadenza.system.system import System
    from cadenza.training.config import TrainingConfig
    from cadenza.training.precompute import precompute_features

    features, to_item = FeatureCache(folder, limit=int(limit * 1e9)), None
    if Path(model).suffix in (".yaml", ".yml", ".json"):
        config = TrainingConfig.load(model)
        system, to_item = System(config.system), config.music
    else:
        system = load(model)
    report = precompute_features(system, data, features, to_item=to_item, progress=partial(_progress, "features"))
    for clip, reason in report.broken.items():
        print(f"{clip}: {reason}", file=sys.stderr)
    print(f"{features.folder}: {report}")
    if report.broken:
        raise typer.Exit(1)


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


def _progress(activity: str, done: int, total: int) -> None:
    """Overwrite a line of progress on a terminal; print nothing elsewhere."""
    if sys.stderr.isatty():
        print(f"\r{activity}: {done} of {total}", end="\n" if done == total else "", file=sys.stderr, flush=True)
