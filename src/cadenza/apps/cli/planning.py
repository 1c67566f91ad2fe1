"""What a run will take, said before it begins: bytes by what they are for, and seconds."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from cadenza.core.errors import RequestError
from cadenza.core.memory import available_memory_on, format_bytes, process_rss

if TYPE_CHECKING:
    from cadenza.importers.base import ForeignModel
    from cadenza.system.pace import SpeedEstimate
    from cadenza.system.planner import Plan
    from cadenza.system.request import Request

_WEIGHTS = ("*.safetensors", "*.bin", "*.th", "*.pt", "*.ckpt")


def plan_before_loading(
    found: "Path | ForeignModel",
    request: "Request",
    *,
    device: str = "cpu",
    dtype: Any = None,
    quantize: str | None = None,
    room: int | None = None,
    out: TextIO | None = None,
) -> "Plan":
    """How a request to a model that is not loaded yet will be done; said in two lines where there is an `out`.

    `dtype` is chosen by the memory where None, of which `room` bytes stand for what is free; the second line needs a
    trial of a second or two, once a day. RequestError says what would fit where nothing does.
    """
    import torch

    from cadenza.core.device import choose_threads
    from cadenza.nn.weight_quantization import KINDS
    from cadenza.system import store
    from cadenza.system.outline import build_on_meta, estimator_for_unloaded
    from cadenza.system.planner import BatchPlan, GenerationJob, plan_within_memory

    folder, spec = (found, store.load_spec(found)) if isinstance(found, Path) else (found.folder, found.spec)
    if spec.generator is None:
        raise RequestError("this system is a codec alone: it encodes and decodes, but cannot generate")
    if quantize not in (None, *KINDS):
        raise RequestError(f"there is no quantisation '{quantize}'; there are: {', '.join(KINDS)}")
    quantize = quantize or _quantized(folder)
    choose_threads(build_on_meta(spec))
    job = GenerationJob.from_request(spec, request, dtype=dtype or torch.float32, quantize=quantize, device=device)
    needing = estimator_for_unloaded(spec, program=process_rss, stored=_stored(folder))
    needing(job, BatchPlan(len(job.frames)))  # imports all that counts as the program
    free = available_memory_on(device) if room is None else room
    if free is not None and device.partition(":")[0] != "cuda" and room is None:
        free += process_rss()
    fit = plan_within_memory(spec, job, needing, room=free, narrow=dtype is None)
    if out is not None:
        print(_memory(fit, free), file=out)
        print(_time(spec, fit), file=out)
    return fit


def _memory(fit: "Plan", room: int | None) -> str:
    parts = sorted(fit.needs.breakdown().items(), key=lambda part: -part[1])
    said = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts)
    there = "" if room is None else f" of {format_bytes(room)}"
    why = f"; {fit.why}" if fit.why else ""
    return f"memory: {format_bytes(fit.needs.peak)}{there} at the peak, while {fit.needs.peak_phase}: {said}{why}"


def _time(spec: Any, fit: "Plan") -> str:
    import torch

    from cadenza.system.pace import estimate_seconds

    took, pace = estimate_seconds(spec, fit.job, fit.course)
    made = sum(fit.job.frames) / spec.codec.frame_format.frame_rate
    threads = f"{torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
    where = threads if fit.job.device == "cpu" else fit.job.device
    return f"time: about {_long(took)} on {where} ({made / took:.1f}x real time), loading aside: {_basis(pace)}"


def _basis(pace: "SpeedEstimate") -> str:
    """What the seconds rest on."""
    layers = f" of {pace.layers[0]} of {pace.layers[1]} layers" if pace.layers and pace.layers[0] < pace.layers[1] else ""
    each = [f"{1e3 * took:.3g} ms" for _, took in pace.frames]
    steps = each[0] if len(each) == 1 else f"{each[0]} at first, {each[-1]} at frame {pace.frames[-1][0]:.0f}"
    return f"a frame {steps}, {1e3 * pace.decoded:.2g} ms to decode, as a trial{layers} took"


def _long(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} minutes"


def _quantized(folder: Path) -> str | None:
    """What the weights of a system of ours are quantised to, by what their files say of them."""
    from safetensors import SafetensorError, safe_open

    with suppress(SafetensorError, OSError):  # of which more is said where they are read
        for path in sorted(folder.glob("model*.safetensors")):
            with safe_open(path, "pt") as file:
                for key in file.keys():  # noqa: SIM118
                    if key.startswith("generator.") and key.endswith(".packed"):
                        return {"I8": "int8", "U8": "int4"}.get(file.get_slice(key).get_dtype())
    return None


def _stored(folder: Path) -> int:
    """Bytes in memory once weights are read, as they are stored."""
    return sum(path.stat().st_size for pattern in _WEIGHTS for path in folder.glob(pattern))
