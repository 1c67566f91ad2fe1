"""Plan of a request before it runs: memory by use, batches that fit, and run time from earlier runs on this machine."""

import hashlib
import json
import os
import platform
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import nn

from cadenza.codecs.base import Codec
from cadenza.conditioners.base import ConditionerSet
from cadenza.core.atomic import atomic_write, cache_dir
from cadenza.core.errors import CadenzaError, RequestError
from cadenza.core.memory import format_bytes
from cadenza.core.types import Slot
from cadenza.generators.base import BatchShape, Generator
from cadenza.nn.weight_quantization import KINDS, packed_bytes
from cadenza.samplers.guidance import expand_guidance
from cadenza.system.request import ClipRequest, Request
from cadenza.system.spec import SystemSpec

MAX_SECONDS = 3600  # of a clip; longer ones are taken for a mistake
LIBRARY_BYTES = 24 * 2**20  # of libraries that the first computation loads
MEMORY_MARGIN = 1.05  # free memory needed per estimated byte, as the estimate is not exact
RECENT_RUNS = 20  # real-time factors kept for each kind of run
MAX_RUN_KEYS = 500  # kinds of runs kept
_DECODE_CHUNKS = (None, 24)  # frames decoded at a time: the codec's default, or few


@runtime_checkable
class SystemLike(Protocol):
    """A system, or the outline of one on the meta device."""

    spec: SystemSpec
    codec: Codec
    conditioners: ConditionerSet
    generator: Generator | None


@dataclass(frozen=True)
class GenerationJob:
    """Frames of each clip of a request, and the dtype, quantisation and device of the computation."""

    frames: tuple[int, ...]
    branches: int = 2  # of guidance
    two_step: bool = False
    dtype: torch.dtype = torch.float32
    quantize: str | None = None
    device: str = "cpu"

    @classmethod
    def from_request(cls, spec: SystemSpec, request: Request, **options: Any) -> "GenerationJob":
        """Return the job of a request to a system; `options` are dtype, quantize and device."""
        clips, guidance = request.expand(), request.effective_guidance
        frames = tuple(spec.codec.num_frames(num_samples(spec, clip)) for clip in clips)
        guided = [route.id for routes in spec.fusion.routes_by_slot().values() for route in routes if route.guided]
        present = {name for clip in clips for name in clip.item} & set(guided)
        terms = expand_guidance(guidance, spec.defaults.guidance, guided, present)
        needs_unguided = guidance.is_scheduled or guidance.rescale > 0
        branches = sum(term.weight != 0 or bool(needs_unguided and term.unguided_weight) for term in terms)
        return cls(frames, max(1, branches), request.two_step_cfg, **options)

    def with_frames(self, frames: tuple[int, ...]) -> "GenerationJob":
        """Return a copy for clips of other lengths."""
        return replace(self, frames=frames)


def num_samples(spec: SystemSpec, clip: ClipRequest) -> int:
    """Return the samples of a clip; raise RequestError if it is longer than MAX_SECONDS."""
    assert spec.generator is not None
    window = spec.generator.max_frames / spec.codec.frame_format.frame_rate
    seconds = min(spec.defaults.seconds, window) if clip.seconds is None else clip.seconds
    if seconds > MAX_SECONDS:
        raise RequestError(f"{seconds:g} seconds are too long: a clip may have up to {MAX_SECONDS}; make several and join them")
    return max(1, round(seconds * spec.codec.sample_rate))


@dataclass(frozen=True)
class BatchPlan:
    """Clips generated together, and frames decoded at a time (None: the codec's default)."""

    batch_size: int
    decode_chunk_frames: int | None = None

    def batches(self, job: GenerationJob) -> list[tuple[int, ...]]:
        """Return the frames of the clips of each batch."""
        return [job.frames[i : i + self.batch_size] for i in range(0, len(job.frames), self.batch_size)]


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by use: `persistent` from loading on, and those that each phase adds while it lasts."""

    persistent: Mapping[str, int]
    phases: Mapping[str, Mapping[str, int]]

    @property
    def peak(self) -> int:
        """Bytes in use in the largest phase."""
        return sum(self.persistent.values()) + max((sum(phase.values()) for phase in self.phases.values()), default=0)

    @property
    def peak_phase(self) -> str:
        """Name of the largest phase."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    def breakdown(self) -> dict[str, int]:
        """Return the bytes of the peak by use, without zeros."""
        return {name: size for name, size in {**self.persistent, **self.phases[self.peak_phase]}.items() if size}


MemoryEstimator = Callable[[GenerationJob, BatchPlan], MemoryEstimate]


def estimate_memory(
    system: SystemLike, job: GenerationJob, batch_plan: BatchPlan, *, program: int = 0, stored: int | None = None
) -> MemoryEstimate:
    """Estimate the bytes that a job takes in a system or its outline.

    `program` is what the process takes without the system; `stored` is the size of its weight files if they are still to
    be loaded. On a GPU neither counts, as both are in the memory of the host.
    """
    device = job.device.partition(":")[0]
    on_host, codec = device == "cpu", system.spec.codec
    sizes = weight_bytes(system)
    unloaded = {name: part.unloaded_bytes() for name, part in system.conditioners.items()}  # type: ignore[operator]
    loading = sum(part.peak_loading_bytes() for part in system.conditioners.values())  # type: ignore[operator]
    persistent: dict[str, int] = {"program": program + LIBRARY_BYTES} if on_host else {}
    persistent |= {f"{name} weights": size for name, size in sizes.items()}
    persistent |= {f"{name} encoder": size for name, size in unloaded.items()}
    shapes = {(max(batch),) * len(batch) for batch in batch_plan.batches(job)}
    generating = max((_generation_bytes(system, job.with_frames(shape)) for shape in shapes), key=lambda use: sum(use.values()))
    longest = max(job.frames)
    chunk = codec.decode_chunk_frames(longest, device)
    chunk = chunk if batch_plan.decode_chunk_frames is None else min(batch_plan.decode_chunk_frames, chunk)
    clips = min(batch_plan.batch_size, len(job.frames))
    decoding = codec.decode_memory_bytes(chunk, clips=clips, itemsize=_dtype(system.codec).itemsize)
    packed = sizes["codec"] // 2 if on_host else 0  # decoder weights in the layout of the convolutions
    audio = 2 * len(job.frames) * longest * codec.hop_length * codec.channels * 4
    phases = {"generating": generating, "decoding": {"codec activations": decoding + packed, "audio": audio}}
    if on_host and stored is not None:
        phases["loading"] = {"weight files": max(0, stored - sum(sizes.values()) - sum(unloaded.values()))}
    if on_host and loading:
        phases["encoding"] = {"encoder files": max(0, loading - sum(unloaded.values()))}
    return MemoryEstimate(persistent, phases)


def weight_bytes(system: SystemLike) -> dict[str, int]:
    """Return the bytes of the weights of each part that has some."""
    parts = {"codec": system.codec, "conditioners": system.conditioners, "generator": system.generator}
    sizes = {name: 0 if part is None else module_bytes(part) for name, part in parts.items()}
    return {name: size for name, size in sizes.items() if size or name == "codec"}


def module_bytes(module: nn.Module) -> int:
    """Return the bytes of the parameters and buffers of a module."""
    return sum(x.numel() * x.element_size() for x in (*module.parameters(), *module.buffers()))


def _generation_bytes(system: SystemLike, job: GenerationJob) -> dict[str, int]:
    """Return the bytes that generating one batch takes, by use."""
    spec, generator = system.spec, system.generator
    assert spec.generator is not None and generator is not None
    rows, longest, dtype = len(job.frames) * job.branches, max(job.frames), _dtype(generator)
    positions: dict[Slot, int] = {}
    conditions = 0
    for slot, routes in spec.fusion.routes_by_slot().items():
        parts = [spec.conditioners[route.id] for route in routes]
        positions[slot] = sum(part.num_tokens(longest) for part in parts) if slot in ("cross", "prepend") else longest
        if slot in ("add", "concat"):  # computed, then spread over the frames in every branch
            conditions += sum(part.output_dim for part in parts) * rows * longest * dtype.itemsize
    window = spec.generator.max_frames if spec.generator.fixed_length else min(longest, spec.generator.max_frames)
    shape = BatchShape(rows, window, positions, spec.slot_dims(), dtype, job.quantize is not None, job.device)
    sizes = spec.generator.activation_bytes(spec.codec.frame_format, shape)
    sizes["conditions"] = sizes.get("conditions", 0) + conditions
    packed = packed_bytes(generator, len(job.frames) if job.two_step else rows, device=job.device.partition(":")[0])
    return {"packed copies": packed} | sizes


def _dtype(module: nn.Module) -> torch.dtype:
    return next((x.dtype for x in module.parameters() if x.is_floating_point()), torch.float32)


@dataclass(frozen=True)
class Plan:
    """A job, its batches and its memory; `reason` says what was changed to fit in memory, if anything."""

    job: GenerationJob
    batch_plan: BatchPlan
    memory: MemoryEstimate
    max_bytes: int | None = None  # memory that the plan may take
    reason: str = ""


def plan_within_memory(
    spec: SystemSpec,
    job: GenerationJob,
    estimate: MemoryEstimator,
    *,
    max_bytes: int | None,
    allow_bfloat16: bool = False,
    loaded: bool = False,
) -> Plan:
    """Choose batches, decoding chunks and, if allowed, bfloat16 that fit in `max_bytes` (None: no limit).

    Tries all clips together first, then smaller batches, then bfloat16. Raises RequestError, naming what would fit, if
    nothing does; a `loaded` system keeps its dtype and quantisation.
    """

    def fits(memory: MemoryEstimate) -> bool:
        return max_bytes is None or memory.peak * MEMORY_MARGIN <= max_bytes

    def first_fit(job: GenerationJob) -> Plan | None:
        for batch_plan in _batch_plans(job):
            memory = estimate(job, batch_plan)
            if fits(memory):
                return Plan(job, batch_plan, memory, max_bytes, _reason(job, batch_plan))
        return None

    if plan := first_fit(job):
        return plan
    can_change = not loaded and job.dtype == torch.float32 and job.quantize is None
    if can_change and allow_bfloat16 and (plan := first_fit(replace(job, dtype=torch.bfloat16))):
        return replace(plan, reason="; ".join(filter(None, ["bfloat16, as float32 does not fit in memory", plan.reason])))
    smallest = BatchPlan(1, _DECODE_CHUNKS[-1])

    def possible(job: GenerationJob) -> bool:
        try:
            return fits(estimate(job, smallest))
        except RequestError:  # a quantisation that does not suit the model or the device
            return False

    options = ["--half"] * bool(can_change and not allow_bfloat16 and possible(replace(job, dtype=torch.bfloat16)))
    options += [f"--quantize {kind}" for kind in KINDS if can_change and possible(replace(job, quantize=kind))]
    options += _smaller_jobs(spec, job, possible)
    least = estimate(job, smallest)
    largest = sorted(least.breakdown().items(), key=lambda part: -part[1])[:3]
    parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in largest)
    fix = f"what would fit: {', or '.join(options)}" if options else "nothing of this model fits; use a smaller model"
    needed, free = format_bytes(least.peak), format_bytes(max_bytes or 0)
    raise RequestError(f"too little memory: at least {needed} needed ({parts}, ...), {free} available; {fix}")


def estimator_for_loaded(system: SystemLike) -> MemoryEstimator:
    """Return an estimator of the bytes that jobs need in addition to a loaded system."""

    def estimate(job: GenerationJob, batch_plan: BatchPlan) -> MemoryEstimate:
        memory = estimate_memory(system, job, batch_plan)
        encoders = {name: size for name, size in memory.persistent.items() if name.endswith("encoder")}
        return MemoryEstimate(encoders, memory.phases)

    return estimate


def split_request(request: Request, batch_size: int) -> list[Request]:
    """Split a request into several of at most `batch_size` clips each."""
    clips, negatives = request.expand(), request.negative_items()
    if batch_size >= len(clips):
        return [request]
    parts = []
    for i in range(0, len(clips), batch_size):
        batch, guidance = clips[i : i + batch_size], request.guidance
        if guidance is not None and negatives is not None:
            guidance = guidance.model_copy(update={"negative": tuple(negatives[i : i + batch_size])})
        fields = {
            "items": tuple(dict(clip.item) for clip in batch),
            "seconds": None if request.seconds is None else tuple(clip.seconds for clip in batch),
            "seed": tuple(clip.seed for clip in batch),
            "continue_from": None if request.continue_from is None else tuple(clip.continue_from for clip in batch),
            "variations": 1,
            "guidance": guidance,
        }
        parts.append(request.model_copy(update=fields))
    return parts


def _batch_plans(job: GenerationJob) -> Iterator[BatchPlan]:
    """Yield batch plans from the fastest to the smallest."""
    batch_size = len(job.frames)
    while True:
        for chunk in _DECODE_CHUNKS:
            yield BatchPlan(batch_size, chunk)
        if batch_size == 1:
            return
        batch_size = -(-batch_size // 2)


def _reason(job: GenerationJob, batch_plan: BatchPlan) -> str:
    clips = f"{batch_plan.batch_size} of {len(job.frames)} clips at a time" * (batch_plan.batch_size < len(job.frames))
    chunks = f"{batch_plan.decode_chunk_frames} frames decoded at a time" if batch_plan.decode_chunk_frames else ""
    changes = " and ".join(filter(None, [clips, chunks]))
    return f"{changes}, to fit in memory" if changes else ""


def _smaller_jobs(spec: SystemSpec, job: GenerationJob, possible: Callable[[GenerationJob], bool]) -> list[str]:
    """Return the longest clips and the largest number of clips that would fit, in words."""
    rate = spec.codec.frame_format.frame_rate

    def shorter(seconds: int) -> GenerationJob:
        return job.with_frames(tuple(min(round(seconds * rate), frames) for frames in job.frames))

    seconds = _largest(int(max(job.frames) / rate), lambda n: possible(shorter(n)))
    clips = _largest(len(job.frames), lambda n: possible(job.with_frames(job.frames[:n])))
    options = [f"clips of up to {seconds} s"] * bool(seconds)
    return options + [f"{clips} clip{'s' if clips > 1 else ''} instead of {len(job.frames)}"] * bool(clips)


def _largest(limit: int, possible: Callable[[int], bool]) -> int:
    """Return the largest number below `limit` that is possible (as all smaller ones then are), or 0."""
    low = 0
    while limit - low > 1:
        middle = (low + limit) // 2
        low, limit = (middle, limit) if possible(middle) else (low, middle)
    return low


def estimate_elapsed(spec: SystemSpec, plan: Plan) -> tuple[float, int] | None:
    """Return the seconds that a plan takes by the median of earlier runs, and their number; None without any."""
    factors = _read_runs().get(_run_key(spec, plan))
    if not factors:
        return None
    audio = sum(plan.job.frames) / spec.codec.frame_format.frame_rate
    return audio / statistics.median(factors), len(factors)


def record_run(spec: SystemSpec, plan: Plan, realtime_factor: float) -> None:
    """Record the seconds of audio made per second; a cache folder that cannot be written is left as it is."""
    if (path := _runs_file()) is None or not 0 < realtime_factor < float("inf"):
        return
    runs, key = _read_runs(), _run_key(spec, plan)
    factors = [*runs.pop(key, []), realtime_factor][-RECENT_RUNS:]
    runs = dict([*runs.items(), (key, factors)][-MAX_RUN_KEYS:])
    with suppress(OSError, CadenzaError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(json.dumps(runs, indent=1).encode())


def _run_key(spec: SystemSpec, plan: Plan) -> str:
    """Return the kind of a run: spec, dtype or quantisation, machine, device, threads and batch size (a power of two)."""
    job = plan.job
    digest = hashlib.blake2b(spec.to_json().encode(), digest_size=8).hexdigest()
    device = torch.cuda.get_device_name(job.device) if job.device.startswith("cuda") else job.device
    batch = 1 << (plan.batch_plan.batch_size - 1).bit_length()
    precision = "/".join(filter(None, [str(job.dtype).removeprefix("torch."), job.quantize]))
    machine = f"{platform.node()}, {platform.machine()}, {os.cpu_count()} CPUs"
    return f"{digest}; {precision}; {machine}; {device}; {torch.get_num_threads()} threads; batch {batch}"


def _runs_file() -> Path | None:
    folder = cache_dir()
    return None if folder is None else folder / "runs.json"


def _read_runs() -> dict[str, list[float]]:
    """Return the real-time factors recorded for each kind of run; none if the file cannot be read."""
    path = _runs_file()
    try:
        runs = {} if path is None else json.loads(path.read_bytes())
        lists = {key: [float(x) for x in factors if x > 0] for key, factors in runs.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
    return lists
