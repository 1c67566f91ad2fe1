"""`cadenza bench`: the speed of a model on this machine."""

import json
from pathlib import Path
from typing import Annotated

import typer


def bench(
    model: Annotated[str, typer.Argument(help="Bundled model, folder, or name on the hub.")] = "starter",
    seconds: Annotated[float, typer.Option(help="Length of the timed clip.")] = 30.0,
    variants: Annotated[str, typer.Option(help="Weights to time: float32, bfloat16, float16, int8, int4.")] = "float32,int8",
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each.")] = 3,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads; 0: chosen by the size of the model.")] = 0,
    device: Annotated[str | None, typer.Option(help="cpu or cuda.")] = None,
    out: Annotated[Path | None, typer.Option(help="JSON file for the results.")] = None,
) -> None:
    """Time a model: steps a second, real-time factor, first audio, memory and share of the memory-bandwidth bound."""
    import torch

    from cadenza.apps.api import load
    from cadenza.apps.bench import BenchJob, bench_system
    from cadenza.core.atomic import atomic_write
    from cadenza.core.device import DTYPES, choose_threads
    from cadenza.core.errors import BenchmarkError
    from cadenza.core.spec import did_you_mean
    from cadenza.nn.weight_quantization import KINDS

    names = list(dict.fromkeys(name.strip() for name in variants.split(",") if name.strip()))
    if not seconds > 0:
        raise BenchmarkError(f"--seconds must be above 0, got {seconds:g}")
    if unknown := [name for name in names if name not in (*DTYPES, *KINDS)]:
        raise BenchmarkError(f"--variants: '{unknown[0]}' is not a variant.{did_you_mean(unknown[0], [*DTYPES, *KINDS])}")
    results = {}
    for name in names:
        system = load(model, device=device, **{"dtype" if name in DTYPES else "quantize": name})  # type: ignore[arg-type]
        choose_threads(system)
        if threads:
            torch.set_num_threads(threads)
        result = bench_system(system, BenchJob(seconds), repeats=repeats, say=lambda line, name=name: print(f"{name}, {line}"))
        print(
            f"{name}: {result['realtime_factor']:.2f}x real time, {result['steps_per_second']:.1f} steps/s "
            f"({result['share_of_bound']:.0%} of the bound), first audio after {result['first_audio_seconds']:.2f} s, "
            f"peak memory {result['peak_memory_bytes'] / 1e6:.0f} MB",
            flush=True,
        )
        results[name] = result
    if out is not None:
        with atomic_write(out, BenchmarkError) as file:
            file.write((json.dumps({"model": model, "results": results}, indent=2) + "\n").encode())
        print(f"written to {out}")
