"""Speed of a model on this machine: steps a second, real-time factor, first audio, memory, share of the roofline bound."""

import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict, astuple, dataclass, replace
from itertools import chain
from statistics import median
from typing import Any

import torch
from torch import nn

from cadenza.core.errors import BenchmarkError
from cadenza.core.memory import peak_rss
from cadenza.nn.kernels import cpu_kernel_unavailable_reason
from cadenza.nn.weight_quantization import QuantizedLinear
from cadenza.system.request import Request
from cadenza.system.system import System
from cadenza.system.windows import SHARE

WORDS = tuple(  # of prompts; each is a token of the models that `benchmarks/compare` builds
    "slow fast warm bright soft loud calm tense solo piano drums choir strings bass organ flute guitar brass in a minor major "
    "at 70 80 90 100 110 120 bpm with over under and melody chords".split()
)
_BUFFER_BYTES = 2**29  # larger than all caches of a CPU


@dataclass(frozen=True)
class BenchJob:
    """A request to time: `batch` clips of `seconds`, `branches` guidance branches (1, 2 or 3), a prompt of `words` tokens."""

    seconds: float
    batch: int = 1
    branches: int = 2
    words: int = 20

    def request(self) -> Request:
        """Return the request of the job."""
        guidance = {1: 1.0, 2: 3.0, 3: {"scale": 3.0, "id_scales": {"prompt": 1.5}, "negative": "drums over bass"}}
        prompt = " ".join(WORDS[(7 * i + i // len(WORDS)) % len(WORDS)] for i in range(self.words))
        return Request.from_input([prompt] * self.batch, seconds=self.seconds, seed=0, guidance=guidance[self.branches])


@dataclass(frozen=True)
class TimedRun:
    """Elapsed seconds of one run by part (text, lm, codec), seconds of audio generated, and language model steps."""

    parts: dict[str, float]
    audio: float
    steps: int = 0

    @property
    def total(self) -> float:
        """Elapsed seconds of all parts."""
        return sum(self.parts.values())

    @property
    def steps_per_second(self) -> float:
        """Language model steps a second; 0 without a language model."""
        return self.steps / self.parts["lm"] if self.steps else 0.0

    @property
    def realtime_factor(self) -> float:
        """Seconds of audio generated in one second, from text to samples."""
        return self.audio / self.total


@dataclass(frozen=True)
class MachineLimits:
    """Best measured rates a second: bytes read, bytes copied (read and written), FLOPs of a matmul in two dtypes."""

    read: float
    copy: float
    float32: float
    bfloat16: float

    @property
    def bandwidth(self) -> float:
        """Largest measured memory bandwidth in bytes a second."""
        return max(self.read, self.copy)

    def max_with(self, other: "MachineLimits") -> "MachineLimits":
        """Return the larger of each rate."""
        return MachineLimits(*map(max, astuple(self), astuple(other)))


@dataclass(frozen=True)
class StepCost:
    """Cost of a decoding step in the middle of a clip: bytes of weights, bytes of keys and values (`memory`), FLOPs."""

    weights: int
    memory: int
    operations: int

    def roofline_steps_per_second(self, limits: MachineLimits) -> float:
        """Return the steps a second if only the slower of memory and arithmetic counts (arXiv:1911.02150)."""
        arithmetic = max(limits.float32, limits.bfloat16)
        return 1 / max((self.weights + self.memory) / limits.bandwidth, self.operations / arithmetic)


def bench_system(system: System, job: BenchJob, *, repeats: int = 3, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Time a system on a job after one warm-up second; return medians and all values, as a JSON-ready mapping.

    Raise BenchmarkError for a codec without a generator.
    """
    if system.generator is None:
        raise BenchmarkError("this model is a codec alone; choose a model that generates")
    limits = measure_limits(system.device)
    cuda, runs = system.device.type == "cuda", []
    time_generation(system, job if cuda else replace(job, seconds=min(1.0, job.seconds)))
    for i in range(repeats):
        runs.append(time_generation(system, job))
        say(f"run {i + 1}: {runs[-1].steps_per_second:.1f} steps/s, {runs[-1].realtime_factor:.2f}x real time")
    limits = limits.max_with(measure_limits(system.device))
    cost = step_cost(system.generator, job, steps=runs[0].steps)
    rate, bound = median(run.steps_per_second for run in runs), cost.roofline_steps_per_second(limits)
    return {
        "job": asdict(job),
        "steps": runs[0].steps,
        "steps_per_second": rate,
        "realtime_factor": median(run.realtime_factor for run in runs),
        "first_audio_seconds": median(time_to_first_audio(system, job) for _ in range(repeats)),
        "parts_seconds": {name: median(run.parts[name] for run in runs) for name in runs[0].parts},
        "peak_memory_bytes": torch.cuda.max_memory_allocated(system.device) if cuda else peak_rss(),
        "bound_steps_per_second": bound,
        "share_of_bound": rate / bound,
        "limits": asdict(limits),
        "runs": [asdict(run) for run in runs],
    }


def time_generation(system: System, job: BenchJob) -> TimedRun:
    """Generate the clips of a job and time the text encoders, the language model and the codec."""
    marks: dict[str, float] = {}
    with system.conditioners.register_forward_hook(lambda *_: marks.update(text=synchronized_time(system.device))):
        start = synchronized_time(system.device)
        codes = system.generate_frames(job.request())
        generated = synchronized_time(system.device)
        system.codec.decode(codes)
        end = synchronized_time(system.device)
    parts = {"text": marks["text"] - start, "lm": generated - marks["text"], "codec": end - generated}
    return TimedRun(parts, job.seconds * job.batch, num_decoding_steps(system, int(codes.lengths.max())))


def time_to_first_audio(system: System, job: BenchJob) -> float:
    """Return the seconds from the call to the first streamed chunk with audio."""
    start = synchronized_time(system.device)
    with closing(system.stream(job.request())) as chunks:  # type: ignore[type-var]  # a generator
        for chunk in chunks:
            if int(chunk.lengths.max()) > 0:
                return synchronized_time(system.device) - start
    raise BenchmarkError("the stream ended without audio")


def num_decoding_steps(system: System, frames: int) -> int:
    """Return the language model steps for clips of `frames` frames, in windows if they are longer than the context."""
    generator: Any = system.generator
    codebooks, context = generator.frame_format.channels, generator.spec.max_frames
    requested = system.spec.defaults.stride
    stride = max(1, round(SHARE * context)) if requested is None else round(requested * generator.frame_format.frame_rate)
    lengths = {start: min(context, frames - start) for start in range(0, max(1, frames - context + stride), stride)}
    steps = {start: len(generator.spec.pattern.pattern(codebooks, length)) - 1 for start, length in lengths.items()}
    return sum(count - (context - stride) * (start > 0) for start, count in steps.items())


def step_cost(generator: Any, job: BenchJob, *, steps: int) -> StepCost:
    """Return the cost of a mean step of a codec language model: stored weights, and keys and values of half of the clip."""
    spec, rows = generator.spec, job.batch * job.branches
    cross = any("cross" in name for name, _ in generator.transformer.named_modules())
    positions = min(steps, spec.max_frames) / 2
    tokens = job.words + 1 if cross else 0
    values = spec.depth * 2 * spec.width * rows * (positions + tokens)
    block = (4 + 2 * cross + 2 * spec.mlp_ratio) * spec.width**2
    heads = generator.num_codebooks * generator.special_token_id + int(spec.end_of_sequence)
    products = spec.depth * block + spec.width * heads
    operations = 2 * rows * products + 4 * rows * spec.depth * spec.width * (positions + tokens)
    norm = generator.transformer.norm.weight
    quantized = any(isinstance(module, QuantizedLinear) for module in generator.modules())
    int8_cache = quantized and norm.device.type == "cpu" and cpu_kernel_unavailable_reason() is None
    memory = values * (1 if int8_cache else norm.element_size())
    return StepCost(weight_bytes_per_step(generator), int(memory), int(operations))


def weight_bytes_per_step(generator: nn.Module) -> int:
    """Return the bytes of weights that each step reads: no embeddings, no projections of conditions."""
    weights: dict[int, torch.Tensor] = {}
    for part in (generator.get_submodule("transformer"), generator.get_submodule("head")):
        for name, module in part.named_modules():
            if "cross.kv" not in name and "adaln" not in name:
                weights |= {id(x): x for x in chain(module.parameters(recurse=False), module.buffers(recurse=False))}
    return sum(x.nbytes for x in weights.values())


def measure_limits(device: torch.device, *, quick: bool = False, tries: int = 5) -> MachineLimits:
    """Measure memory bandwidth and matmul rates with the present number of torch threads."""
    size = _BUFFER_BYTES // 32 if quick else 4 * _BUFFER_BYTES if device.type == "cuda" else _BUFFER_BYTES
    source = torch.ones(size // 4, device=device)
    target = torch.ones_like(source)  # empty memory may not be backed by pages yet
    read = max(
        size / _best_time(device, source.sum, tries),
        2 * size / _best_time(device, lambda: torch.dot(source, target), tries),
    )
    copy = 2 * size / _best_time(device, lambda: target.copy_(source), tries)
    side = 512 if quick else 8192 if device.type == "cuda" else 2048
    rates = {}
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        rates[dtype] = 2 * side**3 / _best_time(device, lambda a=a, b=b: a @ b, tries)
    return MachineLimits(read, copy, rates[torch.float32], rates[torch.bfloat16])


def synchronized_time(device: torch.device) -> float:
    """Return the clock in seconds once the device has finished all queued work."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter()


def _best_time(device: torch.device, action: Callable[[], Any], tries: int) -> float:
    times = []
    for _ in range(1 + tries):  # the first is a warm-up
        start = synchronized_time(device)
        action()
        times.append(synchronized_time(device) - start)
    return min(times[1:])
