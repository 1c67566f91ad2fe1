"""Outline: a system without numbers, by which is planned before any is read."""

from collections.abc import Callable
from functools import cache

import torch

from cadenza.nn.meta_init import init_empty_weights
from cadenza.system.planner import BatchPlan, GenerationJob, MemoryEstimate, Needing, estimate_memory
from cadenza.system.spec import SystemSpec
from cadenza.system.system import System


def build_on_meta(spec: SystemSpec, *, dtype: torch.dtype = torch.float32, quantize: str | None = None) -> System:
    """The system of a spec as it would be loaded, of tensors that hold nothing."""
    with init_empty_weights():
        system = System(spec).to(dtype)
        if quantize is not None and system.generator is not None:
            system.generator.quantize(quantize)  # type: ignore[arg-type]
            system.codec.quantize_()
            for part in system.conditioners.values():
                part.quantize_frozen_()  # type: ignore[operator]
    return system


def estimator_for_unloaded(spec: SystemSpec, *, program: Callable[[], int], stored: int) -> Needing:
    """What jobs need of a system that is to be loaded, of `stored` bytes of weights, in a program that takes some itself."""
    made = cache(lambda dtype, kind: build_on_meta(spec, dtype=dtype, quantize=kind))
    taken = cache(program)

    def needing(job: GenerationJob, course: BatchPlan) -> MemoryEstimate:
        system = made(job.dtype, job.quantize)
        estimate_memory(system, job, course)  # which imports what the parts are made of
        return estimate_memory(system, job, course, program=taken(), stored=stored)

    return needing
