"""What a run will take, said before it begins: bytes by what they are for, and seconds."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from cadenza.core.memory import free_on, resident, shown

if TYPE_CHECKING:
    from cadenza.importers.model import Foreign
    from cadenza.system.fitting import Fit
    from cadenza.system.pace import Pace
    from cadenza.system.request import Request

_WEIGHTS = ("*.safetensors", "*.bin", "*.th", "*.pt", "*.ckpt")


def planned(
    found: "Path | Foreign",
    request: "Request",
    *,
    dtype: Any = None,
    quantize: str | None = None,
    room: int | None = None,
    out: TextIO | None = None,
) -> "Fit":
    """How a request to a model that is not loaded yet will be done; said in two lines where there is an `out`.

    `dtype` is chosen by the memory where None, of which `room` bytes stand for what is free. RequestError says what would
    fit where nothing does.
    """
    import torch

    from cadenza.system import store
    from cadenza.system.fitting import fitted
    from cadenza.system.forecast import Job
    from cadenza.system.outline import to_load

    spec = store.look(found) if isinstance(found, Path) else found.spec
    device = "cuda" if torch.cuda.is_available() else "cpu"
    job = Job.of(spec, request, dtype=dtype or torch.float32, quantize=quantize, device=device)
    needing = to_load(spec, program=resident, stored=_stored(found if isinstance(found, Path) else found.folder))
    needing(job, _whole(job))  # imports all that counts as the program
    free = free_on(device) if room is None else room
    if free is not None and device == "cpu" and room is None:
        free += resident()
    fit = fitted(spec, job, needing, room=free, narrow=dtype is None)
    if out is not None:
        print(_memory(fit, free), file=out)
        print(_time(spec, fit), file=out)
    return fit


def _memory(fit: "Fit", room: int | None) -> str:
    parts = sorted(fit.needs.parts().items(), key=lambda part: -part[1])
    said = ", ".join(f"{name} {shown(size)}" for name, size in parts)
    there = "" if room is None else f" of {shown(room)}"
    why = f"; {fit.why}" if fit.why else ""
    return f"memory: {shown(fit.needs.peak)}{there} at the peak, while {fit.needs.worst}: {said}{why}"


def _time(spec: Any, fit: "Fit") -> str:
    import torch

    from cadenza.system.pace import seconds

    took, pace = seconds(spec, fit.job, fit.course)
    made = sum(fit.job.frames) / spec.codec.grid.frame_rate
    threads = f"{torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
    where = threads if fit.job.device == "cpu" else fit.job.device
    return f"time: about {_long(took)} on {where} ({made / took:.1f}x real time), loading aside: {_basis(pace)}"


def _basis(pace: "Pace") -> str:
    """What the seconds rest on."""
    layers = f" of {pace.layers[0]} of {pace.layers[1]} layers" if pace.layers and pace.layers[0] < pace.layers[1] else ""
    each = [f"{1e3 * took:.3g} ms" for _, took in pace.frames]
    steps = each[0] if len(each) == 1 else f"{each[0]} at first, {each[-1]} at frame {pace.frames[-1][0]:.0f}"
    return f"a frame {steps}, {1e3 * pace.decoded:.2g} ms to decode, as a trial{layers} took"


def _long(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.1f} minutes"


def _stored(folder: Path) -> int:
    """Bytes in memory while weights are read: those of their files, and of one file more."""
    sizes = [path.stat().st_size for pattern in _WEIGHTS for path in folder.glob(pattern)]
    return sum(sizes) + max(sizes, default=0)


def _whole(job: Any) -> Any:
    from cadenza.system.forecast import Course

    return Course(len(job.frames))
