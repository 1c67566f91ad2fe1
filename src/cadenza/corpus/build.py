"""Build a corpus on disk: in parallel, resumable, and equal however often the build is interrupted."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import soundfile

from cadenza.core.atomic import atomic_write, remove_stale_temp_files
from cadenza.core.errors import DataError

from .captions import ground_truth, make_captions
from .compose import compose_piece, plan_piece
from .piece import Piece, RandomStream, random_stream
from .render import find_fluidsynth, find_soundfont, fluidsynth_version, identify_soundfont, render_clips
from .tables import Split

FORMAT = 1
BATCH = 16  # clips in one run of FluidSynth; part of the format, since a run is rendered from its first clip on
CLIPS_PER_FOLDER = 1000
BATCHES_PER_MANIFEST = 32

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Corpus:
    """Settings that determine all clips of a corpus."""

    seed: int
    split: Split = "train"
    sample_rate: int = 24_000


@dataclass(frozen=True)
class CorpusReport:
    """Result of a build: all clips, those rendered by it, the length of all, and the time it took."""

    out: Path
    clips: int
    rendered: int
    seconds: float
    wall_seconds: float


def build_corpus(
    out: Path,
    *,
    hours: float,
    seed: int,
    split: Split = "train",
    workers: int | None = None,
    sample_rate: int = 24_000,
    progress: Progress | None = None,
) -> CorpusReport:
    """Build a corpus of at least the given hours in a folder, or complete the one in it.

    A clip is a function of seed, index and split; more hours only add clips. `progress` is called with the
    number of clips processed and of all. Raises DataError if the folder holds another corpus.
    """
    if not 0 < hours <= 10_000:
        raise DataError(f"hours is {hours}: give a number above 0 and at most 10000")
    if seed < 0:
        raise DataError(f"seed is {seed}: give 0 or a larger number")
    if split not in get_args(Split):
        raise DataError(f"split is '{split}': choose 'train' or 'held_out'")
    start = time.monotonic()
    corpus = Corpus(seed, split, sample_rate)
    find_fluidsynth()
    try:
        out.mkdir(parents=True, exist_ok=True)
        _write_header(out, corpus, hours)
        durations = clip_durations(seed, hours)
        rendered = 0
        for number, count in enumerate(_render_batches(out, corpus, len(durations), workers or os.cpu_count() or 1), 1):
            rendered += count
            if count and number % BATCHES_PER_MANIFEST == 0:
                _write_manifest(out, corpus, durations)
            if progress:
                progress(min(number * BATCH, len(durations)), len(durations))
        clips = _write_manifest(out, corpus, durations)
        for folder in [out, *(path for path in out.iterdir() if path.is_dir())]:
            remove_stale_temp_files(folder)  # of a build that was killed
    except OSError as error:
        raise DataError(
            f"{out}: cannot be written: {error}; check free space and permissions, or choose another folder"
        ) from error
    return CorpusReport(out, clips, rendered, round(sum(durations), 3), time.monotonic() - start)


def rewrite_captions(out: Path) -> int:
    """Write the records of all clips of a corpus again, without its audio; returns their number."""
    try:
        header = json.loads((out / "corpus.json").read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise DataError(f"{out}: is not a corpus, its corpus.json cannot be read: {error}") from error
    corpus = Corpus(header["seed"], header["split"], header["sample_rate"])
    indices = [i for i in range(len(clip_durations(corpus.seed, header["hours"]))) if _is_complete(out, i)]
    for index in indices:
        _write_record(out, corpus, index, compose_piece(corpus.seed, index))
    return len(indices)


def clip_durations(seed: int, hours: float) -> list[float]:
    """Return the lengths in seconds of the fewest clips that last the given hours."""
    durations: list[float] = []
    total = 0.0
    while total < hours * 3600:
        durations.append(plan_piece(seed, len(durations))[0].seconds)
        total += durations[-1]
    return durations


def clip_record(corpus: Corpus, index: int, piece: Piece) -> dict[str, Any]:
    """Return the record of a clip: its captions and all labels."""
    labels = ground_truth(piece)
    captions = make_captions(labels, random_stream(corpus.seed, index, RandomStream.CAPTIONS), corpus.split)
    return {
        "id": _clip_id(corpus, index),
        "prompt": [c.text for c in captions],
        "prompt_mentions": [list(c.mentions) for c in captions],
        "prompt_unseen": [list(c.unseen) for c in captions],
        **labels,
    }


def _render_batches(out: Path, corpus: Corpus, clips: int, workers: int) -> Iterator[int]:
    """Render all batches, in worker processes if there are several; yields the clips rendered of each."""
    batches = [range(first, min(first + BATCH, clips)) for first in range(0, clips, BATCH)]
    if workers == 1 or len(batches) <= 1:
        for batch in batches:
            yield _render_batch(out, corpus, batch)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        tasks = [pool.submit(_render_batch, out, corpus, batch) for batch in batches]
        try:
            for task in as_completed(tasks):
                yield task.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _render_batch(out: Path, corpus: Corpus, indices: range) -> int:
    """Render the clips of a batch that are not complete; returns their number."""
    missing = [i for i in indices if not _is_complete(out, i)]
    if not missing:
        return 0
    clips = render_clips(corpus.seed, range(indices.start, missing[-1] + 1), corpus.sample_rate)
    for index in missing:
        piece, audio = clips[index - indices.start]
        path = out / _audio_name(index)
        path.parent.mkdir(exist_ok=True)
        with atomic_write(path, DataError) as file:
            soundfile.write(file, audio, corpus.sample_rate, format="FLAC", subtype="PCM_16")
        _write_record(out, corpus, index, piece)
    return len(missing)


def _write_record(out: Path, corpus: Corpus, index: int, piece: Piece) -> None:
    with atomic_write((out / _audio_name(index)).with_suffix(".json"), DataError) as file:
        file.write(_json_line(clip_record(corpus, index, piece)))


def _write_manifest(out: Path, corpus: Corpus, durations: Sequence[float]) -> int:
    """Write one JSON line for each complete clip; returns their number."""
    lines = [
        _json_line(
            {
                "id": _clip_id(corpus, index),
                "audio": _audio_name(index),
                "seconds": seconds,
                "sample_rate": corpus.sample_rate,
                "channels": 1,
            }
        )
        for index, seconds in enumerate(durations)
        if _is_complete(out, index)
    ]
    with atomic_write(out / "manifest.jsonl", DataError) as file:
        file.writelines(lines)
    return len(lines)


def _write_header(out: Path, corpus: Corpus, hours: float) -> None:
    """Write corpus.json; raises DataError if the folder holds another corpus."""
    path = out / "corpus.json"
    soundfont = identify_soundfont(find_soundfont())
    header = {"format": FORMAT, **asdict(corpus), "soundfont": soundfont, "fluidsynth": fluidsynth_version()}
    if path.is_file():
        try:
            previous = json.loads(path.read_text())
        except ValueError as error:
            raise DataError(f"{path}: is not valid JSON ({error}): choose another folder, or remove the file") from None
        for name, value in header.items():
            if previous.get(name) != value:
                raise DataError(
                    f"{path}: has {name} {previous.get(name)!r}, not {value!r}: choose another folder or the same {name}"
                )
        hours = max(hours, float(previous.get("hours", 0.0)))
    with atomic_write(path, DataError) as file:
        file.write((json.dumps({**header, "hours": hours}, indent=2) + "\n").encode())


def _clip_id(corpus: Corpus, index: int) -> str:
    return f"{corpus.seed}-{index:06d}"


def _audio_name(index: int) -> str:
    return f"{index // CLIPS_PER_FOLDER:04d}/{index:06d}.flac"


def _is_complete(out: Path, index: int) -> bool:
    audio = out / _audio_name(index)
    return audio.with_suffix(".json").is_file() and audio.is_file()


def _json_line(value: Any) -> bytes:
    return (json.dumps(value, separators=(",", ":")) + "\n").encode()
