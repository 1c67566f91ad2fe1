"""`cadenza bench`: how fast, beside transformers and beside what the machine can do at best."""

from pathlib import Path
from typing import Annotated

import typer


def bench(
    model: Annotated[
        str,
        typer.Argument(help="musicgen-small, -medium, -large, musicgen-stereo-small, ..., encodec-24khz, -32khz, or starter."),
    ] = "musicgen-small",
    seconds: Annotated[
        float | None, typer.Option(help="Length of the clip that is timed; 30, or 8 in a sweep, which begins with a quarter.")
    ] = None,
    variants: Annotated[
        str, typer.Option(help="Forms of ours, of float32, bfloat16, float16, int8, int4.")
    ] = "float32,int8,int4",
    peer: Annotated[bool, typer.Option("--peer/--no-peer", help="Whether transformers runs beside ours.")] = True,
    peer_from: Annotated[
        Path | None, typer.Option(help="The JSON of a sweep: transformers runs as was best there, and as was best in float32.")
    ] = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Only try every configuration of transformers on short clips.")
    ] = False,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each of ours.")] = 3,
    peer_repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each of transformers.")] = 1,
    threads: Annotated[int, typer.Option(min=0, help="0: a thread a core.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    curves: Annotated[str, typer.Option(help="Costs to draw, of length, batch, guidance, prompt.")] = "",
    fresh: Annotated[
        bool, typer.Option("--fresh/--no-fresh", help="Whether memory is measured in processes of their own.")
    ] = True,
    out: Annotated[
        Path | None, typer.Option(help="The folder of the report; benchmarks/results/MACHINE/DATE-bench by default.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A tiny model of the same kind, to try the benchmark itself.")] = False,
) -> None:
    """Time a published geometry with random weights, in turn with transformers; write JSON, Markdown and plots."""
    import torch

    from cadenza.apps.bench import machine, report
    from cadenza.apps.bench.bench import BenchConfig
    from cadenza.apps.bench.bench import run_benchmark as run
    from cadenza.apps.bench.bench import sweep as run_swept
    from cadenza.apps.bench.peer import TransformersConfig
    from cadenza.apps.bench.sweep import best_configs
    from cadenza.core.errors import BenchmarkError

    if seconds is not None and not seconds > 0:
        raise BenchmarkError(f"--seconds must be above 0, got {seconds:g}")
    usual = (
        (TransformersConfig(),)
        if device == "cpu"
        else (TransformersConfig("bfloat16"), TransformersConfig("bfloat16", cache="static", compiled=True))
    )
    wish = BenchConfig(
        model,
        seconds=seconds or (0.4 if quick else 8.0 if sweep else 30.0),
        variants=_names(variants),
        peers=() if not peer else best_configs(peer_from) if peer_from else usual,
        repeats=repeats,
        peer_repeats=peer_repeats,
        threads=threads,
        device=device,
        quick=quick,
        fresh=fresh,
        curves=_names(curves),
    )
    found = run_swept(wish, say=_say) if sweep else run(wish, say=_say)
    kind = machine.machine_id(torch.device(device))
    folder = out or Path("benchmarks/results") / kind / f"{machine.today()}-{'sweep' if sweep else 'bench'}"
    path = report.save_report(found, folder)
    _say(path.read_text())
    _say(f"written to {folder}")


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _say(line: str) -> None:
    print(line, flush=True)
