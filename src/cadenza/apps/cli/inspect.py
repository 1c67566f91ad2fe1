"""`cadenza inspect`: what a model is made of."""

from typing import Annotated

import typer


def inspect(model: Annotated[str, typer.Argument(help="A bundled model or a folder.")] = "starter") -> None:
    """Show the parts, controls, sizes and licence of a model."""
    from cadenza.apps.api import load

    system = load(model, device="cpu")
    spec, grid = system.spec, system.codec.grid
    print(f"{system.card.name}: {system.card.summary}\nlicence of the weights: {system.card.license}")
    print(f"codec: {type(system.codec).__name__}, {spec.codec.sample_rate} Hz, {grid.frame_rate:g} frames/s x {grid.rows}")
    for name, part in spec.conditioners.items():
        slots = ", ".join(slot for slot, other in spec.fusion.pairs() if other == name) or "ignored"
        print(f"control {name}: {type(system.conditioners[name]).__name__} ({part.widget}) -> {slots}")
    parts = {"codec": system.codec, "conditioners": system.conditioners, "generator": system.generator}
    for name, part in parts.items():
        if part is not None:
            print(f"{name}: {sum(p.numel() for p in part.parameters()) / 1e6:.2f} M parameters")
