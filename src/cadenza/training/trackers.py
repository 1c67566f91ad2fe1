"""Trackers: where a run can be watched; TensorBoard by default, Weights & Biases by option."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from cadenza.core.errors import TrainingError
from cadenza.dsp.audio import Audio


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

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        with self._writing():
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def sample(self, step: int, name: str, audio: Audio, picture: Path) -> None:
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

    def scalars(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log({"step": step, **values})

    def sample(self, step: int, name: str, audio: Audio, picture: Path) -> None:
        wave = audio.wave[0].T.float().cpu().numpy()
        sound = self._wandb.Audio(wave, sample_rate=audio.sample_rate)
        self._run.log({"step": step, f"{name}/audio": sound, f"{name}/picture": self._wandb.Image(str(picture))})

    def close(self) -> None:
        self._run.finish()
