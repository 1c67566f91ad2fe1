"""Checks that need a GPU: whether graphs write what Python launches, and how near the memory's bound they come.

    python benchmarks/gpu.py musicgen-small                  each model takes minutes; the peer most of them
    python benchmarks/gpu.py musicgen-small --device cpu --quick --seconds 2     the script itself, without a GPU

The models have published sizes, random weights and guidance 3. The report has, for each model:

- whether CUDA graphs give the same codes as steps launched by Python;
- steps per second and real-time factor of one clip for each form in turn and for eager transformers;
- the share of the memory-bandwidth bound, which is measured in the same run;
- several clips in one batch, and the time of one attention.

`cadenza bench` measures the rest on any device.
"""

import argparse
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from compare import machine
from compare.cadenza_runner import DTYPES, CadenzaRunner, prepare_variant
from compare.geometry import geometry, write
from compare.measure import run_interleaved, summarize_runs
from compare.peer import TransformersConfig, TransformersRunner
from torch.nn import functional as F

from cadenza.apps.api import load
from cadenza.apps.bench import BenchJob, measure_limits, step_cost, synchronized_time
from cadenza.core.device import select_device
from cadenza.nn.cuda_graphs import CUDAGraphCapturer, GraphCache, Run

FORMS = ("graph", "compiled", "eager")  # compiled: blocks by torch.compile, then recorded


class Eager(CUDAGraphCapturer):
    """The step that is recorded elsewhere, launched by Python."""

    def capture(self, run: Run) -> Run:
        return run


class Form(CadenzaRunner):
    """Ours in one of FORMS."""

    def __init__(self, folder: str | Path, variant: str, *, form: str, device: torch.device) -> None:
        super().__init__(folder, variant, device=device, threads=torch.get_num_threads())
        self.form, self.name = form, f"cadenza {variant}, {form}"

    def open(self) -> None:
        if self._system is not None:
            return
        self._system = load(self.model, device=self.device, dtype=DTYPES.get(self.variant, "half"))
        generator: Any = self._system.generator
        if self.form == "eager":
            generator.graphs = GraphCache(_eager)
        if self.form == "compiled":
            for block in generator.transformer.blocks:
                block.compile()


def _eager(device: torch.device) -> CUDAGraphCapturer | None:
    return Eager(device) if device.type == "cuda" else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--variant", default="bfloat16", help="float32, bfloat16, float16 or int8")
    parser.add_argument("--forms", nargs="+", choices=FORMS, default=list(FORMS))
    parser.add_argument("--batch", type=int, default=32, help="clips together, for throughput; 0: leave that out")
    parser.add_argument("--repeats", type=int, default=3, help="of ours; the first records the graphs")
    parser.add_argument("--no-peer", action="store_true")
    parser.add_argument("--device", default=None)
    parser.add_argument("--quick", action="store_true", help="tiny geometry")
    parser.add_argument("--out", type=Path, help="a folder of results, such as benchmarks/results")
    asked = parser.parse_args()
    chosen = select_device(asked.device)
    print(f"{chosen.device}: {chosen.reason}", flush=True)
    report = measure(asked, chosen.device)
    print(json.dumps({key: value for key, value in report.items() if key != "results"}, indent=1))
    if asked.out is not None:
        file = asked.out / machine.machine_id(chosen.device) / f"gpu-{asked.model}-{asked.variant}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(report, indent=1) + "\n")


def measure(asked: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    """Everything of one model."""
    bounds = measure_limits(device, quick=asked.quick)
    with tempfile.TemporaryDirectory(prefix="cadenza-gpu-") as place:
        folder = Path(place) / "model"
        write(geometry(asked.model, quick=asked.quick), folder)
        kept = prepare_variant(folder, asked.variant, Path(place))
        forms = [Form(kept, asked.variant, form=form, device=device) for form in asked.forms]
        equal = {form.name: agrees(form, Form(kept, asked.variant, form="eager", device=device)) for form in forms}
        print(f"the same codes as steps that Python launches: {equal}", flush=True)
        peers = [] if asked.no_peer else [peer(folder, asked.variant, device)]
        job = BenchJob(asked.seconds)
        repeats = {one.name: asked.repeats for one in forms} | {one.name: 1 for one in peers}
        runs = run_interleaved([*forms, *peers], job, repeats, keep=True)
        for one in [*forms[1:], *peers]:
            one.close()
        bounds = bounds.max_with(measure_limits(device, quick=asked.quick))
        generator: Any = forms[0].system.generator
        steps = round(asked.seconds * generator.frame_format.frame_rate)
        bound = step_cost(generator, job, steps=steps).roofline_steps_per_second(bounds)
        report = {
            "model": asked.model,
            "machine": machine.describe_machine(device),
            "bounds": vars(bounds),
            "equal": equal,
            "bound_steps_per_second": bound,
            "results": {name: summarize_runs(each) for name, each in runs.items()},
            "summary": {
                name: line([run.steps_per_second for run in each], [run.realtime_factor for run in each], bound)
                for name, each in runs.items()
            },
            "attention_us": attention(generator, device),
        }
        if asked.batch:
            together = run_interleaved(forms[:1], BenchJob(asked.seconds, asked.batch), {forms[0].name: 2}, keep=True)
            report["together"] = {
                "clips": asked.batch,
                "times_real_time": max(run.realtime_factor for run in together[forms[0].name]),
            }
        forms[0].close()
        return report


def agrees(form: Form, eager: Form) -> bool | None:
    """Return whether both write the same codes; None for compiled blocks, which round differently."""
    if form.form != "graph":
        return None
    job = BenchJob(3.0, 2)
    with torch.inference_mode():
        codes = [one.system.generate_frames(job.request()).data for one in (form, form, eager)]
    eager.close()
    return all(torch.equal(codes[0], other) for other in codes[1:])


def peer(folder: Path, variant: str, device: torch.device) -> TransformersRunner:
    """transformers in the same dtype, or in bfloat16 where ours is quantised."""
    dtype = variant if variant in ("float32", "float16") else "bfloat16"
    return TransformersRunner(folder, TransformersConfig(dtype), device=device, threads=torch.get_num_threads())


def line(rates: list[float], times: list[float], bound: float) -> dict[str, float]:
    return {
        "steps_per_second": median(rates),
        "first_steps_per_second": rates[0],
        "times_real_time": median(times),
        "share_of_bound": median(rates) / bound,
    }


@torch.inference_mode()
def attention(generator: Any, device: torch.device, rows: int = 2) -> dict[str, float]:
    """Microseconds of one layer's attention of one position, in a graph: as it is, and as plain matrix products."""
    heads, width, dtype = generator.transformer.heads, generator.transformer.head_dim, generator.embedding.weight.dtype
    found = {}
    for positions in (256, 768, 1536):
        q, k, v = (torch.randn(rows, heads, n, width, device=device, dtype=dtype) for n in (1, positions, positions))
        bias = torch.zeros(1, 1, 1, positions, device=device, dtype=dtype)
        ways: dict[str, Callable[[], Any]] = {
            "sdpa": lambda q=q, k=k, v=v, bias=bias: F.scaled_dot_product_attention(q, k, v, bias),
            "sdpa without a mask": lambda q=q, k=k, v=v: F.scaled_dot_product_attention(q, k, v),
            "products": lambda q=q, k=k, v=v, bias=bias: (q @ k.mT * width**-0.5 + bias).float().softmax(-1).to(dtype) @ v,
        }
        for name, way in ways.items():
            found[f"{name}, {positions}"] = 1e6 * timed(way, device)
    return found


def timed(way: Run, device: torch.device, times: int = 50) -> float:
    """Seconds of one of many runs one after the other, recorded together where the device can."""

    def many() -> None:
        for _ in range(times):
            way()

    many()
    again = many
    if device.type == "cuda":
        recorder = CUDAGraphCapturer(device)
        recorder.warmup(many)
        again = recorder.capture(many)
    taken = []
    for _ in range(5):
        start = synchronized_time(device)
        again()
        taken.append(synchronized_time(device) - start)
    return median(taken) / times


if __name__ == "__main__":
    main()
