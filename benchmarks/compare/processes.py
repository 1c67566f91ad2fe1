"""Fresh: a clip in a process of its own, for the memory that it takes and the time until it sounds."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cadenza.core.errors import BenchmarkError


@dataclass(frozen=True)
class SubprocessJob:
    """What the process shall do; `peer` are the fields of a PeerConfig, `variant` is one of ours."""

    model: str
    seconds: float
    threads: int
    device: str
    variant: str | None = None
    peer: dict[str, Any] | None = None
    streamed: bool = False  # ours, chunk by chunk, or all at once


def run_in_subprocess(order: SubprocessJob) -> dict[str, Any]:
    """Seconds since the start of the process, and bytes of main memory by what they are for."""
    asked = json.dumps(asdict(order) | {"started": time.time()})
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-m", "compare.processes", asked],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        what = "the system may have ended it for want of memory" if done.returncode < 0 else lines[-1]
        raise BenchmarkError(f"a process for {order.variant or 'transformers'} ended before its clip: {what}")
    return json.loads(done.stdout.splitlines()[-1])


def main(asked: dict[str, Any]) -> dict[str, Any]:
    """What `fresh` gives, in the process that does the work."""
    import torch

    from cadenza.apps.bench import BenchJob, synchronized_time
    from cadenza.core.memory import peak_rss, process_rss
    from compare.cadenza_runner import CadenzaRunner, weight_bytes_by_part
    from compare.peer import TransformersConfig, TransformersRunner

    order = SubprocessJob(**{name: value for name, value in asked.items() if name != "started"})
    device, job, moments = torch.device(order.device), BenchJob(order.seconds), {}

    def mark(name: str) -> None:
        synchronized_time(device)
        moments[name] = time.time() - asked["started"]

    torch.set_num_threads(order.threads)
    library = _ours_imported if order.variant else _peer_imported
    library()
    mark("imported")
    memory: dict[str, int] = {"libraries": process_rss()}
    pieces = 0
    if order.variant:
        ours = CadenzaRunner(order.model, order.variant, device=device, threads=order.threads)
        ours.open()
        mark("loaded")
        memory["after loading"] = process_rss()
        if order.streamed:
            for pieces, _ in enumerate(ours.iter_stream_times(job), 1):
                if pieces == 1:
                    mark("first sound")
        else:
            ours.run(job)
        mark("end")
        memory |= weight_bytes_by_part(ours.system)
    else:
        peer = TransformersRunner(
            Path(order.model), TransformersConfig(**order.peer or {}), device=device, threads=order.threads
        )
        peer.open()
        mark("loaded")
        memory["after loading"] = process_rss()
        run = peer.run(job)
        mark("end")
        memory |= _peer_sizes(peer.model)
        return {"seconds": moments, "memory": memory | {"peak": peak_rss()}, "run": asdict(run), **_device(device)}
    return {"seconds": moments, "memory": memory | {"peak": peak_rss()}, "pieces": pieces, **_device(device)}


def _ours_imported() -> None:
    import cadenza.apps.api  # noqa: F401


def _peer_imported() -> None:
    from compare.library import import_transformers

    import_transformers()


def _peer_sizes(model: Any) -> dict[str, int]:
    parts = {"language model": model.decoder, "text encoder": model.text_encoder, "codec": model.audio_encoder}
    held = {name: {x.data_ptr(): x.numel() * x.element_size() for x in part.parameters()} for name, part in parts.items()}
    return {name: sum(each.values()) for name, each in held.items()}


def _device(device: Any) -> dict[str, Any]:
    """The most memory of a GPU that was held."""
    import torch

    return {"device_peak": torch.cuda.max_memory_allocated(device)} if device.type == "cuda" else {}


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
