"""Ours: a system of Cadenza in one of its forms, timed part by part."""

import gc
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cadenza.apps.bench.measure import Contestant, Job, Run, now
from cadenza.core.errors import BenchmarkError
from cadenza.core.spec import near

if TYPE_CHECKING:
    from cadenza.system.system import System

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
QUANTISED = ("int8", "int4")
VARIANTS = (*DTYPES, *QUANTISED)


class Ours(Contestant):
    """`cadenza.load` of a folder or a name as `variant`."""

    def __init__(self, model: str | Path, variant: str, *, device: torch.device, threads: int) -> None:
        if variant not in VARIANTS:
            raise BenchmarkError(f"there is no variant '{variant}'.{near(variant, VARIANTS)}")
        self.model, self.variant, self.device, self.threads = model, variant, device, threads
        self.name = f"cadenza {variant}"
        self._system: System | None = None

    @property
    def system(self) -> "System":
        if self._system is None:
            self.open()
        assert self._system is not None
        return self._system

    def open(self) -> None:
        if self._system is None:
            self._system = loaded(self.model, self.variant, self.device)

    def close(self) -> None:
        self._system = None
        gc.collect()

    def run(self, job: Job) -> Run:
        system, marks = self.system, {}
        hook = system.conditioners.register_forward_hook(lambda *_: marks.__setitem__("text", now(self.device)))
        try:
            start = now(self.device)
            codes = system.frames(job.items(), **asking(job))
            made = now(self.device)
            system.codec.decode(codes)  # type: ignore[arg-type]  # of one kind
            end = now(self.device)
        finally:
            hook.remove()
        text = marks["text"]
        frames = int(codes.lengths.max())
        return Run(text - start, made - text, end - made, end - start, steps(system, frames), job.seconds * job.batch)

    def first(self, job: Job) -> float:
        start = now(self.device)
        chunks = self.system.stream(job.items(), **asking(job))
        try:
            for chunk in chunks:
                if int(chunk.lengths.max()) > 0:
                    return now(self.device) - start
        finally:
            chunks.close()  # type: ignore[attr-defined]  # a generator function's
        raise BenchmarkError("the stream ended without a sound")


def loaded(model: str | Path, variant: str, device: torch.device) -> "System":
    """The system in that form; BenchmarkError where this build or device has no such form."""
    from cadenza.apps.api import load

    if variant in DTYPES:
        return load(model, device=device, dtype=DTYPES[variant])
    if "quantize" not in inspect.signature(load).parameters:
        raise BenchmarkError(f"this build cannot load a model as {variant}; leave that out of --variants")
    more: dict[str, Any] = {"quantize": variant}
    return load(model, device=device, **more)


def asking(job: Job) -> dict[str, Any]:
    """The fields of a request; three branches are what a prompt adds twice, and a negative prompt."""
    scale: Any = {1: 1.0, 2: 3.0, 3: {"scale": 3.0, "emphasis": {"prompt": 1.5}, "negative": "drums over bass"}}[job.branches]
    return {"seconds": job.seconds, "seed": 0, "guidance": scale}


def steps(system: "System", frames: int) -> int:
    """Steps that the language model takes for clips of `frames` frames, in windows where they are longer than one."""
    from cadenza.system.windows import SHARE

    generator: Any = system.generator
    rows, context = generator.grid.rows, generator.spec.context
    asked = system.spec.defaults.stride
    stride = max(1, round(SHARE * context)) if asked is None else round(asked * generator.grid.frame_rate)
    taken, first = 0, 0
    while True:
        window, shared = min(context, frames - first), context - stride if first else 0
        taken += len(generator.spec.pattern.pattern(rows, window)) - 1 - shared
        if first + window >= frames:
            return taken
        first += stride
