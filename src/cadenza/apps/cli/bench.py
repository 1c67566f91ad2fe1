"""`cadenza bench`: how fast, beside the peer and the machine's own bound."""

from pathlib import Path
from typing import Annotated

import typer


def bench(
    model: Annotated[str, typer.Argument(help="musicgen-small, ...")] = "musicgen-small",
    seconds: Annotated[float, typer.Option(help="Length of the clip that is timed.")] = 30.0,
    variants: Annotated[str, typer.Option(help="Forms of ours, such as float32,bfloat16,int8,int4.")] = "float32",
    peer: Annotated[bool, typer.Option("--peer/--no-peer", help="Also run transformers.")] = True,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each of ours.")] = 3,
    peer_repeats: Annotated[int, typer.Option(min=1, help="Timed runs of the peer.")] = 1,
    threads: Annotated[int, typer.Option(min=0, help="Threads; all cores by default.")] = 0,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    quick: Annotated[bool, typer.Option("--quick", help="A tiny model of the same kind, in seconds.")] = False,
) -> None:
    """Time a published geometry with random weights, beside transformers and beside what the machine can do."""
    import json

    from cadenza.apps.bench.bench import Wish, bench as run
    from cadenza.apps.bench.peer import PeerConfig

    wish = Wish(
        model,
        seconds,
        tuple(variants.split(",")),
        (PeerConfig(),) if peer else (),
        repeats,
        peer_repeats,
        threads,
        device,
        quick,
    )
    print(json.dumps(run(wish), indent=1))
