"""Stopping: Ctrl-C and SIGTERM ask a run to stop after its step."""

import math
import signal
import threading
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from cadenza.core.errors import CheckpointError, TrainingError
from cadenza.training import checkpoints, loggers
from cadenza.training.checkpoints import Checkpoint
from cadenza.training.config import TrainingConfig
from cadenza.training.distributed import DistributedContext
from cadenza.training.loggers import ProgressPrinter, RunLogger, build_trackers
from cadenza.training.optim import EMA, build_optimizers, lr_multiplier
from cadenza.training.tasks.base import StepContext, Task

_ASKS = (signal.SIGINT, signal.SIGTERM)


class StopSignal:
    """Which signal asked the run to stop, if any."""

    name: str | None = None


@contextmanager
def graceful_stop() -> Iterator[StopSignal]:
    """The first signal is noted; a second one raises KeyboardInterrupt."""
    stop = StopSignal()

    def note(number: int, frame: FrameType | None) -> None:
        if stop.name is not None:
            raise KeyboardInterrupt
        stop.name = signal.Signals(number).name

    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may set handlers
        return
    before = {number: signal.signal(number, note) for number in _ASKS}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class BatchSource(Protocol):
    """An endless sequence of batches in which batch number n is always the same."""

    def iter_from(self, position: int) -> Iterator[Any]:
        """The batches of this process from number `position` on."""
        ...


@dataclass(frozen=True)
class TrainingData:
    """What a run learns from and is judged by: training batches, and batches that are the same every time."""

    batches: BatchSource
    validation: Sequence[Any] = ()
    samples: Any = None  # one batch, or None for no samples


@dataclass(frozen=True)
class TrainingResult:
    """Where a run stands when `train` returns."""

    step: int
    reason: Literal["finished", "stopped", "out of time"]
    folder: Path
    best: float = math.inf  # the least that validation has found, of the metric that the task is judged by


@dataclass
class _Micro:
    """The losses of one micro-batch, still on the device."""

    items: list[str]
    terms: dict[str, Tensor] = field(default_factory=dict)


class TrainingLoop:
    """Drives one task; `save` writes the trained system into a folder, with whatever weights it has then.

    Within a step every group sees the weights that all groups had at its start: the losses of each group, divided
    by `accumulation`, are differentiated with respect to that group alone over all micro-batches, then all groups
    that learned are stepped together.
    """

    def __init__(
        self, config: TrainingConfig, task: Task, *, folder: Path, engine: DistributedContext, save: Callable[[Path], None]
    ) -> None:  # fmt: skip
        self.config, self.task, self.folder, self.engine = config, task, folder, engine
        self._save = save
        modules = task.optimized_modules()
        for module in (*modules.values(), task.extra_state()):
            module.to(engine.device)
        engine.broadcast([*modules.values(), task.extra_state()])
        self.groups = build_optimizers(modules, config)
        self.ema = None if config.ema is None else EMA(next(iter(modules.values())), config.ema)
        self.rng = torch.Generator().manual_seed(config.seed + engine.rank)
        self._chance: dict[str, Any] | None = None  # where a resumed run's sources of chance stand
        self.step = 0
        self.position = 0  # of the next batch
        self.best = math.inf
        self._saved = -1  # the step of the newest checkpoint
        self.ticker = ProgressPrinter(config.steps, quiet=not engine.main)

    def resume(self) -> None:
        """Goes to the newest whole checkpoint in the folder, if there is one."""
        if self.engine.main:
            checkpoints.remove_unfinished(self.folder / "checkpoints")
        self.engine.barrier()
        found = checkpoints.latest_checkpoint(self.folder / "checkpoints", self.ticker.print)
        if found is None:
            return
        plain = found.state
        if plain["processes"] != self.engine.processes:
            raise CheckpointError(
                f"{self.folder} was trained by {plain['processes']} processes, this run has {self.engine.processes}; "
                "continue with as many"
            )
        checkpoints.restore_state(self.groups, self.task.extra_state(), self.ema, found)
        self._chance = plain["random"][self.engine.rank]
        self.step = self._saved = found.step
        self.position = plain["position"]
        self.best = math.inf if plain["best"] is None else plain["best"]
        now = self.config.to_dict()
        changed = [f"{key}: {plain['config'].get(key)} → {now[key]}" for key in now if now[key] != plain["config"].get(key)]
        self.ticker.print(f"continuing from step {self.step}" + (f" with {'; '.join(changed)}" if changed else ""))

    def run(self, material: TrainingData) -> TrainingResult:
        """Trains from where the loop stands; the state of step 0 is saved at once."""
        self.material = material
        if self._chance is not None:
            checkpoints.set_random_state(self._chance, self.rng)
        self._log = RunLogger(self.folder, self.step, self._trackers()) if self.engine.main else None
        try:
            with graceful_stop() as stop:
                outcome = self._run(stop)
        finally:
            if self._log is not None:
                self._log.close()
        return outcome

    def _run(self, stop: StopSignal) -> TrainingResult:
        if self._saved != self.step:
            self._checkpoint()
        started = time.monotonic()
        limit = math.inf if self.config.minutes is None else 60 * self.config.minutes
        reason: Literal["finished", "stopped", "out of time"] = "finished"
        with closing(self._stream()) as stream:
            while self.step < self.config.steps:
                try:
                    halt = self._advance(stream, lambda: [stop.name is not None, time.monotonic() - started > limit])
                    self._observe()
                except (RuntimeError, ConnectionError, EOFError) as error:
                    lost = not isinstance(error, RuntimeError) or "DataLoader worker" in str(error)
                    if stop.name is None or not lost:
                        raise
                    return self._ended("stopped", stop, self._saved)  # the signal has ended the data workers, too
                if any(halt) and self.step < self.config.steps:
                    reason = "stopped" if halt[0] else "out of time"
                    break
        if self._saved != self.step:
            self._checkpoint()
        if reason == "finished" and self.engine.main:
            self._export("final")
        self.engine.barrier()
        return self._ended(reason, stop, self.step)

    def _ended(self, reason: Literal["finished", "stopped", "out of time"], stop: StopSignal, step: int) -> TrainingResult:
        why = f" by {stop.name}" if stop.name and reason == "stopped" else ""
        more = "" if reason == "finished" else "; start again with the same folder to continue"
        self.ticker.print(f"{reason}{why} at step {step} of {self.config.steps}: {self.folder}{more}")
        return TrainingResult(step, reason, self.folder, self.best)

    def _stream(self) -> Generator[Any]:
        """The batches from here on; starting to read them draws from no source of chance that training uses."""
        chance = checkpoints.rng_state(self.rng)
        stream = self.material.batches.iter_from(self.position)
        first = next(stream)
        checkpoints.set_random_state(chance, self.rng)
        yield first
        yield from stream

    def _advance(self, stream: Iterator[Any], flags: Callable[[], list[bool]]) -> list[bool]:
        """One optimiser step, in which the host waits for the device once; the flags that any process raised."""
        config = self.config
        micros, learned, seconds = [], dict[str, None](), 0.0
        for module in self.task.optimized_modules().values():
            module.train()
        for _ in range(config.accumulation):
            batch = next(stream)
            self.position += 1
            micro = _Micro(batch_ids(batch))
            seconds += batch_seconds(batch)
            learned |= dict.fromkeys(self._losses(self.engine.to_device(batch), micro))
            micros.append(micro)
        norms = {f"{name}/gradient": self._gradient(name) for name in learned}
        values, halt = self._checked(micros, norms, flags())
        pace = lr_multiplier(self.step, config)
        for name in learned:
            group = self.groups[name]
            for options in group.optimizer.param_groups:
                options["lr"] = group.lr * pace
            group.scaler.step(group.optimizer)
            group.scaler.update()
            group.optimizer.zero_grad()
        self.engine.broadcast([*(group.module for group in self.groups.values()), self.task.extra_state()], buffers_only=True)
        if self.ema is not None:
            self.ema.update()
        self.step += 1
        if self._log is not None:
            if self.step % config.log_every == 0 or self.step == config.steps:
                rates = {f"{name}/lr": self.groups[name].lr * pace for name in learned}
                self._log.log_scalars("train", self.step, {**values, **rates})
            self.ticker.update(self.step, seconds * self.engine.processes, values)
        return halt

    def _losses(self, batch: Any, micro: _Micro) -> Iterator[str]:
        """Differentiates what the task yields for a micro-batch; the names of the groups that learned."""
        work = self.task.step(batch, StepContext(self.step, self.config.steps, self.rng))
        while True:
            with self.engine.autocast():
                found = next(work, None)
            if found is None:
                return
            name, terms = found
            if name not in self.groups:
                raise TrainingError(f"the task yields losses for '{name}', but has only: {', '.join(self.groups)}")
            if "loss" not in terms:
                raise TrainingError(f"the losses for '{name}' lack 'loss', the one to minimise; there are: {', '.join(terms)}")
            self.engine.backward(terms["loss"] / self.config.accumulation, self.groups[name])
            for term, value in terms.items():
                micro.terms[f"{name}/{term}"] = value.detach().float().reshape(())
            yield name

    def _gradient(self, name: str) -> Tensor:
        """Averages a group's gradients over the processes and clips them; their norm before that."""
        group = self.groups[name]
        self.engine.all_reduce_gradients(group)
        group.scaler.unscale_(group.optimizer)
        gradients = [p.grad for p in group.parameters.values() if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if group.clip is not None:
            torch.nn.utils.clip_grads_with_norm_(group.parameters.values(), group.clip, norm)
        return norm.float()

    def _checked(
        self, micros: list[_Micro], norms: Mapping[str, Tensor], flags: list[bool]
    ) -> tuple[dict[str, float], list[bool]]:
        """Every term, averaged over micro-batches and processes; TrainingError if one is not finite."""
        names = sorted({name for micro in micros for name in micro.terms})
        nothing = torch.full((), math.nan, device=self.engine.device)
        table = torch.stack([torch.stack([micro.terms.get(name, nothing) for name in names]) for micro in micros])
        rest = [*norms.values(), *(torch.tensor(float(flag), device=self.engine.device) for flag in flags)]
        present = torch.tensor([[name in micro.terms for name in names] for micro in micros], device=table.device)
        means = torch.where(present, table, 0).sum(0) / present.sum(0)
        flat = torch.cat([self.engine.all_reduce_mean(torch.cat([means, torch.stack(rest)])), table.flatten()]).tolist()
        values = dict(zip([*names, *norms], flat, strict=False))
        scaled = {f"{name}/gradient" for name, group in self.groups.items() if group.scaler.is_enabled()}
        wrong = [name for name, value in values.items() if not math.isfinite(value) and name not in scaled]
        if wrong:
            raise TrainingError(
                f"step {self.step + 1}: {', '.join(f'{name} is {values[name]}' for name in wrong)}; "
                f"the batch was: {', '.join(_guilty(micros, any(name in names for name in wrong)))}. "
                f"The weights of step {self._saved} are kept in {self.folder / 'checkpoints'}; "
                "look at these items, or lower lr or clip"
            )
        return values, [flag > 0 for flag in flat[len(values) : len(values) + len(flags)]]

    def _observe(self) -> None:
        """Validation, samples and a checkpoint, each where it is due; none of them changes what training does."""
        config, last = self.config, self.step == self.config.steps
        if self.material.validation and (self.step % config.validate_every == 0 or last):
            self._validate()
        if self.material.samples is not None and (self.step % config.samples_every == 0 or last):
            self._sample()
        if self.step % config.checkpoint_every == 0 or last:
            self._checkpoint()

    @contextmanager
    def _judged(self) -> Iterator[None]:
        """Evaluation mode, averaged weights, no gradient, and the sources of chance left as they were."""
        modules = list(self.task.optimized_modules().values())
        chance = checkpoints.rng_state(self.rng)
        try:
            with torch.no_grad(), self.engine.autocast(), self._averaged():
                for module in modules:
                    module.eval()
                yield
        finally:
            checkpoints.set_random_state(chance, self.rng)

    def _averaged(self) -> Any:
        return nullcontext() if self.ema is None else self.ema.swapped_in()

    def _validate(self) -> None:
        if self._log is not None:
            totals: dict[str, float] = {}
            with self._judged():
                for batch in self.material.validation:
                    for name, value in self.task.validate(self.engine.to_device(batch)).items():
                        totals[name] = totals.get(name, 0.0) + float(value) / len(self.material.validation)
                totals |= {name: float(value) for name, value in self.task.epoch_metrics().items()}
            self._log.log_scalars("valid", self.step, totals)
            score = totals.get(self.task.selection_metric, math.inf)
            if score < self.best:
                self.best = score
                self._export("best")
        self.engine.barrier()

    def _sample(self) -> None:
        if self._log is not None:
            with self._judged():
                heard = self.task.sample_audio(self.engine.to_device(self.material.samples))
            for name, audio in heard.items():
                for sample, clip, picture in loggers.save_samples(
                    self.folder / "samples" / f"step-{self.step:08d}", name, audio
                ):
                    self._log.log_audio(self.step, sample, clip, picture)
        self.engine.barrier()

    def _export(self, name: str) -> None:
        with self._averaged():
            self._save(self.folder / name)

    def _checkpoint(self) -> None:
        everyone = self.engine.gather(checkpoints.rng_state(self.rng))
        if self.engine.main:
            if self._log is not None:
                self._log.fsync()
            tensors, plain = checkpoints.capture_state(self.groups, self.task.extra_state(), self.ema)
            plain |= {
                "position": self.position,
                "processes": self.engine.processes,
                "best": None if math.isinf(self.best) else self.best,
                "random": everyone,
                "config": self.config.to_dict(),
            }
            checkpoints.save_checkpoint(
                self.folder / "checkpoints", Checkpoint(self.step, tensors, plain), self.config.keep_last
            )
        self._saved = self.step
        self.engine.barrier()

    def _trackers(self) -> list[Any]:
        return build_trackers(self.config.trackers, self.folder, self.config.name, self.step)


def _guilty(micros: list[_Micro], losses: bool) -> list[str]:
    """The items of the micro-batches whose losses are not finite, or of all where only the gradient is not."""
    bad = [micro for micro in micros if not all(bool(x.isfinite()) for x in micro.terms.values())]
    if losses and not bad:
        return ["one of another process"]
    return [item for micro in bad or micros for item in micro.items]


def batch_ids(batch: Any) -> list[str]:
    """The ids of a batch's items, for messages."""
    found = batch.get("ids") if isinstance(batch, Mapping) else getattr(batch, "ids", None)
    return ["(a batch without ids)"] if found is None else [str(item) for item in found]


def batch_seconds(batch: Any) -> float:
    """Seconds of sound in a batch, 0 where it does not say."""
    found = batch.get("seconds") if isinstance(batch, Mapping) else getattr(batch, "seconds", None)
    return float(found or 0.0)
