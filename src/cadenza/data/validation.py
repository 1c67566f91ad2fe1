"""Histogram: how many values are where, in numbers and as text for a terminal."""

import json
import math
import statistics
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from cadenza.core.atomic import atomic_write
from cadenza.core.errors import AudioError, DataError
from cadenza.data.audio_stats import FLOOR, AudioStats, analyze_file, find_near_duplicates
from cadenza.data.manifest import FILE, Manifest, ManifestClip, list_audio_files
from cadenza.data.sources import load_manifest
from cadenza.data.webdataset import list_shards
from cadenza.dsp.audio_io import TruncatedAudioError

_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)  # seconds
_WIDTH = 40


@dataclass(frozen=True)
class Histogram:
    """`counts[i]` values are at least `edges[i]` and under the next edge; -inf and inf are edges like others."""

    edges: tuple[float, ...] = ()
    counts: tuple[int, ...] = ()

    @classmethod
    def from_values(cls, values: Sequence[float], edges: Sequence[float]) -> "Histogram":
        """The values between given edges, without the empty ends."""
        if not values:
            return cls()
        counts = [0] * (len(edges) - 1)
        for value in values:
            counts[min(max(bisect_right(edges, value) - 1, 0), len(counts) - 1)] += 1
        first = next(i for i, count in enumerate(counts) if count)
        last = next(i for i in reversed(range(len(counts))) if counts[i])
        return cls(tuple(edges[first : last + 2]), tuple(counts[first : last + 1]))

    @classmethod
    def of_durations(cls, seconds: Sequence[float]) -> "Histogram":
        """Seconds in steps that grow with them."""
        return cls.from_values(seconds, (0.0, *_STEPS, math.inf))

    @classmethod
    def of_loudness(cls, levels: Sequence[float]) -> "Histogram":
        """Levels in LUFS in steps of 3, silence for itself."""
        return cls.from_values(levels, (-math.inf, *range(-69, 1, 3), math.inf))

    def to_dict(self) -> dict[str, list[Any]]:
        """Plain data, where None is an open end."""
        return {"edges": [edge if math.isfinite(edge) else None for edge in self.edges], "counts": list(self.counts)}

    def lines(self, title: str) -> list[str]:
        """A bar for each step."""
        names = [f"{_said(low)} to {_said(high)}" for low, high in zip(self.edges, self.edges[1:], strict=False)]
        names = [f"under {_said(self.edges[i + 1])}" if math.isinf(self.edges[i]) else name for i, name in enumerate(names)]
        names = [f"{_said(self.edges[i])} or more" if math.isinf(self.edges[i + 1]) else name for i, name in enumerate(names)]
        wide, most = max(map(len, names)), max(self.counts)
        bars = ["#" * math.ceil(_WIDTH * count / most) for count in self.counts]
        rows = [f"{name:>{wide}} {bar} {count}" for name, bar, count in zip(names, bars, self.counts, strict=True)]
        return [title, *rows]


def _said(value: float) -> str:
    return f"{value:g}"


CAPTIONS = ("prompt", "description", "caption", "text")  # where a caption is looked for
_EMPTY = {"", "none", "null", "nan", "n/a", "na", "unknown", "untitled", "todo", "tbd", "caption", "description", "-", "?"}
_FEW = 3


@dataclass(frozen=True)
class Issue:
    """One thing that is wrong with one clip, or with the whole where `clip` is None."""

    kind: str
    clip: str | None
    what: str

    def __str__(self) -> str:
        return f"{self.kind}: {'the whole' if self.clip is None else self.clip}: {self.what}"


@dataclass(frozen=True)
class Expectations:
    """What a user expects of every file; None is as most files are."""

    sample_rate: int | None = None
    channels: int | None = None
    min_seconds: float | None = None


@dataclass
class DatasetReport:
    """What was found: the faults, and how the rest is spread."""

    data: str
    clips: int = 0
    seconds: float = 0.0
    faults: list[Issue] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    sample_rates: dict[int, int] = field(default_factory=dict)
    channels: dict[int, int] = field(default_factory=dict)
    lengths: Histogram = field(default_factory=Histogram)
    loudness: Histogram = field(default_factory=Histogram)

    @property
    def counts_by_kind(self) -> dict[str, int]:
        """How many faults there are of each kind."""
        return dict(Counter(fault.kind for fault in self.faults))

    def to_dict(self) -> dict[str, Any]:
        own = {"data": self.data, "clips": self.clips, "seconds": round(self.seconds, 3), "kinds": self.counts_by_kind}
        found = {"faults": [asdict(fault) for fault in self.faults], "notes": self.notes}
        spread = {"sample_rates": self.sample_rates, "channels": self.channels}
        return {**own, **found, **spread, "lengths": self.lengths.to_dict(), "loudness": self.loudness.to_dict()}

    def write(self, path: str | Path) -> None:
        """The whole as JSON, whole or not at all."""
        with atomic_write(path, DataError) as file:
            file.write((json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n").encode())

    def __str__(self) -> str:
        rates = ", ".join(f"{count} at {rate} Hz" for rate, count in self.sample_rates.items())
        channels = ", ".join(f"{count} of {number} channel{'s' * (number > 1)}" for number, count in self.channels.items())
        lines = [f"{self.data}: {self.clips} clips, {_time(self.seconds)}", *([f"{rates}; {channels}"] if rates else [])]
        for title, histogram in (("seconds", self.lengths), ("LUFS", self.loudness)):
            lines += ["", *histogram.lines(title)] if histogram.counts else []
        lines += ["", *(f"note: {note}" for note in self.notes)] if self.notes else []
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.counts_by_kind.items())
        lines += ["", *map(str, self.faults), f"{len(self.faults)} faults: {kinds}"] if self.faults else ["", "no faults"]
        return "\n".join(lines)


def validate_dataset(
    data: str | Path | Manifest, wanted: Expectations = Expectations(), *,  # noqa: B008  # frozen
    progress: Callable[[str, int, int], None] = lambda doing, done, total: None,
) -> DatasetReport:  # fmt: skip
    """Reads every file of a folder, a manifest, shards or a dataset config once, and some that are alike again.

    `progress` hears what is done, how many are done and how many there are.
    """
    clips, found = _clips(data), DatasetReport(str(data.folder if isinstance(data, Manifest) else data))
    if not isinstance(data, Manifest):
        _orphans(Path(data), found)
    measured: dict[int, AudioStats] = {}
    captions: dict[int, tuple[str, ...] | None] = {}
    for number, clip in enumerate(clips):
        progress("reading", number, len(clips))
        captions[number] = _caption(clip, found)
        if (one := _measured(clip, found)) is not None:
            measured[number] = one
            found.faults += [Issue(kind, clip.id, what) for kind, what in _ailments(one)]
    progress("reading", len(clips), len(clips))
    found.clips, found.seconds = len(clips), sum(one.seconds for one in measured.values())
    _same_for_all(clips, measured, wanted, found)
    _captions(clips, captions, found)
    _duplicates(clips, measured, found, progress)
    order = {clip.id: number for number, clip in enumerate(clips)}
    found.faults.sort(key=lambda fault: order.get(fault.clip or "", len(order)))
    found.lengths = Histogram.of_durations([one.seconds for one in measured.values()])
    found.loudness = Histogram.of_loudness([one.lufs for one in measured.values()])
    return found


def _clips(data: str | Path | Manifest) -> Sequence[ManifestClip]:
    """Every clip, those that cannot be read among them; in a folder the id is the path, ending included."""
    if isinstance(data, Manifest):
        return data.clips
    path = Path(data)
    if not path.is_dir() or (path / FILE).exists() or list_shards(path) or any(path.glob("data.jsonl*")):
        return load_manifest(path)[0].clips
    found = list_audio_files(path)
    if not found:
        raise DataError(f"{path}: no audio in it; give a folder of audio, a manifest, shards or a dataset config")
    return [ManifestClip(audio.relative_to(path).as_posix(), audio, None, None, None, {}) for audio in found]


def _orphans(path: Path, found: DatasetReport) -> None:
    """Captions without audio, whose audio was probably lost or renamed."""
    if not path.is_dir() or list_shards(path):
        return
    stems = {audio.with_suffix("") for audio in list_audio_files(path)}
    for text in sorted(path.rglob("*.txt")):
        hidden = any(part.startswith(".") for part in text.relative_to(path).parts)
        if not hidden and text.with_suffix("") not in stems and any(stem.parent == text.parent for stem in stems):
            found.notes.append(f"{text.relative_to(path).as_posix()} is beside no audio of its name")


def _measured(clip: ManifestClip, found: DatasetReport) -> AudioStats | None:
    if isinstance(clip.audio, Path) and not clip.audio.exists():
        found.faults.append(Issue("missing", clip.id, f"{clip.audio} is not there; put it back, or take the line out"))
        return None
    try:
        one = analyze_file(clip.audio)
    except TruncatedAudioError as error:
        found.faults.append(Issue("truncated", clip.id, str(error)))
        return None
    except (AudioError, OSError) as error:
        found.faults.append(Issue("unreadable", clip.id, str(error)))
        return None
    if clip.seconds is not None and one.seconds < 0.98 * clip.seconds - 0.1:
        what = f"holds {one.seconds:.2f} s of the {clip.seconds:.2f} s that the manifest says; fetch it or list it again"
        found.faults.append(Issue("truncated", clip.id, what))
    return one


def _ailments(one: AudioStats) -> Iterable[tuple[str, str]]:
    """What is wrong with a file whatever the others are like."""
    if not one.finite:
        yield "not finite", "holds NaN or infinite samples; make the file again"
    if one.loudest < FLOOR:
        yield "silent", f"its loudest tenth of a second is at {one.loudest:.0f} dBFS; take it out"
        return
    if one.silent > 0.9 and one.seconds >= 2:
        yield "silent", f"{one.silent:.0%} of it is silence; cut it, or take it out"
    full = one.peak >= 0.98
    if one.crests >= _FEW and one.clipped >= 1e-4 and (full or one.clipped < 0.9):
        yield "clipped", f"{one.crests} crests are cut off, {one.clipped:.2%} of the samples; take a cleaner copy"
    if one.offset > 0.01 and one.offset > 0.03 * one.peak:
        yield "dc offset", f"its mean is {one.offset:.3f} of full scale; take it off with a high-pass"
    if one.silent_channels:
        yield "dead channel", f"{one.silent_channels} of {one.channels} channels are silent; mix it to mono"
    elif one.correlation < -0.9:
        yield "out of phase", f"left and right correlate at {one.correlation:.2f} and vanish in mono; turn one over"


def _same_for_all(
    clips: Sequence[ManifestClip], measured: dict[int, AudioStats], wanted: Expectations, found: DatasetReport
) -> None:
    """Rates, channels and lengths, which are wrong only beside others or beside what is wanted."""
    found.sample_rates = dict(Counter(one.sample_rate for one in measured.values()).most_common())
    found.channels = dict(Counter(one.channels for one in measured.values()).most_common())
    for kind, counts, want, value in (
        ("sample rate", found.sample_rates, wanted.sample_rate, "{} Hz"),
        ("channels", found.channels, wanted.channels, "{} channels"),
    ):
        usual = want if want is not None else max(counts, key=counts.__getitem__, default=None)
        if want is None and len(counts) > 1 and counts[usual] * 2 <= sum(counts.values()):  # type: ignore[index]
            said = ", ".join(f"{count} of {value.format(v)}" for v, count in counts.items())
            found.faults.append(Issue(kind, None, f"mixed: {said}; convert them to one"))
            continue
        for number, one in measured.items():
            has = one.sample_rate if kind == "sample rate" else one.channels
            if has != usual:
                who = "most files" if want is None else "what is wanted"
                what = f"{value.format(has)}, unlike {who} ({value.format(usual)}); convert it"
                found.faults.append(Issue(kind, clips[number].id, what))
    lengths = [one.seconds for one in measured.values()]
    least = wanted.min_seconds if wanted.min_seconds is not None else _least(lengths)
    for number, one in measured.items():
        if one.seconds < least:
            what = f"{one.seconds:.3f} s, under {least:.3g} s; take it out, or join it to another"
            found.faults.append(Issue("too short", clips[number].id, what))


def _least(lengths: Sequence[float]) -> float:
    """Seconds that a clip should have where nobody said: half a second, less where many are shorter, a tenth at least."""
    return max(0.1, min(0.5, statistics.median(lengths) / 2)) if lengths else 0.1


def _caption(clip: ManifestClip, found: DatasetReport) -> tuple[str, ...] | None:
    """The captions of a clip, none where what it has says nothing, None where it could not be read."""
    try:
        metadata = clip.metadata()
    except (DataError, AudioError) as error:
        found.faults.append(Issue("caption unreadable", clip.id, str(error)))
        return None
    for name in CAPTIONS:
        said = metadata.get(name)
        texts = [said] if isinstance(said, str) else said if isinstance(said, list | tuple) else []
        if kept := tuple(" ".join(text.split()) for text in texts if isinstance(text, str) and _says(text)):
            return kept
    return ()


def _says(text: str) -> bool:
    return text.strip().strip(".").lower() not in _EMPTY


def _captions(clips: Sequence[ManifestClip], captions: dict[int, tuple[str, ...] | None], found: DatasetReport) -> None:
    """Captions that are missing where others are there, and those that are the same again and again."""
    there = {number: said for number, said in captions.items() if said}
    without = [number for number, said in captions.items() if said == ()]
    if not there:
        found.notes.append("no clip has a caption; a codec needs none, a text condition does")
        return
    for number in without:
        found.faults.append(
            Issue("caption missing", clips[number].id, "has none, unlike others; add a .txt or .json beside it")
        )
    counts = Counter(tuple(text.lower() for text in said) for said in there.values())
    usual = statistics.median(counts.values())
    for said, count in counts.items():
        share = count / len(there)
        odd = count >= _FEW and share >= 0.05 and count >= _FEW * usual and len(counts) > 1
        if (share > 0.5 and count >= _FEW) or odd:
            for number in [number for number, own in there.items() if tuple(text.lower() for text in own) == said]:
                what = f"the same for {count} of {len(there)} clips: '{said[0][:60]}'; say what is in each"
                found.faults.append(Issue("caption constant", clips[number].id, what))


def _duplicates(
    clips: Sequence[ManifestClip],
    measured: dict[int, AudioStats],
    found: DatasetReport,
    progress: Callable[[str, int, int], None],
) -> None:
    first: dict[str, int] = {}
    for number, one in measured.items():
        if (before := first.setdefault(one.digest, number)) != number:
            found.faults.append(Issue("duplicate", clips[number].id, f"the same file as {clips[before].id}; keep one"))
    heard = [number for number in first.values() if measured[number].loudest >= FLOOR]
    if len(heard) < 2:
        return
    prints = np.stack([measured[number].fingerprint for number in heard])
    places = [clips[number].audio for number in heard]
    for one, (other, same) in find_near_duplicates(
        places, prints, progress=lambda done, n: progress("comparing", done, n)
    ).items():
        what = f"sounds the same as {clips[heard[other]].id} (correlation {same:.2f}); keep one"
        found.faults.append(Issue("near duplicate", clips[heard[one]].id, what))
    progress("comparing", len(heard), len(heard))


def _time(seconds: float) -> str:
    if not math.isfinite(seconds) or seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
