"""`python benchmarks/compare MODEL`: Cadenza and transformers side by side, and the roofline bound of this machine."""

import datetime
import sys
from pathlib import Path
from typing import Annotated

import typer

sys.path.insert(0, str(Path(__file__).parents[1]))


def compare(
    model: Annotated[
        str,
        typer.Argument(help="musicgen-small, -medium, -large, musicgen-stereo-small, ..., encodec-24khz, -32khz, or starter."),
    ] = "musicgen-small",
    seconds: Annotated[float | None, typer.Option(help="Length of the timed clip. Default: 30, or 8 in a sweep.")] = None,
    variants: Annotated[str, typer.Option(help="Our variants: float32, bfloat16, float16, int8, int4.")] = "float32,int8,int4",
    peer: Annotated[bool, typer.Option("--peer/--no-peer", help="Whether to run transformers too.")] = True,
    peer_from: Annotated[
        Path | None, typer.Option(help="The JSON of a sweep: run transformers with its best configurations from there.")
    ] = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="Only time every configuration of transformers on short clips.")
    ] = False,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each of our variants.")] = 3,
    peer_repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each transformers configuration.")] = 1,
    threads: Annotated[int, typer.Option(min=0, help="0: one thread per core.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    curves: Annotated[str, typer.Option(help="Curves to measure: length, batch, guidance, prompt.")] = "",
    fresh: Annotated[bool, typer.Option("--fresh/--no-fresh", help="Whether to measure memory in separate processes.")] = True,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the report. Default: benchmarks/results/MACHINE/DATE-bench.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Use a tiny model, to test the benchmark itself.")] = False,
) -> None:
    """Time a published geometry with random weights, in turn with transformers; write JSON, Markdown and plots."""
    import torch

    from cadenza.core.errors import BenchmarkError
    from compare import machine, report
    from compare.peer import TransformersConfig
    from compare.run import BenchConfig
    from compare.run import run_benchmark as run
    from compare.run import sweep as run_swept
    from compare.sweep import best_configs

    if seconds is not None and not seconds > 0:
        raise BenchmarkError(f"--seconds must be above 0, got {seconds:g}")
    usual = (
        (TransformersConfig(),)
        if device == "cpu"
        else (TransformersConfig("bfloat16"), TransformersConfig("bfloat16", cache="static", compiled=True))
    )
    config = BenchConfig(
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
    results = run_swept(config, say=_say) if sweep else run(config, say=_say)
    kind = machine.machine_id(torch.device(device))
    folder = out or Path("benchmarks/results") / kind / f"{datetime.date.today().isoformat()}-{'sweep' if sweep else 'bench'}"
    path = report.save_report(results, folder)
    _say(path.read_text())
    _say(f"written to {folder}")


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))


def _say(line: str) -> None:
    print(line, flush=True)


def main() -> None:
    """Run the program; print errors as one line with exit status 2."""
    from cadenza.core.errors import CadenzaError

    try:
        typer.run(compare)
    except CadenzaError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
