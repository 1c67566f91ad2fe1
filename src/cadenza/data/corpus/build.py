"""A corpus on disk: clips made in parallel, each whole or absent, the same however often it is interrupted."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile

from cadenza.core.atomic import atomic_write, remove_stale_temp_files
from cadenza.core.errors import DataError

from . import fluidsynth
from .captions import captions
from .chance import Stream, stream
from .compose import compose, plan_piece
from .piece import Piece
from .render import render_clips
from .truth import truth
from .vocabulary import Split

FORMAT = 1
BATCH = 16  # clips in one run of FluidSynth; part of the format, since a run is rendered from its first clip on
PER_FOLDER = 1000
MANIFEST_EVERY = 32

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Corpus:
    """What the clips of a corpus depend on, apart from how many there are."""

    seed: int
    split: Split = "train"
    sample_rate: int = 24_000


@dataclass(frozen=True)
class CorpusReport:
    """What a build found and made: clips in all, clips made now, their seconds, and how long it took."""

    out: Path
    clips: int
    made: int
    seconds: float
    wall_seconds: float


def audio_name(index: int) -> str:
    """The path of a clip's audio below the corpus folder."""
    return f"{index // PER_FOLDER:04d}/{index:06d}.flac"


def clip_id(seed: int, index: int) -> str:
    """A name for a clip that is unique among corpora of other seeds."""
    return f"{seed}-{index:06d}"


def sidecar(corpus: Corpus, index: int, piece: Piece) -> dict[str, Any]:
    """The record written beside a clip: its captions and everything that is true of it."""
    facts = truth(piece)
    said = captions(facts, stream(corpus.seed, index, Stream.CAPTIONS), corpus.split)
    return {
        "id": clip_id(corpus.seed, index),
        "prompt": [c.text for c in said],
        "prompt_mentions": [list(c.mentions) for c in said],
        "prompt_unseen": [list(c.unseen) for c in said],
        **facts,
    }


def clip_count(seed: int, hours: float) -> int:
    """The least number of clips that last the given hours."""
    count, seconds = 0, 0.0
    while seconds < hours * 3600:
        seconds += plan_piece(seed, count)[0].seconds
        count += 1
    return count


def write_whole(path: Path, data: bytes) -> None:
    """Writes a file that is complete or not there, in a folder that is made if need be."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{path.parent}: cannot be made: {error}; make room or give another folder, then go on") from error
    with atomic_write(path, DataError) as file:
        file.write(data)


def _flac(wave: np.ndarray, rate: int) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, wave, rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def _line(value: Any) -> bytes:
    return (json.dumps(value, separators=(",", ":")) + "\n").encode()


def _done(out: Path, index: int) -> bool:
    audio = out / audio_name(index)
    return audio.with_suffix(".json").is_file() and audio.is_file()


def make_batch(out: Path, corpus: Corpus, indices: range) -> int:
    """Makes those clips of a batch that are not there yet; returns how many."""
    missing = [i for i in indices if not _done(out, i)]
    if not missing:
        return 0
    made = render_clips(corpus.seed, range(indices.start, missing[-1] + 1), corpus.sample_rate)
    for index in missing:
        piece, wave = made[index - indices.start]
        audio = out / audio_name(index)
        write_whole(audio, _flac(wave, corpus.sample_rate))
        write_whole(audio.with_suffix(".json"), _line(sidecar(corpus, index, piece)))
    return len(missing)


def _batches(count: int) -> list[range]:
    return [range(first, min(first + BATCH, count)) for first in range(0, count, BATCH)]


def _run(out: Path, corpus: Corpus, batches: list[range], workers: int) -> Iterator[int]:
    """Makes batches one after another or in processes of their own; yields the clips made by each."""
    if workers == 1 or len(batches) <= 1:
        for batch in batches:
            yield make_batch(out, corpus, batch)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        tasks = [pool.submit(make_batch, out, corpus, batch) for batch in batches]
        try:
            for task in as_completed(tasks):
                yield task.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def write_manifest(out: Path, corpus: Corpus, seconds: Iterable[float]) -> int:
    """Lists, one JSON line each, the clips that are complete; returns how many."""
    lines = []
    for index, length in enumerate(seconds):
        if _done(out, index):
            name = audio_name(index)
            heard = {"seconds": length, "sample_rate": corpus.sample_rate, "channels": 1}
            lines.append(_line({"id": clip_id(corpus.seed, index), "audio": name, **heard}))
    write_whole(out / "manifest.jsonl", b"".join(lines))
    return len(lines)


def _describe(out: Path, corpus: Corpus, hours: float) -> None:
    """Writes corpus.json, after making sure that what is there belongs to the same corpus."""
    path = out / "corpus.json"
    font = fluidsynth.soundfont(fluidsynth.soundfont_path())
    record = {
        "format": FORMAT,
        **asdict(corpus),
        "soundfont": font.to_dict(),
        "fluidsynth": fluidsynth.version(),
    }
    if path.is_file():
        try:
            before = json.loads(path.read_text())
        except ValueError as error:
            raise DataError(f"{path}: is no record of a corpus ({error}): give another folder, or remove it") from None
        for name, value in record.items():
            if before.get(name) != value:
                raise DataError(
                    f"{path}: has {name} {before.get(name)!r}, asked for {value!r}: give another folder or the same {name}"
                )
        hours = max(hours, float(before.get("hours", 0.0)))
    write_whole(path, (json.dumps({**record, "hours": hours}, indent=2) + "\n").encode())


def build(
    out: Path,
    *,
    hours: float,
    seed: int,
    split: Split = "train",
    workers: int | None = None,
    sample_rate: int = 24_000,
    progress: Progress | None = None,
) -> CorpusReport:
    """A corpus of at least the given hours in a folder, made now as far as it was not there.

    A clip is a function of seed, number and split; more hours only add clips. `progress` is
    called with the clips looked at so far and in all.
    """
    if not 0 < hours <= 10_000:
        raise DataError(f"hours is {hours}: give a number above 0 and at most 10000")
    if seed < 0:
        raise DataError(f"seed is {seed}: give 0 or a larger number")
    if split not in ("train", "held_out"):
        raise DataError(f"split is '{split}': choose 'train' or 'held_out'")
    begun = time.monotonic()
    corpus = Corpus(seed, split, sample_rate)
    fluidsynth.program_path()
    try:
        out.mkdir(parents=True, exist_ok=True)
        _describe(out, corpus, hours)
    except OSError as error:
        raise DataError(f"{out}: cannot be written: {error}") from error
    count = clip_count(seed, hours)
    seconds = [plan_piece(seed, i)[0].seconds for i in range(count)]
    batches = _batches(count)
    made = 0
    for place, fresh in enumerate(_run(out, corpus, batches, workers or os.cpu_count() or 1), 1):
        made += fresh
        if fresh and place % MANIFEST_EVERY == 0:
            write_manifest(out, corpus, seconds)
        if progress:
            progress(min(place * BATCH, count), count)
    total = write_manifest(out, corpus, seconds)
    for folder in [out, *(path for path in out.iterdir() if path.is_dir())]:
        remove_stale_temp_files(folder)  # what a build that was killed has left
    return CorpusReport(out, total, made, round(sum(seconds), 3), time.monotonic() - begun)


def recaption(out: Path) -> int:
    """Writes the sidecars of a corpus anew, leaving its audio as it is; returns how many."""
    try:
        record = json.loads((out / "corpus.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise DataError(f"{out}: is not a corpus, its corpus.json cannot be read: {error}") from error
    corpus = Corpus(record["seed"], record["split"], record["sample_rate"])
    count = clip_count(corpus.seed, record["hours"])
    done = [i for i in range(count) if _done(out, i)]
    for index in done:
        path = (out / audio_name(index)).with_suffix(".json")
        write_whole(path, _line(sidecar(corpus, index, compose(corpus.seed, index))))
    return len(done)
