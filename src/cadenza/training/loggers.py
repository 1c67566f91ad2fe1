"""Logs of a run: `log.jsonl`, TensorBoard, Weights & Biases, audio samples, and progress on the terminal."""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Protocol, TextIO

from cadenza.core.atomic import atomic_write
from cadenza.core.errors import TrainingError
from cadenza.dsp.audio import Audio
from cadenza.dsp.plots import save_spectrogram

LOG_FILE = "log.jsonl"
_TENSORBOARD_FIX = "free space, or set trackers: []"


class Tracker(Protocol):
    """Receives scalars and audio samples by step, in ascending order of steps."""

    def log_scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def log_audio(self, step: int, name: str, audio: Audio, picture: Path) -> None: ...

    def close(self) -> None: ...


def build_trackers(names: tuple[str, ...], folder: Path, name: str, step: int) -> list[Tracker]:
    """Return the named trackers for a run that continues from a step."""
    builders = {"tensorboard": lambda: TensorBoardTracker(folder, step), "wandb": lambda: WandbTracker(folder, name)}
    return [builders[tracker]() for tracker in names]


class TensorBoardTracker:
    """Event files in the folder `tensorboard` of a run; entries after `step` are hidden."""

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise TrainingError('tensorboard is not installed; pip install -e ".[train]", or set trackers: []') from None
        self._folder = folder / "tensorboard"
        with _writing(self._folder, _TENSORBOARD_FIX):
            self._writer = SummaryWriter(str(self._folder), purge_step=step + 1)

    def log_scalars(self, step: int, values: Mapping[str, float]) -> None:
        with _writing(self._folder, _TENSORBOARD_FIX):
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def log_audio(self, step: int, name: str, audio: Audio, picture: Path) -> None:
        from matplotlib.image import imread

        wave = audio.wave[0].mean(0).float().clamp(-1, 1).cpu()
        with _writing(self._folder, _TENSORBOARD_FIX):
            self._writer.add_audio(name, wave[None], step, audio.sample_rate)
            self._writer.add_image(name, imread(picture)[..., :3], step, dataformats="HWC")

    def close(self) -> None:
        with suppress(OSError):  # must not hide the reason why the run ends
            self._writer.close()


class WandbTracker:
    """The Weights & Biases run of a folder; a resumed run continues it."""

    def __init__(self, folder: Path, name: str) -> None:
        try:
            import wandb  # type: ignore[import-not-found]
        except ImportError:
            raise TrainingError('wandb is not installed; pip install -e ".[tracking]", or remove it from trackers') from None
        self._wandb = wandb
        id_file = folder / "wandb-id"
        if not id_file.exists():
            id_file.write_text(wandb.util.generate_id())
        self._run = wandb.init(project="cadenza", name=name, dir=str(folder), id=id_file.read_text(), resume="allow")
        self._run.define_metric("*", step_metric="step")  # a resumed run may repeat a few steps

    def log_scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def log_audio(self, step: int, name: str, audio: Audio, picture: Path) -> None:
        clip = self._wandb.Audio(audio.wave[0].T.float().cpu().numpy(), sample_rate=audio.sample_rate)
        self._run.log({"step": step, f"{name}/audio": clip, f"{name}/picture": self._wandb.Image(str(picture))})

    def close(self) -> None:
        self._run.finish()


class RunLogger:
    """Write `log.jsonl`, flushed line by line, and pass values to the trackers.

    Lines after `step`, written by an earlier process, are removed, so that no step occurs twice.
    """

    def __init__(self, folder: Path, step: int, trackers: Sequence[Tracker] = ()) -> None:
        self.path, self.trackers = folder / LOG_FILE, trackers
        with _writing(self.path, "fix its permissions or use another folder"):
            if self.path.exists():
                _truncate_log(self.path, step)
            self._file: TextIO = self.path.open("a")

    def log_scalars(self, kind: str, step: int, values: Mapping[str, float]) -> None:
        """Write one record; `kind` is `train` or `valid`, and the prefix of each name in the trackers."""
        with _writing(self.path, "free space, then start again to continue"):
            self._file.write(json.dumps({"kind": kind, "step": step, "time": round(time.time(), 3), **values}) + "\n")
            self._file.flush()
        for tracker in self.trackers:
            tracker.log_scalars(step, {f"{kind}/{name}": value for name, value in values.items()})

    def log_samples(self, step: int, folder: Path, name: str, audio: Audio) -> None:
        """Write `name-1.wav`, `name-1.png`, ... into the folder, and pass them to the trackers."""
        with _writing(folder, "free space or fix its permissions"):
            folder.mkdir(parents=True, exist_ok=True)
        for i, clip in enumerate(audio, 1):
            sample, picture = Audio(clip.wave.detach().float().cpu(), clip.sample_rate), folder / f"{name}-{i}.png"
            sample.save(picture.with_suffix(".wav"))
            save_spectrogram(sample, picture, title=f"{name} {i}")
            for tracker in self.trackers:
                tracker.log_audio(step, f"{name}-{i}", sample, picture)

    def fsync(self) -> None:
        """Write all lines to disk, so that they survive a power failure."""
        with _writing(self.path, "free space, then start again to continue"):
            os.fsync(self._file.fileno())

    def close(self) -> None:
        with suppress(OSError):  # each line was flushed; an error was already raised there
            self._file.close()
        for tracker in self.trackers:
            tracker.close()


class ProgressPrinter:
    """Print a line of progress, updated in place on a terminal and every 30 s otherwise."""

    def __init__(self, total: int, *, quiet: bool = False, every: float = 30.0) -> None:
        self.total, self.quiet = total, quiet
        self._terminal = sys.stderr.isatty()
        self._every = 0.2 if self._terminal else every
        self._start = self._printed = time.monotonic()
        self._steps, self._seconds = 0, 0.0

    def update(self, step: int, seconds: float, values: Mapping[str, float]) -> None:
        """Count a step over `seconds` of audio (0 if unknown), and print if it is time."""
        self._steps += 1
        self._seconds += seconds
        now = time.monotonic()
        if self.quiet or (now - self._printed < self._every and step < self.total):
            return
        self._printed = now
        elapsed = max(now - self._start, 1e-9)
        speed = self._steps / elapsed
        throughput = f"  {self._seconds / elapsed:.1f} audio-s/s" if self._seconds else ""
        losses = "  ".join(f"{name} {value:.4g}" for name, value in values.items() if name.endswith("/loss"))
        eta = timedelta(seconds=round((self.total - step) / speed))
        line = f"step {step}/{self.total}  {losses}  {speed:.2f} steps/s{throughput}  ETA {eta}"
        self.print(line, end="" if self._terminal and step < self.total else "\n")

    def print(self, line: str, end: str = "\n") -> None:
        if not self.quiet:
            print(f"\r\x1b[K{line}" if self._terminal else line, end=end, file=sys.stderr, flush=True)


@contextmanager
def _writing(path: Path, fix: str) -> Iterator[None]:
    """Raise TrainingError with `fix` if a file cannot be written within the `with` block."""
    try:
        yield
    except OSError as error:
        raise TrainingError(f"{path}: cannot be written: {error}; {fix}") from None


def _truncate_log(path: Path, step: int) -> None:
    """Remove lines after a step and incomplete lines, atomically."""
    lines = []
    for line in path.read_text().splitlines(keepends=True):
        try:
            if line.endswith("\n") and json.loads(line)["step"] <= step:
                lines.append(line)
        except (ValueError, KeyError, TypeError):
            continue  # a killed process was writing this line
    with atomic_write(path, TrainingError) as file:
        file.write("".join(lines).encode())
