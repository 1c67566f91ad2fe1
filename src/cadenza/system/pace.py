"""Pace: how long generating takes on this machine, by a few steps of some of the layers and a piece of audio.

The weights are made up for that, and the memory they take is given back. What is found is kept for a day.
"""

import hashlib
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cadenza import __version__
from cadenza.codecs.base import Codec
from cadenza.core.atomic import atomic_write
from cadenza.core.errors import CadenzaError
from cadenza.core.types import Codes, FusedConditions, GuidanceBranch, KnownFrames, Latents, MaskedSequence, Slot
from cadenza.generators.base import GenerationInputs, Generator
from cadenza.nn.meta_init import init_empty_weights
from cadenza.system.feature_cache import cache_dir
from cadenza.system.planner import BatchPlan, GenerationJob
from cadenza.system.spec import SystemSpec
from cadenza.system.windows import SHARE

READ = 4  # times what the processor's cache holds, that a step of a thin model must read to be like one of the whole
BLOCKS = 6  # that are timed at a place at most
ENOUGH = 0.12  # seconds of them, from which on fewer will do
FAR = 384  # frames in front of the second place that is timed
DEAR = 0.05  # share of the whole that it may take to come to another place
KEPT = 24 * 3600  # seconds
_FILE = "paces.json"
_HELD: "dict[str, SpeedEstimate]" = {}  # by this process, where nothing is to be kept


@dataclass(frozen=True)
class SpeedEstimate:
    """Seconds of all clips together: of the first time in a process, of beginning, of a known frame, of decoding one.

    `frames` are places in a clip, each with the seconds of a frame there, between which these change evenly.
    """

    first: float
    begin: float
    frames: tuple[tuple[float, float], ...]
    known: float
    decoded: float
    decoder: float  # of beginning to decode
    layers: tuple[int, int] | None  # how many were timed, of how many

    def at(self, place: float) -> float:
        """Seconds of a frame at a place."""
        if len(self.frames) == 1:
            return self.frames[0][1]
        i = next((i for i, (other, _) in enumerate(self.frames[1:-1], 1) if place < other), len(self.frames) - 1)
        (before, low), (after, high) = self.frames[i - 1], self.frames[i]
        return max(0.0, low + (high - low) * (place - before) / (after - before))

    def seconds(self, frames: int, *, context: int, stride: int) -> float:
        """Of clips of so many frames, in windows where these are more than the context."""
        total, first, known = self.decoder + frames * self.decoded, 0, 0
        while True:
            last = min(frames - first, context)
            total += self.begin + known * self.known + sum(map(self.at, range(known, last)))
            if frames - first <= context:
                return total
            first, known = first + stride, context - stride


def estimate_seconds(spec: SystemSpec, job: GenerationJob, course: BatchPlan) -> tuple[float, SpeedEstimate]:
    """What a job takes, and the pace of its largest group of clips."""
    assert spec.generator is not None
    paces: dict[int, SpeedEstimate] = {}
    total, context = 0.0, spec.generator.max_frames
    stride = round(job.stride * spec.codec.frame_format.frame_rate) if job.stride else max(1, round(SHARE * context))
    for group in course.batches(job):
        if len(group) not in paces:
            paces[len(group)] = pace(spec, job.with_frames(group))
        total += paces[len(group)].seconds(max(group), context=context, stride=stride)
    largest = paces[max(paces)]
    return largest.first + total, largest


def pace(spec: SystemSpec, job: GenerationJob) -> SpeedEstimate:
    """The pace of a group of clips, found now or less than a day ago."""
    file = cache_dir()
    file = None if file is None else file / _FILE
    key = _key(spec, job)
    known = _HELD if file is None else _read(file)
    if key in known:
        return known[key]
    found = measured(spec, job)
    if file is None:
        _HELD[key] = found
    else:
        with suppress(OSError, CadenzaError):  # it is only found again
            file.parent.mkdir(parents=True, exist_ok=True)
            _keep(file, key, found)
    return found


@torch.inference_mode()
def measured(spec: SystemSpec, job: GenerationJob) -> SpeedEstimate:
    """The pace by measurement, which takes a second or two and a little memory."""
    assert spec.generator is not None
    decoder, decoded = _decoding(spec, job)
    layers = spec.generator.layers
    if layers is None:
        return replace(_generating(spec, job, None), decoded=decoded, decoder=decoder)
    some = _some(spec, job, layers)
    whole = _generating(spec, job, some)
    if some < layers:
        fewer = max(1, some // 2)
        less = _generating(spec, job, fewer)
        more = (layers - some) / (some - fewer)

        def grown(one: float, other: float) -> float:
            return max(0.0, one + (one - other) * more)

        frames = tuple((place, grown(took, less.at(place))) for place, took in whole.frames)
        whole = replace(whole, begin=grown(whole.begin, less.begin), known=grown(whole.known, less.known), frames=frames)
    return replace(whole, decoded=decoded, decoder=decoder, layers=(some, layers))


def _some(spec: SystemSpec, job: GenerationJob, layers: int) -> int:
    """Layers that are timed: enough to be read from memory as all of them are, not from the processor's cache."""
    assert spec.generator is not None
    two, one = (_bytes(spec, job, n) for n in (2, 1))
    want = READ * _processor_cache()
    return layers if layers <= 3 else min(layers, max(2, 2 * round(want / max(1, two - one) / 2)))


def _bytes(spec: SystemSpec, job: GenerationJob, layers: int) -> int:
    with init_empty_weights():
        generator = _build(spec, job, layers)
    return sum(x.numel() * x.element_size() for x in (*generator.parameters(), *generator.buffers()))


def _generating(spec: SystemSpec, job: GenerationJob, layers: int | None) -> SpeedEstimate:
    """The pace of a generator of so many layers, where decoding takes no time."""
    generator = _made_up(lambda: _build(spec, job, layers), job)
    longest = min(max(job.frames), generator.spec.max_frames)
    frames = [min(each, longest) for each in job.frames]
    cold = _timed(generator, spec, job, frames, 0, blocks=1)
    near = _timed(generator, spec, job, frames, 0)
    found = SpeedEstimate(max(0.0, cold.begin - near.begin), near.begin, ((near.place, near.frame),), 0.0, 0.0, 0.0, None)
    for known in (min(FAR, longest // 2), round(0.8 * longest)):
        reading = known * found.known
        if known < found.frames[-1][0] + 4 * near.block or reading > DEAR * longest * found.at(longest / 2):
            continue
        late = _timed(generator, spec, job, frames, known)
        each = max(0.0, late.begin - near.begin) / known
        found = replace(found, known=each, frames=(*found.frames, (late.place, late.frame)))
    return found


@dataclass(frozen=True)
class _Timed:
    """Seconds until the first frame, but those of its block; of a frame; which frame that was; frames in a block."""

    begin: float
    frame: float
    place: float
    block: int


def _timed(
    generator: Generator, spec: SystemSpec, job: GenerationJob, frames: list[int], known: int, *, blocks: int = BLOCKS
) -> _Timed:
    """What is found once `known` frames are given, over a few blocks of frames."""
    frame_format, device, clips = spec.codec.frame_format, job.device, len(frames)
    told = None
    if known:
        content = torch.zeros(
            clips, frame_format.channels, known, dtype=torch.long if frame_format.kind == "codes" else torch.float32
        )
        value = Codes(content) if frame_format.kind == "codes" else Latents(content)
        told = KnownFrames(value.to(device), torch.ones(clips, known, dtype=torch.bool, device=device))
    sampling = generator.spec.sampling.parse({**spec.defaults.sampling, **_endless(generator)}, source="defaults.sampling")
    plan = GenerationInputs(torch.tensor(frames, device=device), list(range(clips)), sampling, told, two_step_cfg=job.two_step)
    times, sizes = [], []
    with closing(generator.stream(_branches(spec, job, max(frames), generator), plan)) as stream:  # type: ignore[type-var]
        for size, took in _clocked(stream, device):
            times.append(took)
            sizes.append(size)
            if len(times) > blocks or (len(times) > 2 and sum(times[1:]) > ENOUGH):
                break
    if len(times) == 1:  # all of it at once
        return _Timed(0.0, times[0] / sizes[0], 0.0, sizes[0])
    block = max(sizes[1:])
    each = statistics.median(took / size for took, size in zip(times[1:], sizes[1:], strict=True) if size == block)
    return _Timed(max(0.0, times[0] - (sizes[0] - known) * each), each, sizes[0] + sum(sizes[1:]) / 2, block)


def _endless(generator: Generator) -> dict[str, Any]:
    """Settings of sampling by which no clip ends early."""
    return {"allow_eos": False} if "allow_eos" in generator.spec.sampling.model_fields else {}


def _narrowed(codec: Codec, job: GenerationJob) -> Codec:
    if job.quantize is not None:
        codec.quantize_()
    return codec


def _clocked(stream: Iterator[Any], device: str) -> Iterator[tuple[int, float]]:
    """Frames or clips of each chunk, and the seconds that it took."""
    wait = torch.cuda.synchronize if device.startswith("cuda") else lambda: None
    wait()
    began = time.perf_counter()
    for chunk in stream:
        wait()
        now = time.perf_counter()
        yield chunk.data.shape[-1] if hasattr(chunk, "content") else len(chunk), now - began
        began = time.perf_counter()


def _decoding(spec: SystemSpec, job: GenerationJob) -> tuple[float, float]:
    """Seconds of beginning to decode, and of each frame of all clips."""
    codec = _made_up(lambda: _narrowed(spec.codec.build(), job), job)
    frame_format, clips = spec.codec.frame_format, len(job.frames)
    few, longest = min(clips, 2), max(job.frames)
    piece = spec.codec.decode_chunk_frames(longest, job.device.partition(":")[0])

    def decode(frames: int) -> float:
        content = torch.zeros(
            few, frame_format.channels, frames, dtype=torch.long if frame_format.kind == "codes" else torch.float32
        )
        value = (Codes(content) if frame_format.kind == "codes" else Latents(content)).to(job.device)
        return next(_clocked(map(codec.decode, [value]), job.device))[1]

    decode(min(piece, 8))
    if longest <= 3 * piece:
        return 0.0, min(decode(longest) for _ in range(2)) / longest * clips / few
    short, long = (min(decode(n) for _ in range(2)) for n in (piece, 3 * piece))
    each = max(0.0, long - short) / (2 * piece)
    return max(0.0, short - each * piece), each * clips / few


def _branches(spec: SystemSpec, job: GenerationJob, frames: int, generator: Generator) -> list[GuidanceBranch]:
    """Made-up conditions, as many and as wide as those of the system."""
    like = next(generator.parameters())
    widths, clips = spec.slot_dims(), len(job.frames)

    def filled(*shape: int) -> Tensor:
        return torch.full(shape, 0.1, dtype=like.dtype, device=like.device)

    def tokens(slot: Slot) -> MaskedSequence | None:
        if slot not in widths:
            return None
        n = sum(spec.conditioners[route.id].num_tokens(frames) for route in spec.fusion.routes_by_slot()[slot])
        return MaskedSequence(filled(clips, n, widths[slot]), torch.ones(clips, n, dtype=torch.bool, device=like.device))

    over = {slot: filled(clips, frames, widths[slot]) for slot in ("add", "concat") if slot in widths}
    glob = filled(clips, widths["global"]) if "global" in widths else None
    fused = FusedConditions(tokens("cross"), tokens("prepend"), over.get("add"), over.get("concat"), glob)
    return [GuidanceBranch(1.0 / job.branches, fused, 1.0 / job.branches) for _ in range(job.branches)]


def _build(spec: SystemSpec, job: GenerationJob, layers: int | None) -> Generator:
    assert spec.generator is not None
    thin = spec.generator if layers is None else spec.generator.thinned(layers)
    generator = thin.build(spec.codec.frame_format, spec.slot_dims()).to(job.dtype)
    if job.quantize is not None:
        generator.quantize(job.quantize)  # type: ignore[arg-type]
    return generator


def _made_up(build: Callable[[], Any], job: GenerationJob) -> Any:
    """A module whose numbers are a few small ones over and over, which is soon done."""
    with torch.inference_mode(False), torch.no_grad():
        with init_empty_weights():
            module: nn.Module = build().to(job.dtype)
        module = module.to_empty(device=job.device).eval().requires_grad_(False)
        some = 0.02 * torch.randn(1 << 16, generator=torch.Generator().manual_seed(0))
        for x in (*module.parameters(), *module.buffers()):
            if x.is_floating_point():
                flat = some.to(x).repeat(-(-x.numel() // len(some)))[: x.numel()]
                x.copy_(flat.view_as(x))
            else:
                x.fill_(1)
    return module


def _processor_cache() -> int:
    """Bytes of the processor's last cache, as far as is known."""
    try:
        found = os.sysconf("SC_LEVEL3_CACHE_SIZE")
    except (AttributeError, ValueError, OSError):
        found = 0
    return found if found > 0 else 32 * 2**20


def _key(spec: SystemSpec, job: GenerationJob) -> str:
    """What a pace depends on, as a hash: parts, clips, how they are computed, machine and versions."""
    name = torch.cuda.get_device_name(job.device) if job.device.startswith("cuda") else _processor()
    parts = [spec.to_dict(), [len(job.frames), min(max(job.frames), 2 * FAR)], job.branches, job.two_step]
    how = [str(job.dtype), job.quantize, name, torch.get_num_threads(), torch.__version__, __version__]
    said = json.dumps([parts, how], sort_keys=True, default=str)
    return hashlib.blake2b(said.encode(), digest_size=12).hexdigest()


def _processor() -> str:
    import platform

    return f"{platform.machine()} {platform.processor()} {os.cpu_count()}"


def _pace(kept: dict[str, Any]) -> SpeedEstimate:
    """A pace as JSON has it."""
    tuples = {
        "frames": tuple((place, took) for place, took in kept["frames"]),
        "layers": kept["layers"] and tuple(kept["layers"]),
    }
    return SpeedEstimate(**{name: kept[name] for name in SpeedEstimate.__dataclass_fields__} | tuples)


def _read(file: Path | None) -> dict[str, SpeedEstimate]:
    """What is kept and not too old."""
    try:
        return {key: _pace(value) for key, value in _entries(file).items()}
    except (KeyError, TypeError, ValueError):
        return {}


def _keep(file: Path, key: str, found: SpeedEstimate) -> None:
    entries = {**_entries(file), key: {**asdict(found), "at": time.time()}}
    with atomic_write(file) as writing:
        writing.write(json.dumps(entries, indent=1).encode())


def _entries(file: Path | None) -> dict[str, dict[str, Any]]:
    """The entries of a file that are not too old; none where it cannot be read."""
    try:
        kept = {} if file is None else json.loads(file.read_text())
        return {key: value for key, value in kept.items() if 0 <= time.time() - value["at"] < KEPT}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}
