"""`cadenza data`: what is wrong with a data set, and packing it."""

import math
import sys
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(name="data", help="Check data before training, and pack it.", rich_markup_mode=None, no_args_is_help=True)


@app.command("check")
def check(
    data: Annotated[Path, typer.Argument(help="A folder of audio, a manifest, shards or a dataset config.")],
    sample_rate: Annotated[
        int | None, typer.Option(min=1, help="Hz that every file should have; by default as most have.")
    ] = None,
    channels: Annotated[
        int | None, typer.Option(min=1, help="Channels that every file should have; by default as most have.")
    ] = None,
    min_seconds: Annotated[
        float | None, typer.Option(help="Shortest length without an issue, in seconds; 0.5 or less by default.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="Also write the report as JSON.")] = None,
) -> None:
    """Find files that would spoil training: exit status 1 where there are any, 0 where all is well.

    Unreadable, missing or truncated; silent, clipped, with a DC offset, a dead channel or channels out of phase;
    duplicates, also re-encoded; captions missing or constant; odd sample rates, channels and lengths.
    """
    from cadenza.data.validation import validate_dataset

    if min_seconds is not None and not 0 <= min_seconds < math.inf:
        raise typer.BadParameter(f"{min_seconds} is no number of seconds", param_hint="--min-seconds")
    found = validate_dataset(data, sample_rate=sample_rate, channels=channels, min_seconds=min_seconds, progress=_progress)
    print(found)
    if json is not None:
        found.write(json)
    if found.issues:
        raise typer.Exit(1)


@app.command("pack")
def pack(
    data: Annotated[Path, typer.Argument(help="A folder of audio, a manifest or a dataset config.")],
    out: Annotated[Path, typer.Argument(help="The new folder of shards.")],
    clips: Annotated[int, typer.Option(min=1, help="Clips in each shard.")] = 1000,
) -> None:
    """Pack audio and metadata into WebDataset shards, which train and check as a folder does."""
    from cadenza.data.sources import load_manifest
    from cadenza.data.webdataset import write_shards

    manifest, found = load_manifest(data)
    if found.broken:
        print(found, file=sys.stderr)
    report = write_shards(
        manifest, out, clips=clips, on_broken_file="skip", progress=lambda done, all: _progress("packing", done, all)
    )
    print(f"{out}: {report}")
    if found.broken or report.broken:
        raise typer.Exit(1)


@app.command("cache")
def cache(
    data: Annotated[Path, typer.Argument(help="A folder of audio, a manifest, shards, or a store of codes.")],
    model: Annotated[str, typer.Option(help="Whose frozen encoders: a training config (YAML), or a model as for generate.")],
    folder: Annotated[
        Path | None,
        typer.Option(help="Where to keep them.", show_default="that of CADENZA_CACHE, or the user's"),
    ] = None,
    limit: Annotated[float, typer.Option(min=0.001, help="GB at most; what was stored first goes then.")] = 20.0,
) -> None:
    """Make what frozen encoders (T5, CLAP) give for every prompt of the data, before training reads it.

    Stopped, it goes on where it was. Training takes it with `cache: true` in its config; generating, where CADENZA_CACHE
    names the folder.
    """
    from cadenza.apps.api import load
    from cadenza.system.feature_cache import FeatureCache
    from cadenza.system.system import System
    from cadenza.training.config import TrainingConfig
    from cadenza.training.precompute import precompute_features

    kept, to_item = FeatureCache(folder, limit=int(limit * 1e9)), None
    if Path(model).suffix in (".yaml", ".yml", ".json"):
        config = TrainingConfig.load(model)
        system, to_item = System(config.system), config.music
    else:
        system = load(model)
    done = precompute_features(system, data, kept, to_item=to_item, progress=lambda done, all: _progress("features", done, all))
    for clip, reason in done.broken.items():
        print(f"{clip}: {reason}", file=sys.stderr)
    print(f"{kept.folder}: {done}")
    if done.broken:
        raise typer.Exit(1)


def _progress(doing: str, done: int, total: int) -> None:
    """One line on a terminal, overwritten; nothing where nobody looks."""
    if sys.stderr.isatty():
        end = "\n" if done == total else ""
        print(f"\r{doing}: {done} of {total}", end=end, file=sys.stderr, flush=True)
