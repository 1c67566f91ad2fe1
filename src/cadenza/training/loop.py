"""The training loop: optimizer steps, validation, samples, checkpoints and graceful stop.

One step, in this order:

1. Put the task's modules into training mode, and take `accumulation` micro-batches one after another.
2. For each of them, advance the task's `step` generator; each yield is (group, losses), computed under autocast.
3. Backpropagate `losses["loss"] / accumulation` into that group's parameters alone.
4. For each group that had a loss: average the gradients over the processes, then clip them.
5. Average all losses over micro-batches and processes; stop with TrainingError if one is not finite. This is the only
   point of a step at which the host waits for the device; stop signals of all processes are combined here.
6. Set the learning rate, step these groups' optimizers together, broadcast buffers from process 0, update the EMA.
7. Log the losses (every `log_every` steps).
8. When due: validate with EMA weights (a new best score is saved to `best`), generate samples, write a checkpoint.
9. Leave the loop if a stop signal was received or `minutes` have passed.
"""

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
from cadenza.training import checkpoints
from cadenza.training.checkpoints import Checkpoint
from cadenza.training.config import TrainingConfig
from cadenza.training.distributed import DistributedContext
from cadenza.training.loggers import ProgressPrinter, RunLogger, build_trackers
from cadenza.training.optim import EMA, build_optimizers, lr_multiplier
from cadenza.training.tasks.base import StepContext, Task

StopReason = Literal["finished", "stopped", "out of time"]


class StopSignal:
    """Name of the signal that stops the run, if any."""

    name: str | None = None


@contextmanager
def graceful_stop() -> Iterator[StopSignal]:
    """Record the first SIGINT or SIGTERM; raise KeyboardInterrupt at the second."""
    stop = StopSignal()

    def handle(number: int, frame: FrameType | None) -> None:
        if stop.name is not None:
            raise KeyboardInterrupt
        stop.name = signal.Signals(number).name

    is_main = threading.current_thread() is threading.main_thread()  # only it may set handlers
    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM) if is_main}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


class BatchSource(Protocol):
    """Endless batches; batch number n is the same every time."""

    def iter_from(self, position: int) -> Iterator[Any]:
        """Yield the batches of this process from number `position`."""
        ...


@dataclass(frozen=True)
class TrainingData:
    """Training batches, and fixed batches for validation and samples."""

    batches: BatchSource
    validation: Sequence[Any] = ()
    samples: Any = None  # one batch, or None for no samples


@dataclass(frozen=True)
class TrainingResult:
    """State of a run when `train` returns."""

    step: int
    reason: StopReason
    folder: Path
    best: float = math.inf  # lowest value of the selection metric so far


@dataclass
class _MicroBatch:
    """Item ids and losses of one micro-batch; the losses are on the device."""

    items: list[str]
    losses: dict[str, Tensor] = field(default_factory=dict)


class TrainingLoop:
    """Train one task; `save` writes the system with its present weights into a folder.

    All groups see the weights of the start of the step; their optimizers step together at its end.
    """

    def __init__(
        self, config: TrainingConfig, task: Task, *, folder: Path, engine: DistributedContext, save: Callable[[Path], None]
    ) -> None:  # fmt: skip
        self.config, self.task, self.folder, self.engine, self._save = config, task, folder, engine, save
        self._checkpoints = folder / "checkpoints"
        modules = task.optimized_modules()
        for module in (*modules.values(), task.extra_state()):
            module.to(engine.device)
        engine.broadcast([*modules.values(), task.extra_state()])
        self.groups = build_optimizers(modules, config)
        self.ema = None if config.ema is None else EMA(next(iter(modules.values())), config.ema)
        self.rng = torch.Generator().manual_seed(config.seed + engine.rank)
        self._random_state: dict[str, Any] | None = None  # of a resumed run
        self.step = 0
        self.position = 0  # of the next batch
        self.best = math.inf
        self._saved = -1  # step of the newest checkpoint
        self.ticker = ProgressPrinter(config.steps, quiet=not engine.main)

    def resume(self) -> None:
        """Restore the newest undamaged checkpoint in the folder, if there is one."""
        if self.engine.main:
            checkpoints.remove_unfinished(self._checkpoints)
        self.engine.barrier()
        checkpoint = checkpoints.latest_checkpoint(self._checkpoints, self.ticker.print)
        if checkpoint is None:
            return
        state = checkpoint.state
        if state["processes"] != self.engine.processes:
            counts = f"{state['processes']} processes, but this run has {self.engine.processes}"
            raise CheckpointError(f"{self.folder} was trained by {counts}; use the same number")
        checkpoints.restore_state(self.groups, self.task.extra_state(), self.ema, checkpoint)
        self._random_state = state["random"][self.engine.rank]
        self.step = self._saved = checkpoint.step
        self.position = state["position"]
        self.best = math.inf if state["best"] is None else state["best"]
        before, now = TrainingConfig.parse(state["config"], source=str(self._checkpoints)).to_dict(), self.config.to_dict()
        changed = [f"{key}: {before[key]} → {now[key]}" for key in now if now[key] != before[key]]
        self.ticker.print(f"continuing from step {self.step}" + (f" with {'; '.join(changed)}" if changed else ""))

    def run(self, data: TrainingData) -> TrainingResult:
        """Train from the present step; the state of step 0 is saved first."""
        self.data = data
        if self._random_state is not None:
            checkpoints.set_random_state(self._random_state, self.rng)
        trackers = build_trackers(self.config.trackers, self.folder, self.config.name, self.step) if self.engine.main else []
        self._log = RunLogger(self.folder, self.step, trackers) if self.engine.main else None
        try:
            with graceful_stop() as stop:
                return self._run(stop)
        finally:
            if self._log is not None:
                self._log.close()

    def _run(self, stop: StopSignal) -> TrainingResult:
        if self._saved != self.step:
            self._checkpoint()
        start = time.monotonic()
        limit = math.inf if self.config.minutes is None else 60 * self.config.minutes
        reason: StopReason = "finished"
        with closing(self._batches()) as batches:
            while self.step < self.config.steps:
                try:
                    stops = self._train_step(batches, lambda: [stop.name is not None, time.monotonic() - start > limit])
                    self._evaluate()
                except (RuntimeError, ConnectionError, EOFError) as error:
                    workers_ended = not isinstance(error, RuntimeError) or "DataLoader worker" in str(error)
                    if stop.name is None or not workers_ended:
                        raise
                    return self._result("stopped", stop, self._saved)  # the signal also ended the data workers
                if any(stops) and self.step < self.config.steps:
                    reason = "stopped" if stops[0] else "out of time"
                    break
        if self._saved != self.step:
            self._checkpoint()
        if reason == "finished" and self.engine.main:
            self._export("final")
        self.engine.barrier()
        return self._result(reason, stop, self.step)

    def _result(self, reason: StopReason, stop: StopSignal, step: int) -> TrainingResult:
        cause = f" by {stop.name}" if stop.name and reason == "stopped" else ""
        hint = "" if reason == "finished" else "; start again with the same folder to continue"
        self.ticker.print(f"{reason}{cause} at step {step} of {self.config.steps}: {self.folder}{hint}")
        return TrainingResult(step, reason, self.folder, self.best)

    def _batches(self) -> Generator[Any]:
        """Yield batches from the present position; starting the loader does not change the random state."""
        state = checkpoints.random_state(self.rng)
        batches = self.data.batches.iter_from(self.position)
        first = next(batches)
        checkpoints.set_random_state(state, self.rng)
        yield first
        yield from batches

    def _train_step(self, batches: Iterator[Any], stop_flags: Callable[[], list[bool]]) -> list[bool]:
        """Run one optimizer step; return the stop flags, combined over all processes."""
        config = self.config
        micro_batches, trained, seconds = [], dict[str, None](), 0.0
        for module in self.task.optimized_modules().values():
            module.train()
        for _ in range(config.accumulation):
            batch = next(batches)
            self.position += 1
            micro_batch = _MicroBatch([str(item) for item in batch.get("ids") or ["(a batch without ids)"]])
            seconds += float(batch.get("seconds") or 0.0)
            trained |= dict.fromkeys(self._backward(self.engine.to_device(batch), micro_batch))
            micro_batches.append(micro_batch)
        norms = {f"{name}/gradient": self._clip_gradients(name) for name in trained}
        values, stops = self._reduce(micro_batches, norms, stop_flags())
        multiplier = lr_multiplier(self.step, config)
        for name in trained:
            group = self.groups[name]
            for options in group.optimizer.param_groups:
                options["lr"] = group.lr * multiplier
            group.scaler.step(group.optimizer)
            group.scaler.update()
            group.optimizer.zero_grad()
        self.engine.broadcast([*(group.module for group in self.groups.values()), self.task.extra_state()], buffers_only=True)
        if self.ema is not None:
            self.ema.update()
        self.step += 1
        if self._log is not None:
            if self.step % config.log_every == 0 or self.step == config.steps:
                rates = {f"{name}/lr": self.groups[name].lr * multiplier for name in trained}
                self._log.log_scalars("train", self.step, {**values, **rates})
            self.ticker.update(self.step, seconds * self.engine.processes, values)
        return stops

    def _backward(self, batch: Any, micro_batch: _MicroBatch) -> Iterator[str]:
        """Backpropagate each loss that the task yields; yield the names of the groups."""
        work = self.task.step(batch, StepContext(self.step, self.config.steps, self.rng))
        while True:
            with self.engine.autocast():
                result = next(work, None)
            if result is None:
                return
            name, losses = result
            if name not in self.groups:
                raise TrainingError(f"the task yields losses for '{name}', which is not a group: {', '.join(self.groups)}")
            if "loss" not in losses:
                raise TrainingError(f"the losses for '{name}' lack 'loss', the one to minimize. Present: {', '.join(losses)}")
            self.engine.backward(losses["loss"] / self.config.accumulation, self.groups[name])
            for term, value in losses.items():
                micro_batch.losses[f"{name}/{term}"] = value.detach().float().reshape(())
            yield name

    def _clip_gradients(self, name: str) -> Tensor:
        """Average a group's gradients over the processes and clip them; return their norm before clipping."""
        group = self.groups[name]
        self.engine.all_reduce_gradients(group)
        group.scaler.unscale_(group.optimizer)
        norm = torch.nn.utils.get_total_norm([p.grad for p in group.parameters.values() if p.grad is not None])
        if group.grad_clip is not None:
            torch.nn.utils.clip_grads_with_norm_(group.parameters.values(), group.grad_clip, norm)
        return norm.float()

    def _reduce(
        self, micro_batches: list[_MicroBatch], norms: Mapping[str, Tensor], stop_flags: list[bool]
    ) -> tuple[dict[str, float], list[bool]]:
        """Average losses over micro-batches and processes; raise TrainingError if one is not finite."""
        names = sorted({name for micro_batch in micro_batches for name in micro_batch.losses})
        missing = torch.full((), math.nan, device=self.engine.device)
        table = torch.stack([torch.stack([m.losses.get(name, missing) for name in names]) for m in micro_batches])
        others = [*norms.values(), *(torch.tensor(float(flag), device=self.engine.device) for flag in stop_flags)]
        present = torch.tensor([[name in m.losses for name in names] for m in micro_batches], device=table.device)
        means = torch.where(present, table, 0).sum(0) / present.sum(0)
        reduced = self.engine.all_reduce_mean(torch.cat([means, torch.stack(others)]))
        flat = torch.cat([reduced, table.flatten()]).tolist()
        values = dict(zip([*names, *norms], flat, strict=False))
        scaled = {f"{name}/gradient" for name, group in self.groups.items() if group.scaler.is_enabled()}
        wrong = [name for name, value in values.items() if not math.isfinite(value) and name not in scaled]
        if wrong:
            items = _items_of_wrong_losses(micro_batches, any(name in names for name in wrong))
            raise TrainingError(
                f"step {self.step + 1}: {', '.join(f'{name} is {values[name]}' for name in wrong)}; "
                f"the batch was: {', '.join(items)}. The weights of step {self._saved} are in {self._checkpoints}. "
                "Check these items, or lower lr or grad_clip"
            )
        return values, [flag > 0 for flag in flat[len(values) : len(values) + len(stop_flags)]]

    def _evaluate(self) -> None:
        """Validate, generate samples and write a checkpoint when due; none of them affects training."""
        config, last = self.config, self.step == self.config.steps
        if self.data.validation and (self.step % config.validate_every == 0 or last):
            self._validate()
        if self.data.samples is not None and (self.step % config.samples_every == 0 or last):
            self._sample()
        if self.step % config.checkpoint_every == 0 or last:
            self._checkpoint()

    @contextmanager
    def _eval_mode(self) -> Iterator[None]:
        """Set evaluation mode, EMA weights and no gradients; restore the random state afterwards."""
        state = checkpoints.random_state(self.rng)
        try:
            with torch.no_grad(), self.engine.autocast(), nullcontext() if self.ema is None else self.ema.swapped_in():
                for module in self.task.optimized_modules().values():
                    module.eval()
                yield
        finally:
            checkpoints.set_random_state(state, self.rng)

    def _validate(self) -> None:
        if self._log is not None:
            with self._eval_mode():
                metrics = validation_metrics(self.task, self.engine, self.data.validation)
            self._log.log_scalars("valid", self.step, metrics)
            score = metrics.get(self.task.selection_metric, math.inf)
            if score < self.best:
                self.best = score
                self._export("best")
        self.engine.barrier()

    def _sample(self) -> None:
        if self._log is not None:
            with self._eval_mode():
                samples = self.task.sample_audio(self.engine.to_device(self.data.samples))
            for name, audio in samples.items():
                self._log.log_samples(self.step, self.folder / "samples" / f"step-{self.step:08d}", name, audio)
        self.engine.barrier()

    def _export(self, name: str) -> None:
        with nullcontext() if self.ema is None else self.ema.swapped_in():
            self._save(self.folder / name)

    def _checkpoint(self) -> None:
        random_states = self.engine.gather(checkpoints.random_state(self.rng))
        if self.engine.main:
            if self._log is not None:
                self._log.fsync()
            tensors, state = checkpoints.capture_state(self.groups, self.task.extra_state(), self.ema)
            state |= {"position": self.position, "processes": self.engine.processes, "random": random_states}
            state |= {"best": None if math.isinf(self.best) else self.best, "config": self.config.to_dict()}
            checkpoints.save_checkpoint(self._checkpoints, Checkpoint(self.step, tensors, state), self.config.keep_last)
        self._saved = self.step
        self.engine.barrier()


def validation_metrics(task: Task, engine: DistributedContext, batches: Sequence[Any]) -> dict[str, float]:
    """Return the task's metrics averaged over batches, with those of the whole validation."""
    totals: dict[str, float] = {}
    for batch in batches:
        for name, value in task.validate(engine.to_device(batch)).items():
            totals[name] = totals.get(name, 0.0) + float(value) / len(batches)
    return totals | {name: float(value) for name, value in task.epoch_metrics().items()}


def _items_of_wrong_losses(micro_batches: list[_MicroBatch], in_losses: bool) -> list[str]:
    """Return the items of micro-batches with a loss that is not finite, or all if only the gradient is not."""
    wrong = [m for m in micro_batches if not all(bool(x.isfinite()) for x in m.losses.values())]
    if in_losses and not wrong:
        return ["one of another process"]
    return [item for m in wrong or micro_batches for item in m.items]
