"""`cadenza inspect`: what a model is made of."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cadenza.system.system import System


def inspect(model: Annotated[str, typer.Argument(help="A bundled model, a folder, or a name in the hub.")] = "starter") -> None:
    """Show the parts, controls, sizes and licence of a model, without reading its weights."""
    import torch

    from cadenza.apps.api import find
    from cadenza.system import store
    from cadenza.system.card import Card
    from cadenza.system.system import System

    found = find(model)
    folder, spec, card, layout = (
        (found, store.look(found), Card.of(found), "Cadenza")
        if isinstance(found, Path)
        else (found.folder, found.spec, found.card, found.layout)
    )
    with torch.device("meta"):
        system = System(spec, card)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20
    print(f"{card.name}: {card.summary}\nlicence of the weights: {card.license}")
    if card.notice:
        print(card.notice)
    print(f"{folder}: layout of {layout}, {size:.1f} MiB")
    _show(system)


def _show(system: "System") -> None:
    spec, grid = system.spec, system.spec.codec.grid
    channels = {1: "mono", 2: "stereo"}.get(spec.codec.channels, f"{spec.codec.channels} channels")
    kind = type(system.codec).__name__
    print(f"codec: {kind}, {spec.codec.sample_rate} Hz {channels}, {grid.frame_rate:g} frames/s x {grid.rows}")
    if spec.generator is not None:
        print(f"generator: {type(system.generator).__name__}, {spec.generator.context / grid.frame_rate:g} s in one piece")
    for name, part in spec.conditioners.items():
        slots = ", ".join(slot for slot, other in spec.fusion.pairs() if other == name) or "ignored"
        beside = f", with the files of {part.model}" if hasattr(part, "model") else ""  # type: ignore[attr-defined]
        print(f"control {name}: {type(system.conditioners[name]).__name__} ({part.widget}) -> {slots}{beside}")
    parts = {"codec": system.codec, "conditioners": system.conditioners, "generator": system.generator}
    for name, part in parts.items():
        if part is not None and (part is not system.conditioners or spec.conditioners):
            print(f"{name}: {sum(p.numel() for p in part.parameters()) / 1e6:.2f} M parameters")
