"""Samples: what a run sounds like, as wav files with their spectrograms."""

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol, TextIO

from cadenza.core.atomic import atomic_write
from cadenza.core.errors import TrainingError
from cadenza.dsp.audio import Audio
from cadenza.dsp.plots import save_spectrogram


def save_samples(folder: Path, name: str, audio: Audio) -> list[tuple[str, Audio, Path]]:
    """`name-1.wav`, `name-1.png`, ... in the folder; the names, the clips and their pictures."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{folder}: cannot be made: {error.strerror}; make room or allow writing there") from None
    written = []
    for i, clip in enumerate(audio, 1):
        clip = Audio(clip.wave.detach().float().cpu(), clip.sample_rate)  # noqa: PLW2901
        path = folder / f"{name}-{i}.wav"
        clip.save(path)
        save_spectrogram(clip, path.with_suffix(".png"), title=f"{name} {i}")
        written.append((f"{name}-{i}", clip, path.with_suffix(".png")))
    return written


class Tracker(Protocol):
    """Takes scalars and samples of a step; steps never go back."""

    def log_scalars(self, step: int, values: Mapping[str, float]) -> None: ...

    def log_audio(self, step: int, name: str, audio: Audio, picture: Path) -> None: ...

    def close(self) -> None: ...


def build_trackers(names: tuple[str, ...], folder: Path, name: str, step: int) -> list[Tracker]:
    """The trackers of those names for a run that stands at a step."""
    known = {"tensorboard": lambda: TensorBoardTracker(folder, step), "wandb": lambda: WandbTracker(folder, name)}
    return [known[tracker]() for tracker in names]


class TensorBoardTracker:
    """Event files in the run's folder `tensorboard`; what a killed process wrote beyond `step` is hidden."""

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise TrainingError(
                'the tracker tensorboard is not installed; pip install "cadenza[train]", or set trackers: []'
            ) from None
        self._folder = folder / "tensorboard"
        with self._writing():
            self._writer = SummaryWriter(str(self._folder), purge_step=step + 1)

    def log_scalars(self, step: int, values: Mapping[str, float]) -> None:
        with self._writing():
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def log_audio(self, step: int, name: str, audio: Audio, picture: Path) -> None:
        from matplotlib.image import imread

        wave = audio.wave[0].mean(0).float().clamp(-1, 1).cpu()
        with self._writing():
            self._writer.add_audio(name, wave[None], step, audio.sample_rate)
            self._writer.add_image(name, imread(picture)[..., :3], step, dataformats="HWC")

    def close(self) -> None:
        with suppress(OSError):  # curves that could not be written are no reason to hide why the run ends
            self._writer.close()

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise TrainingError(f"{self._folder}: cannot be written: {error}; free space, or set trackers: []") from None


class WandbTracker:
    """One Weights & Biases run for a folder, however often it is resumed."""

    def __init__(self, folder: Path, name: str) -> None:
        try:
            import wandb  # type: ignore[import-not-found]
        except ImportError:
            raise TrainingError(
                'the tracker wandb is not installed; pip install "cadenza[tracking]", or take it out of trackers'
            ) from None
        self._wandb = wandb
        mark = folder / "wandb-id"
        if not mark.exists():
            mark.write_text(wandb.util.generate_id())
        self._run = wandb.init(project="cadenza", name=name, dir=str(folder), id=mark.read_text(), resume="allow")
        self._run.define_metric("*", step_metric="step")  # a resumed run may go back a few steps

    def log_scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def log_audio(self, step: int, name: str, audio: Audio, picture: Path) -> None:
        wave = audio.wave[0].T.float().cpu().numpy()
        sound = self._wandb.Audio(wave, sample_rate=audio.sample_rate)
        self._run.log({"step": step, f"{name}/audio": sound, f"{name}/picture": self._wandb.Image(str(picture))})

    def close(self) -> None:
        self._run.finish()


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
