"""Plan of a request before it runs: memory by use, batches that fit, and run time from earlier runs on this machine."""

import hashlib
import os
import platform
import statistics
from bisect import bisect_left
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Protocol, runtime_checkable

import torch
from pydantic import Field, PositiveFloat, TypeAdapter

from cadenza.codecs.base import Codec
from cadenza.conditioners.base import ConditionerSet
from cadenza.core.atomic import atomic_write, cache_dir
from cadenza.core.errors import CadenzaError, RequestError
from cadenza.core.memory import format_bytes
from cadenza.core.types import Slot
from cadenza.generators.base import BatchShape, Generator
from cadenza.nn.weight_quantization import KINDS, packed_bytes
from cadenza.system.request import ClipRequest, Request
from cadenza.system.spec import SystemSpec

MAX_SECONDS = 3600  # of a clip; longer ones are taken for a mistake
LIBRARY_BYTES = 24 * 2**20  # of libraries that the first computation loads
MEMORY_MARGIN = 1.05  # free memory needed per estimated byte, as the estimate is not exact
RECENT_RUNS = 20  # real-time factors kept for each kind of run
MAX_RUN_KEYS = 500  # kinds of runs kept
RUNS_FILE = "runs.json"  # in the cache folder
_RUNS = TypeAdapter(dict[str, Annotated[list[PositiveFloat], Field(min_length=1)]])  # real-time factors by kind of run
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
    frame_rate: float
    branches: int  # of guidance
    dtype: torch.dtype = torch.float32
    quantize: str | None = None
    device: str = "cpu"

    @classmethod
    def from_request(cls, spec: SystemSpec, request: Request, **options: Any) -> "GenerationJob":
        """Return the job of a request to a system; `options` are dtype, quantize and device."""
        clips = request.expand()
        frames = tuple(spec.codec.num_frames(num_samples(spec, clip)) for clip in clips)
        terms = spec.guidance_terms(request.guidance, {name for clip in clips for name in clip.item})
        return cls(frames, spec.codec.frame_format.frame_rate, len(terms), **options)


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


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by use: `persistent` from loading on, and those that each phase adds while it lasts."""

    persistent: Mapping[str, int]
    phases: Mapping[str, Mapping[str, int]]

    @property
    def peak(self) -> int:
        """Bytes in use in the largest phase."""
        return sum(self.breakdown().values())

    @property
    def peak_phase(self) -> str:
        """Name of the largest phase."""
        return max(self.phases, key=lambda name: sum(self.phases[name].values()))

    def breakdown(self) -> dict[str, int]:
        """Return the bytes of the peak by use, without zeros."""
        return {name: size for name, size in {**self.persistent, **self.phases[self.peak_phase]}.items() if size}


MemoryEstimator = Callable[[GenerationJob, BatchPlan], MemoryEstimate]


def estimate_memory(
    system: SystemLike, job: GenerationJob, batch_plan: BatchPlan, *, program: int | None = 0, stored: int | None = None
) -> MemoryEstimate:
    """Estimate the bytes that a job takes in a system or its outline.

    `program` is what the process takes without the system; None if the system is loaded and not to be counted. `stored`
    is the size of its weight files if they are still to be loaded. On a GPU neither counts, as both are on the host.
    """
    device, codec = job.device.partition(":")[0], system.spec.codec
    on_host = device == "cpu"
    modules = {"codec": system.codec, "conditioners": system.conditioners, "generator": system.generator}
    tensors = {name: [*module.parameters(), *module.buffers()] for name, module in modules.items() if module is not None}
    weights = {name: sum(x.nbytes for x in parts) for name, parts in tensors.items()}
    encoders = {name: encoder.unloaded_bytes() for name, encoder in system.conditioners.frozen_encoders().items()}
    persistent = {f"{name} encoder": size for name, size in encoders.items()}
    if program is not None:
        persistent |= {"program": program + LIBRARY_BYTES} if on_host else {}
        persistent |= {f"{name} weights": size for name, size in weights.items()}

    longest, clips, size = max(job.frames), len(job.frames), batch_plan.batch_size
    batches = {(min(size, clips - i), max(job.frames[i : i + size])) for i in range(0, clips, size)}
    generating = max((_generation_bytes(system, job, *batch) for batch in batches), key=lambda uses: sum(uses.values()))
    chunk = codec.decode_chunk_frames(longest, device)
    chunk = chunk if batch_plan.decode_chunk_frames is None else min(batch_plan.decode_chunk_frames, chunk)
    decoding = codec.decode_memory_bytes(chunk, clips=min(size, clips), itemsize=job.dtype.itemsize)
    packed = weights["codec"] // 2 if on_host else 0  # decoder weights in the layout of the convolutions
    audio = 2 * clips * longest * codec.hop_length * codec.channels * 4
    phases = {"generating": generating, "decoding": {"codec activations": decoding + packed, "audio": audio}}
    loading = sum(encoder.unloaded_bytes(peak=True) for encoder in system.conditioners.frozen_encoders().values())
    if on_host and stored is not None:
        phases["loading"] = {"weight files": max(0, stored - sum(weights.values()) - sum(encoders.values()))}
    if on_host and loading:
        phases["encoding"] = {"encoder files": max(0, loading - sum(encoders.values()))}
    return MemoryEstimate(persistent, phases)


def _generation_bytes(system: SystemLike, job: GenerationJob, clips: int, frames: int) -> dict[str, int]:
    """Return the bytes by use that generating a batch takes, whose longest clip has `frames` frames."""
    spec, generator = system.spec, system.generator
    assert spec.generator is not None and generator is not None
    rows, conditions = clips * job.branches, 0
    positions: dict[Slot, int] = {}
    for slot, routes in spec.fusion.routes_by_slot().items():
        parts = [spec.conditioners[route.id] for route in routes]
        positions[slot] = sum(part.num_tokens(frames) for part in parts) if slot in ("cross", "prepend") else frames
        if slot in ("add", "concat"):  # computed, then expanded to the frames in every branch
            conditions += sum(part.output_dim for part in parts) * rows * frames * job.dtype.itemsize
    window = spec.generator.max_frames if spec.generator.fixed_length else min(frames, spec.generator.max_frames)
    shape = BatchShape(rows, window, positions, spec.slot_dims(), job.dtype, job.quantize is not None, job.device)
    sizes = spec.generator.activation_bytes(spec.codec.frame_format, shape)
    sizes["conditions"] = sizes.get("conditions", 0) + conditions
    return {"packed copies": packed_bytes(generator, rows, device=job.device.partition(":")[0])} | sizes


@dataclass(frozen=True)
class Plan:
    """A job, its batches and its memory; `reason` says what was changed to fit in memory, if anything."""

    job: GenerationJob
    batch_plan: BatchPlan
    memory: MemoryEstimate
    max_bytes: int | None = None  # memory that the plan may take
    reason: str = ""


def plan_within_memory(
    job: GenerationJob, estimate: MemoryEstimator, *, max_bytes: int | None, allow_bfloat16: bool = False, loaded: bool = False
) -> Plan:
    """Choose batches, decoding chunks and, if allowed, bfloat16 that fit in `max_bytes` (None: no limit).

    Tries all clips together first, then smaller batches, then bfloat16. Raises RequestError, naming what would fit, if
    nothing does; a `loaded` system keeps its dtype and quantisation.
    """

    def fits(memory: MemoryEstimate) -> bool:
        return max_bytes is None or memory.peak * MEMORY_MARGIN <= max_bytes

    can_change = not loaded and job.dtype == torch.float32 and job.quantize is None
    half, sizes = replace(job, dtype=torch.bfloat16), [len(job.frames)]
    while sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // 2))
    batch_plans = [BatchPlan(size, chunk) for size in sizes for chunk in _DECODE_CHUNKS]
    for candidate in [job, half] if can_change and allow_bfloat16 else [job]:
        for batch_plan in batch_plans:
            memory = estimate(candidate, batch_plan)
            if fits(memory):
                return Plan(candidate, batch_plan, memory, max_bytes, _reason(job, candidate, batch_plan))

    smallest = batch_plans[-1]

    def possible(job: GenerationJob) -> bool:
        try:
            return fits(estimate(job, smallest))
        except RequestError:  # a quantisation that does not suit the model or the device
            return False

    options = ["--half"] * bool(can_change and not allow_bfloat16 and possible(half))
    options += [f"--quantize {kind}" for kind in KINDS if can_change and possible(replace(job, quantize=kind))]
    options += _smaller_jobs(job, possible)
    least = estimate(job, smallest)
    largest = sorted(least.breakdown().items(), key=lambda part: -part[1])[:3]
    parts = ", ".join(f"{name} {format_bytes(size)}" for name, size in largest)
    fix = f"what would fit: {', or '.join(options)}" if options else "nothing of this model fits; use a smaller model"
    needed, free = format_bytes(least.peak), format_bytes(max_bytes or 0)
    raise RequestError(f"too little memory: at least {needed} needed ({parts}, ...), {free} available; {fix}")


def _reason(job: GenerationJob, changed: GenerationJob, batch_plan: BatchPlan) -> str:
    """Return the changes to a job that let it fit in memory, in words."""
    clips, size, chunk = len(job.frames), batch_plan.batch_size, batch_plan.decode_chunk_frames
    splits = [f"{size} of {clips} clips at a time"] * (size < clips) + [f"{chunk} frames decoded at a time"] * bool(chunk)
    reasons = ["bfloat16, as float32 does not fit in memory"] * (changed.dtype != job.dtype)
    return "; ".join(reasons + [f"{' and '.join(splits)}, to fit in memory"] * bool(splits))


def _smaller_jobs(job: GenerationJob, possible: Callable[[GenerationJob], bool]) -> list[str]:
    """Return the longest clips and the largest number of clips that would fit, in words."""
    rate, total = job.frame_rate, len(job.frames)

    def impossible(seconds: float, clips: int) -> bool:
        return not possible(replace(job, frames=tuple(min(round(seconds * rate), n) for n in job.frames[:clips])))

    # bisection counts the numbers 1, 2, ... that are possible, as a job smaller than a possible one is possible
    seconds = bisect_left(range(1, int(max(job.frames) / rate)), True, key=lambda n: impossible(n, total))
    clips = bisect_left(range(1, total), True, key=lambda n: impossible(MAX_SECONDS, n))
    options = [f"clips of up to {seconds} s"] * bool(seconds)
    return options + [f"{clips} clip{'s' if clips > 1 else ''} instead of {total}"] * bool(clips)


def split_request(request: Request, batch_size: int) -> list[Request]:
    """Split a request into several of at most `batch_size` clips each."""
    clips, negatives = request.expand(), request.negative_items()
    if batch_size >= len(clips):
        return [request]
    parts = []
    for i in range(0, len(clips), batch_size):
        batch = clips[i : i + batch_size]
        fields: dict[str, Any] = {"items": tuple(dict(clip.item) for clip in batch), "variations": 1}
        fields |= {name: tuple(getattr(clip, name) for clip in batch) for name in ("seconds", "seed", "continue_from")}
        if negatives is not None:
            negative = tuple(negatives[i : i + batch_size])
            fields["guidance"] = request.guidance.model_copy(update={"negative": negative})
        parts.append(request.model_copy(update=fields))
    return parts


def estimate_elapsed(spec: SystemSpec, plan: Plan) -> tuple[float, int] | None:
    """Return the seconds that a plan takes by the median of earlier runs, and their number; None without any."""
    factors = _read_runs(cache_dir()).get(_run_key(spec, plan))
    if not factors:
        return None
    return sum(plan.job.frames) / plan.job.frame_rate / statistics.median(factors), len(factors)


def record_run(spec: SystemSpec, plan: Plan, realtime_factor: float) -> None:
    """Record the seconds of audio made per second; a cache folder that cannot be written is left as it is."""
    folder, key = cache_dir(), _run_key(spec, plan)
    if folder is None or not 0 < realtime_factor < float("inf"):
        return
    runs = _read_runs(folder)
    factors = [*runs.pop(key, []), realtime_factor][-RECENT_RUNS:]
    runs = dict([*runs.items(), (key, factors)][-MAX_RUN_KEYS:])
    with suppress(OSError, CadenzaError):
        folder.mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / RUNS_FILE) as file:
            file.write(_RUNS.dump_json(runs, indent=1))


def _run_key(spec: SystemSpec, plan: Plan) -> str:
    """Return the kind of a run: spec, dtype or quantisation, machine, device, threads and batch size (a power of two)."""
    job = plan.job
    digest = hashlib.blake2b(spec.to_json().encode(), digest_size=8).hexdigest()
    device = torch.cuda.get_device_name(job.device) if job.device.startswith("cuda") else job.device
    batch = 1 << (plan.batch_plan.batch_size - 1).bit_length()
    precision = "/".join(filter(None, [str(job.dtype).removeprefix("torch."), job.quantize]))
    machine = f"{platform.node()}, {platform.machine()}, {os.cpu_count()} CPUs"
    return f"{digest}; {precision}; {machine}; {device}; {torch.get_num_threads()} threads; batch {batch}"


def _read_runs(folder: Path | None) -> dict[str, list[float]]:
    """Return the real-time factors recorded for each kind of run; none if the file cannot be read."""
    try:
        return {} if folder is None else _RUNS.validate_json((folder / RUNS_FILE).read_bytes())
    except (OSError, ValueError):
        return {}
