"""Log: one line of JSON for each record of a run, trackers beside it, and a line for the eye."""

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from cadenza.core.errors import TrainingError
from cadenza.core.files import atomic_write
from cadenza.dsp.audio import Audio
from cadenza.training.trackers import Tracker

FILE = "log.jsonl"


class RunLogger:
    """Writes `log.jsonl`, flushed line by line, and tells the trackers.

    Opened at a step, it drops what an earlier process wrote beyond that step, so that no step is there twice.
    """

    def __init__(self, folder: Path, step: int, trackers: Sequence[Tracker] = ()) -> None:
        self.path = folder / FILE
        self.trackers = trackers
        try:
            if self.path.exists():
                _cut(self.path, step)
            self._file: TextIO = self.path.open("a")
        except OSError as error:
            raise TrainingError(
                f"{self.path}: cannot be written: {error}; allow writing there or choose another folder"
            ) from None

    def log_scalars(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """One record; `kind` is `train` or `valid` and stands before each name in the trackers."""
        try:
            self._file.write(json.dumps({"kind": kind, "step": step, "time": round(time.time(), 3), **values}) + "\n")
            self._file.flush()
        except OSError as error:
            raise self._full(error) from None
        for tracker in self.trackers:
            tracker.log_scalars(step, {f"{kind}/{name}": value for name, value in values.items()})

    def _full(self, error: OSError) -> TrainingError:
        return TrainingError(f"{self.path}: cannot be written: {error}; free space, then start again to continue")

    def log_audio(self, step: int, name: str, audio: Audio, picture: Path) -> None:
        for tracker in self.trackers:
            tracker.log_audio(step, name, audio, picture)

    def fsync(self) -> None:
        """What was written survives a power cut."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise self._full(error) from None

    def close(self) -> None:
        with suppress(OSError):  # each line was flushed: only one whose failure was told is left
            self._file.close()
        for tracker in self.trackers:
            tracker.close()


class ProgressPrinter:
    """A line of progress on a terminal, or now and then where there is none."""

    def __init__(self, total: int, *, quiet: bool = False, every: float = 30.0) -> None:
        self.total, self.quiet = total, quiet
        self._terminal = sys.stderr.isatty()
        self._every = 0.2 if self._terminal else every
        self._start = self._shown = time.monotonic()
        self._steps = 0
        self._seconds = 0.0

    def update(self, step: int, seconds: float, values: Mapping[str, float]) -> None:
        """One more step is done, which heard so many seconds of audio (0 when that is not known)."""
        self._steps += 1
        self._seconds += seconds
        now = time.monotonic()
        if self.quiet or (now - self._shown < self._every and step < self.total):
            return
        self._shown = now
        speed = self._steps / max(now - self._start, 1e-9)
        heard = f"  {self._seconds / max(now - self._start, 1e-9):.1f} audio-s/s" if self._seconds else ""
        losses = "  ".join(f"{name} {value:.4g}" for name, value in values.items() if name.endswith("/loss"))
        line = f"step {step}/{self.total}  {losses}  {speed:.2f} steps/s{heard}  ETA {_clock((self.total - step) / speed)}"
        self.print(line, end="" if self._terminal and step < self.total else "\n")

    def print(self, line: str, end: str = "\n") -> None:
        if not self.quiet:
            print(f"\r\x1b[K{line}" if self._terminal else line, end=end, file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _cut(path: Path, step: int) -> None:
    """Keeps the whole lines up to a step; the file is replaced at once."""
    kept = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            if line.endswith("\n") and json.loads(line)["step"] <= step:
                kept.append(line)
        except (ValueError, KeyError, TypeError):
            continue  # a killed process was in the middle of this line
    with atomic_write(path, TrainingError) as file:
        file.write("".join(kept).encode())
