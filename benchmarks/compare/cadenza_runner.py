"""Runner of a Cadenza system in one variant."""

import gc
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cadenza.apps.bench import BenchJob, TimedRun, synchronized_time, time_generation, time_to_first_audio
from cadenza.core.device import DTYPES
from cadenza.core.errors import BenchmarkError
from cadenza.core.spec import did_you_mean
from compare.measure import Runner, torch_threads

if TYPE_CHECKING:
    from cadenza.dsp.audio import Audio
    from cadenza.system.system import System

QUANTIZED = ("int8", "int4")
VARIANTS = (*DTYPES, *QUANTIZED)


class CadenzaRunner(Runner):
    """`cadenza.load` of a folder or name that is stored as `variant` (see `prepare_variant`)."""

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

            unquantized = (
                torch.float32 if self.device.type == "cpu" else torch.bfloat16
            )  # dtype of parts that are not quantized
            self._system = load(self.model, device=self.device, dtype=DTYPES.get(self.variant, unquantized))

    def close(self) -> None:
        self._system = None
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def run(self, job: BenchJob) -> TimedRun:
        return time_generation(self.system, job)

    def iter_stream_times(self, job: BenchJob) -> Iterator["tuple[float, Audio]"]:
        """Yield (seconds since the call, chunk) as the clips are streamed."""
        start = synchronized_time(self.device)
        with closing(self.system.stream(job.request())) as chunks:  # type: ignore[type-var]  # a generator
            for chunk in chunks:
                if int(chunk.lengths.max()) > 0:
                    yield synchronized_time(self.device) - start, chunk

    def time_to_first_audio(self, job: BenchJob) -> float:
        """Return the seconds from the call to the first audio."""
        with torch_threads(self.threads):
            return time_to_first_audio(self.system, job)


def prepare_variant(model: str | Path, variant: str, place: Path) -> str | Path:
    """Return where `model` is stored as `variant`: itself, or a folder below `place`, saved as a user would save it."""
    from cadenza.apps.api import load, resolve

    check_variant(variant)
    if variant == "float32" and resolve(model).layout == "Cadenza":
        return model
    folder = place / f"ours-{variant}"
    if variant in DTYPES:
        load(model, device="cpu", dtype=DTYPES[variant]).save(folder)
        return folder
    load(model, device="cpu", quantize=variant).save(folder)  # type: ignore[arg-type]
    return folder


def check_variant(variant: str) -> None:
    """Raise BenchmarkError for an unknown variant."""
    if variant not in VARIANTS:
        raise BenchmarkError(f"'{variant}' is not a variant.{did_you_mean(variant, list(VARIANTS))}")


def weight_bytes_by_part(system: "System") -> dict[str, int]:
    """Return the bytes of the weights by part, pretrained encoders included."""
    parts: Any = system.conditioners.values()
    encoders = [part.pretrained.get(system.device) for part in parts if hasattr(part, "pretrained")]
    return {
        "language model": _bytes(system.generator),
        "text encoder": sum(map(_bytes, [system.conditioners, *encoders])),
        "codec": _bytes(system.codec),
    }


def _bytes(module: Any) -> int:
    held = {x.data_ptr(): x.numel() * x.element_size() for x in (*module.parameters(), *module.buffers())}
    return sum(held.values())
