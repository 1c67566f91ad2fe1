"""Plan of a run before its model is loaded: an outline on the meta device, and the lines that are printed."""

from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

from cadenza.core.checkpoint import open_safetensors
from cadenza.core.device import choose_threads
from cadenza.core.errors import CheckpointError, RequestError
from cadenza.core.memory import available_memory_on, format_bytes, process_rss
from cadenza.nn.meta_init import init_empty_weights
from cadenza.nn.weight_quantization import KINDS
from cadenza.system import planner
from cadenza.system.request import Request
from cadenza.system.spec import SystemSpec
from cadenza.system.store import ModelFolder
from cadenza.system.system import System

_WEIGHT_FILES = ("*.safetensors", "*.bin", "*.th", "*.pt", "*.ckpt")


def build_on_meta(spec: SystemSpec, *, dtype: torch.dtype = torch.float32, quantize: str | None = None) -> System:
    """Build the outline of a system as it would be loaded: shapes and dtypes without data."""
    with init_empty_weights():
        system = System(spec).to(dtype)
        if quantize is not None and system.generator is not None:
            system.generator.quantize(quantize)  # type: ignore[arg-type]
            system.codec.quantize_()
            system.conditioners.quantize_frozen_()
    return system


def plan_before_loading(
    model: ModelFolder,
    request: Request,
    *,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    quantize: str | None = None,
    max_bytes: int | None = None,
) -> planner.Plan:
    """Plan a request to a model that is not loaded; also choose the threads of the CPU.

    With `dtype=None`, bfloat16 is chosen if float32 does not fit. `max_bytes` replaces the free memory of the device.
    Raises RequestError, naming what would fit, if nothing does.
    """
    spec = model.spec
    if spec.generator is None:
        raise RequestError("this system is a codec alone: it encodes and decodes, but cannot generate")
    if quantize not in (None, *KINDS):
        raise RequestError(f"quantisation '{quantize}' is not known. Choose from: {', '.join(KINDS)}")
    quantize = quantize or _stored_quantization(model.folder)
    job = planner.GenerationJob.from_request(spec, request, dtype=dtype or torch.float32, quantize=quantize, device=device)
    stored = sum(path.stat().st_size for pattern in _WEIGHT_FILES for path in model.folder.glob(pattern))
    outline = cache(lambda dtype, kind: build_on_meta(spec, dtype=dtype, quantize=kind))
    system = outline(job.dtype, job.quantize)
    choose_threads(system)
    planner.estimate_memory(system, job, planner.BatchPlan(len(job.frames)))  # imports what counts as the program
    program = process_rss()
    if max_bytes is None and (max_bytes := available_memory_on(device)) is not None and not device.startswith("cuda"):
        max_bytes += program

    def estimate(job: planner.GenerationJob, batch_plan: planner.BatchPlan) -> planner.MemoryEstimate:
        system = outline(job.dtype, job.quantize)
        return planner.estimate_memory(system, job, batch_plan, program=program, stored=stored)

    return planner.plan_within_memory(job, estimate, max_bytes=max_bytes, allow_bfloat16=dtype is None)


def format_plan(spec: SystemSpec, plan: planner.Plan) -> str:
    """Return the two lines of a plan: its memory by use, and its time by earlier runs."""
    parts = sorted(plan.memory.breakdown().items(), key=lambda part: -part[1])
    uses = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts)
    reason = f"; {plan.reason}" if plan.reason else ""
    limit = "" if plan.max_bytes is None else f" of {format_bytes(plan.max_bytes)}"
    memory = f"memory: {format_bytes(plan.memory.peak)}{limit} at the peak, while {plan.memory.peak_phase}: {uses}{reason}"
    elapsed = planner.estimate_elapsed(spec, plan)
    if elapsed is None:
        return f"{memory}\ntime: unknown, as no such run was recorded on this machine"
    seconds, runs = elapsed
    factor = sum(plan.job.frames) / spec.codec.frame_format.frame_rate / seconds
    threads = torch.get_num_threads()
    device = f"{threads} thread{'s' * (threads > 1)}" if plan.job.device == "cpu" else plan.job.device
    duration = f"{seconds / 60:.1f} minutes" if seconds >= 100 else f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    basis = f"from {runs} earlier run{'s' * (runs > 1)}"
    return f"{memory}\ntime: about {duration} on {device} ({factor:.1f}x real time), without loading, {basis}"


def _stored_quantization(folder: Path) -> str | None:
    """Return the quantisation of the weight files of a saved system, from their headers."""
    with suppress(CheckpointError):  # loading reports a damaged file
        for path in sorted(folder.glob("model*.safetensors")):
            for name, weight in open_safetensors(path).items():
                if name.startswith("generator.") and name.endswith(".packed"):
                    return {torch.int8: "int8", torch.uint8: "int4"}.get(weight.dtype)
    return None
