"""Validate a dataset before training: issues by file, with histograms of lengths and loudness."""

import json
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from cadenza.core.atomic import atomic_write
from cadenza.core.errors import AudioError, DataError
from cadenza.data.audio_stats import SILENCE_DBFS, AudioStats, analyze_file, find_near_duplicates
from cadenza.data.manifest import MANIFEST_FILE, Manifest, ManifestClip, list_audio_files
from cadenza.data.sources import load_manifest
from cadenza.data.webdataset import list_shards
from cadenza.dsp.audio_io import TruncatedAudioError

CAPTION_KEYS = ("prompt", "description", "caption", "text")  # metadata keys of a caption, in order of precedence
DURATION_EDGES = (0.0, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, math.inf)  # seconds
LOUDNESS_EDGES = (-math.inf, *range(-69, 1, 3), math.inf)  # LUFS
_BAR_WIDTH = 40
_EMPTY = {"", "none", "null", "nan", "n/a", "na", "unknown", "untitled", "todo", "tbd", "caption", "description", "-", "?"}
_MIN_REPEATS = 3  # fewer equal captions or clipped crests are not an issue


@dataclass(frozen=True)
class Histogram:
    """`counts[i]` values are at least `edges[i]` and under the next edge; the outer edges may be infinite."""

    edges: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()

    @classmethod
    def from_values(cls, values: Sequence[float], edges: Sequence[float]) -> "Histogram":
        """Count values between the edges, and remove empty bins at both ends."""
        counts = np.histogram(values, edges)[0].tolist()
        used = [i for i, count in enumerate(counts) if count]
        return cls(tuple(edges[used[0] : used[-1] + 2]), tuple(counts[used[0] : used[-1] + 1])) if used else cls()

    def to_dict(self) -> dict[str, list[Any]]:
        """Return plain data, with None for an infinite edge."""
        return {"edges": [edge if math.isfinite(edge) else None for edge in self.edges], "counts": list(self.counts)}

    def lines(self, title: str) -> list[str]:
        """Return a text bar for each bin."""
        names = []
        for low, high in pairwise(self.edges):
            text = f"{low:g} or more" if math.isinf(high) else f"{low:g} to {high:g}"
            names.append(f"under {high:g}" if math.isinf(low) else text)
        width, largest = max(map(len, names)), max(self.counts)
        bars = ["#" * math.ceil(_BAR_WIDTH * count / largest) for count in self.counts]
        return [title, *(f"{name:>{width}} {bar} {n}" for name, bar, n in zip(names, bars, self.counts, strict=True))]


@dataclass(frozen=True)
class Issue:
    """One problem of one clip, or of the whole dataset if `clip` is None."""

    kind: str
    clip: str | None
    message: str

    def __str__(self) -> str:
        return f"{self.kind}: {'all clips' if self.clip is None else self.clip}: {self.message}"


@dataclass
class DatasetReport:
    """Result of a validation: issues, notes and distributions."""

    data: str
    clips: int = 0
    seconds: float = 0.0
    issues: list[Issue] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sample_rates: dict[int, int] = field(default_factory=dict)
    channels: dict[int, int] = field(default_factory=dict)
    lengths: Histogram = field(default_factory=Histogram)
    loudness: Histogram = field(default_factory=Histogram)

    @property
    def counts_by_kind(self) -> dict[str, int]:
        """Number of issues of each kind."""
        return dict(Counter(issue.kind for issue in self.issues))

    def add(self, kind: str, clip: str | None, message: str) -> None:
        self.issues.append(Issue(kind, clip, message))

    def to_dict(self) -> dict[str, Any]:
        values = {**asdict(self), "seconds": round(self.seconds, 3), "kinds": self.counts_by_kind}
        return {**values, "lengths": self.lengths.to_dict(), "loudness": self.loudness.to_dict()}

    def write(self, path: str | Path) -> None:
        """Write the report as JSON, atomically."""
        with atomic_write(path, DataError) as file:
            file.write((json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n").encode())

    def __str__(self) -> str:
        rates = ", ".join(f"{count} at {rate} Hz" for rate, count in self.sample_rates.items())
        channels = ", ".join(f"{count} of {number} channel{'s' * (number > 1)}" for number, count in self.channels.items())
        lines = [f"{self.data}: {self.clips} clips, {_format_time(self.seconds)}", *([f"{rates}; {channels}"] if rates else [])]
        for title, histogram in (("seconds", self.lengths), ("LUFS", self.loudness)):
            lines += ["", *histogram.lines(title)] if histogram.counts else []
        lines += ["", *(f"note: {note}" for note in self.notes)] if self.notes else []
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.counts_by_kind.items())
        lines += ["", *map(str, self.issues), f"{len(self.issues)} issues: {kinds}"] if self.issues else ["", "no issues"]
        return "\n".join(lines)


Progress = Callable[[str, int, int], None]  # called with the task, the number done and the total


def validate_dataset(
    data: str | Path | Manifest, *, sample_rate: int | None = None, channels: int | None = None,
    min_seconds: float | None = None, progress: Progress = lambda task, done, total: None,
) -> DatasetReport:  # fmt: skip
    """Read every file of a folder, manifest, shards or dataset config, and report issues.

    A file should have this sample rate in Hz and these channels, by default those of most files, and at least
    `min_seconds`, by default half a second, or less if many are shorter.
    """
    report = DatasetReport(str(data.folder if isinstance(data, Manifest) else data))
    clips = data.clips if isinstance(data, Manifest) else _load_clips(Path(data), report)
    files: list[tuple[ManifestClip, AudioStats]] = []  # the readable ones
    captions: list[tuple[ManifestClip, tuple[str, ...]]] = []
    for number, clip in enumerate(clips):
        progress("reading", number, len(clips))
        if (texts := _read_caption(clip, report)) is not None:
            captions.append((clip, texts))
        if (stats := _analyze(clip, report)) is not None:
            files.append((clip, stats))
            for kind, message in _find_defects(stats):
                report.add(kind, clip.id, message)
    progress("reading", len(clips), len(clips))
    report.clips, report.seconds = len(clips), sum(stats.seconds for _, stats in files)
    rates, counts = ([(clip, getattr(stats, name)) for clip, stats in files] for name in ("sample_rate", "channels"))
    report.sample_rates = _check_uniform("sample rate", "Hz", rates, sample_rate, report)
    report.channels = _check_uniform("channels", "channels", counts, channels, report)
    _check_lengths(files, min_seconds, report)
    _check_captions(captions, report)
    _check_duplicates(files, report, progress)
    order = {clip.id: number for number, clip in enumerate(clips)}
    report.issues.sort(key=lambda issue: order.get(issue.clip or "", len(order)))
    report.lengths = Histogram.from_values([stats.seconds for _, stats in files], DURATION_EDGES)
    report.loudness = Histogram.from_values([stats.lufs for _, stats in files], LOUDNESS_EDGES)
    return report


def _load_clips(path: Path, report: DatasetReport) -> Sequence[ManifestClip]:
    """Return every clip, including unreadable ones; note captions without audio, which was probably lost or renamed."""
    if path.is_dir() and not list_shards(path):
        files = list_audio_files(path)
        stems, folders = {audio.with_suffix("") for audio in files}, {audio.parent for audio in files}
        for text in sorted(path.rglob("*.txt")):
            hidden = any(part.startswith(".") for part in text.relative_to(path).parts)
            if not hidden and text.with_suffix("") not in stems and text.parent in folders:
                report.notes.append(f"{text.relative_to(path).as_posix()} has no audio of the same name")
        if not (path / MANIFEST_FILE).exists() and not any(path.glob("data.jsonl*")):
            if not files:
                raise DataError(f"{path}: no audio found; use a folder of audio, a manifest, shards or a dataset config")
            return [ManifestClip(audio.relative_to(path).as_posix(), audio, None, None, None, {}) for audio in files]
    return load_manifest(path)[0].clips


def _analyze(clip: ManifestClip, report: DatasetReport) -> AudioStats | None:
    if isinstance(clip.audio, Path) and not clip.audio.exists():
        report.add("missing", clip.id, f"{clip.audio} not found; restore it, or remove the line")
        return None
    try:
        stats = analyze_file(clip.audio)
    except (AudioError, OSError) as error:
        report.add("truncated" if isinstance(error, TruncatedAudioError) else "unreadable", clip.id, str(error))
        return None
    if clip.seconds is not None and stats.seconds < 0.98 * clip.seconds - 0.1:
        lengths = f"{stats.seconds:.2f} s instead of the {clip.seconds:.2f} s in the manifest"
        report.add("truncated", clip.id, f"has {lengths}; download it or create the manifest again")
    return stats


def _find_defects(stats: AudioStats) -> Iterator[tuple[str, str]]:
    """Yield (kind, message) for each defect that does not depend on other files."""
    if not stats.finite:
        yield "not finite", "contains NaN or infinite samples; create the file again"
    if stats.loudest < SILENCE_DBFS:
        yield "silent", f"its loudest tenth of a second is at {stats.loudest:.0f} dBFS; remove it"
        return
    if stats.silent > 0.9 and stats.seconds >= 2:
        yield "silent", f"{stats.silent:.0%} of it is silence; cut or remove it"
    if stats.crests >= _MIN_REPEATS and stats.clipped >= 1e-4 and (stats.peak >= 0.98 or stats.clipped < 0.9):
        yield "clipped", f"{stats.crests} crests are cut off, {stats.clipped:.2%} of the samples; use a cleaner copy"
    if stats.offset > 0.01 and stats.offset > 0.03 * stats.peak:
        yield "dc offset", f"its mean is {stats.offset:.3f} of full scale; remove it with a high-pass filter"
    if stats.silent_channels:
        yield "dead channel", f"{stats.silent_channels} of {stats.channels} channels are silent; mix it to mono"
    elif stats.correlation < -0.9:
        yield "out of phase", f"left and right correlate at {stats.correlation:.2f} and cancel in mono; invert one"


def _check_uniform(
    kind: str, unit: str, values: list[tuple[ManifestClip, int]], expected: int | None, report: DatasetReport
) -> dict[int, int]:
    """Report values that differ from the expected or the most frequent one; return the number of clips of each value."""
    counts = dict(Counter(value for _, value in values).most_common())
    target = next(iter(counts), None) if expected is None else expected
    if expected is None and target is not None and len(counts) > 1 and counts[target] * 2 <= len(values):
        listed = ", ".join(f"{count} of {value} {unit}" for value, count in counts.items())
        report.add(kind, None, f"mixed: {listed}; convert them to one")
        return counts
    reference = "most files" if expected is None else "expected"
    for clip, value in values:
        if value != target:
            report.add(kind, clip.id, f"{value} {unit}, unlike {reference} ({target} {unit}); convert it")
    return counts


def _check_lengths(files: list[tuple[ManifestClip, AudioStats]], shortest: float | None, report: DatasetReport) -> None:
    """Report clips under `shortest`; by default half a second, or less (at least 0.1 s) if many are shorter."""
    if shortest is None and files:
        shortest = max(0.1, min(0.5, statistics.median(stats.seconds for _, stats in files) / 2))
    for clip, stats in files:
        if shortest is not None and stats.seconds < shortest:
            report.add("too short", clip.id, f"{stats.seconds:.3f} s, under {shortest:.3g} s; remove or extend it")


def _read_caption(clip: ManifestClip, report: DatasetReport) -> tuple[str, ...] | None:
    """Return the captions of a clip, () if they are empty or missing, None if they cannot be read."""
    try:
        metadata = clip.metadata()
    except (DataError, AudioError) as error:
        report.add("caption unreadable", clip.id, str(error))
        return None
    for key in CAPTION_KEYS:
        value = metadata.get(key)
        texts = [value] if isinstance(value, str) else value if isinstance(value, list | tuple) else []
        if texts := [text for text in texts if isinstance(text, str) and text.strip().strip(".").lower() not in _EMPTY]:
            return tuple(" ".join(text.split()) for text in texts)
    return ()


def _check_captions(captions: list[tuple[ManifestClip, tuple[str, ...]]], report: DatasetReport) -> None:
    """Report captions that are missing although others are present, and captions that repeat often."""
    present = [(clip, texts) for clip, texts in captions if texts]
    if not present:
        report.notes.append("no clip has a caption; a codec needs none, a text condition does")
        return
    counts = Counter(tuple(text.lower() for text in texts) for _, texts in present)
    median = statistics.median(counts.values())
    for clip, texts in captions:
        if not texts:
            report.add("caption missing", clip.id, "has none, unlike other clips; add a .txt or .json next to it")
            continue
        count = counts[tuple(text.lower() for text in texts)]
        share = count / len(present)
        frequent = share >= 0.05 and count >= _MIN_REPEATS * median and len(counts) > 1
        if count >= _MIN_REPEATS and (share > 0.5 or frequent):
            message = f"equal for {count} of {len(present)} clips: '{texts[0][:60]}'; describe each clip"
            report.add("caption constant", clip.id, message)


def _check_duplicates(files: list[tuple[ManifestClip, AudioStats]], report: DatasetReport, progress: Progress) -> None:
    first: dict[str, ManifestClip] = {}
    audible = []
    for clip, stats in files:
        if (original := first.setdefault(stats.digest, clip)) is not clip:
            report.add("duplicate", clip.id, f"identical to {original.id}; keep one")
        elif stats.loudest >= SILENCE_DBFS:
            audible.append((clip, stats))
    if len(audible) < 2:
        return
    duplicates = find_near_duplicates(
        [clip.audio for clip, _ in audible],
        np.stack([stats.fingerprint for _, stats in audible]),
        progress=lambda done, total: progress("comparing", done, total),
    )
    for index, (original, correlation) in duplicates.items():
        message = f"sounds like {audible[original][0].id} (correlation {correlation:.2f}); keep one"
        report.add("near duplicate", audible[index][0].id, message)
    progress("comparing", len(audible), len(audible))


def _format_time(seconds: float) -> str:
    if not math.isfinite(seconds) or seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
