"""Ours: a system of Cadenza in one of its forms, timed part by part."""

import gc
import inspect
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cadenza.apps.bench.measure import BenchJob, Runner, TimedRun, synchronized_time, torch_threads
from cadenza.core.errors import BenchmarkError
from cadenza.core.spec import did_you_mean

if TYPE_CHECKING:
    from cadenza.dsp.audio import Audio
    from cadenza.system.system import System

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
QUANTISED = ("int8", "int4")
VARIANTS = (*DTYPES, *QUANTISED)


class CadenzaRunner(Runner):
    """`cadenza.load` of a folder or a name that is stored as `variant` (see `stored`)."""

    def __init__(self, model: str | Path, variant: str, *, device: torch.device, threads: int) -> None:
        self.model, self.variant, self.device, self.threads = model, variant, device, threads
        self.name = f"cadenza {variant}"
        self._system: System | None = None

    @property
    def system(self) -> "System":
        self.open()
        assert self._system is not None
        return self._system

    def open(self) -> None:
        if self._system is None:
            from cadenza.apps.api import load

            beside = torch.float32 if self.device.type == "cpu" else torch.bfloat16  # what is not quantised
            self._system = load(self.model, device=self.device, dtype=DTYPES.get(self.variant, beside))

    def close(self) -> None:
        self._system = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def run(self, job: BenchJob) -> TimedRun:
        system, marks = self.system, {}
        hook = system.conditioners.register_forward_hook(lambda *_: marks.__setitem__("text", synchronized_time(self.device)))
        try:
            start = synchronized_time(self.device)
            codes = system.generate_frames(job.items(), **request_fields(job))
            made = synchronized_time(self.device)
            system.codec.decode(codes)
            end = synchronized_time(self.device)
        finally:
            hook.remove()
        parts = {"text": marks["text"] - start, "lm": made - marks["text"], "codec": end - made}
        return TimedRun(parts, job.seconds * job.batch, num_decoding_steps(system, int(codes.lengths.max())))

    def iter_stream_times(self, job: BenchJob) -> Iterator["tuple[float, Audio]"]:
        """Seconds since the call and the next piece of sound, as the clips are streamed."""
        start = synchronized_time(self.device)
        with closing(self.system.stream(job.items(), **request_fields(job))) as chunks:  # type: ignore[type-var]  # a generator
            for chunk in chunks:
                if int(chunk.lengths.max()) > 0:
                    yield synchronized_time(self.device) - start, chunk

    def time_to_first_audio(self, job: BenchJob) -> float:
        """Seconds from the call to the first sound."""
        with torch_threads(self.threads), closing(self.iter_stream_times(job)) as pieces:  # type: ignore[type-var]  # a generator function's
            for moment, _ in pieces:
                return moment
        raise BenchmarkError("the stream ended without a sound")


def prepare_variant(model: str | Path, variant: str, place: Path) -> str | Path:
    """Where `model` lies as `variant`: itself, or below `place`, saved as a user would keep it.

    BenchmarkError where this build has no such form.
    """
    from cadenza.apps.api import load, resolve

    check_variant(variant)
    if variant == "float32" and isinstance(resolve(model), Path):
        return model
    folder = place / f"ours-{variant}"
    if variant in DTYPES:
        load(model, device="cpu", dtype=DTYPES[variant]).save(folder)
        return folder
    if "quantize" not in inspect.signature(load).parameters:
        raise BenchmarkError(f"this build cannot load a model as {variant}; leave it out of --variants")
    more: dict[str, Any] = {"quantize": variant}
    load(model, device="cpu", **more).save(folder)
    return folder


def check_variant(variant: str) -> None:
    """Raises BenchmarkError for a form that there is not."""
    if variant not in VARIANTS:
        raise BenchmarkError(f"there is no variant '{variant}'.{did_you_mean(variant, list(VARIANTS))}")


def request_fields(job: BenchJob) -> dict[str, Any]:
    """The fields of a request; three branches are what a prompt adds, counted double, and a negative prompt."""
    scale: Any = {1: 1.0, 2: 3.0, 3: {"scale": 3.0, "id_scales": {"prompt": 1.5}, "negative": "drums over bass"}}[job.branches]
    return {"seconds": job.seconds, "seed": 0, "guidance": scale}


def num_decoding_steps(system: "System", frames: int) -> int:
    """Steps that the language model takes for clips of `frames` frames, in windows where they are longer than one."""
    from cadenza.system.windows import SHARE

    generator: Any = system.generator
    rows, context = generator.frame_format.channels, generator.spec.max_frames
    asked = system.spec.defaults.stride
    stride = max(1, round(SHARE * context)) if asked is None else round(asked * generator.frame_format.frame_rate)
    taken, first = 0, 0
    while True:
        window, shared = min(context, frames - first), context - stride if first else 0
        taken += len(generator.spec.pattern.pattern(rows, window)) - 1 - shared
        if first + window >= frames:
            return taken
        first += stride


def weight_bytes_by_part(system: "System") -> dict[str, int]:
    """Bytes of the weights by part, encoders that are borrowed included."""
    parts: Any = system.conditioners.values()
    borrowed = [part.pretrained.get(system.device) for part in parts if hasattr(part, "pretrained")]
    return {
        "language model": _bytes(system.generator),
        "text encoder": sum(map(_bytes, [system.conditioners, *borrowed])),
        "codec": _bytes(system.codec),
    }


def _bytes(module: Any) -> int:
    held = {x.data_ptr(): x.numel() * x.element_size() for x in (*module.parameters(), *module.buffers())}
    return sum(held.values())
