"""Outline: a system without numbers, by which is planned before any is read."""

from collections.abc import Callable
from functools import cache

import torch

from cadenza.nn.unfilled import unfilled
from cadenza.system.fitting import Needing
from cadenza.system.forecast import Course, Job, Needs, needs
from cadenza.system.spec import SystemSpec
from cadenza.system.system import System


def outline(spec: SystemSpec, *, dtype: torch.dtype = torch.float32, quantize: str | None = None) -> System:
    """The system of a spec as it would be loaded, of tensors that hold nothing."""
    with unfilled():
        system = System(spec).to(dtype)
        if quantize is not None and system.generator is not None:
            system.generator.quantize(quantize)  # type: ignore[arg-type]
            system.codec.narrow()
            for part in system.conditioners.values():
                part.narrow()  # type: ignore[operator]
    return system


def to_load(spec: SystemSpec, *, program: Callable[[], int], stored: int) -> Needing:
    """What jobs need of a system that is to be loaded, of `stored` bytes of weights, in a program that takes some itself."""
    made = cache(lambda dtype, kind: outline(spec, dtype=dtype, quantize=kind))
    taken = cache(program)

    def needing(job: Job, course: Course) -> Needs:
        system = made(job.dtype, job.quantize)
        needs(system, job, course)  # which imports what the parts are made of
        return needs(system, job, course, program=taken(), stored=stored)

    return needing
