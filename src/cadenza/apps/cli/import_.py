"""`cadenza import`: another library's model as a folder of ours."""

from pathlib import Path
from typing import Annotated

import typer


def import_(
    source: Annotated[str, typer.Argument(help="A folder of transformers or AudioCraft, or a name in the hub.")],
    out: Annotated[Path, typer.Argument(help="The folder to write.")],
    half: Annotated[bool, typer.Option("--half", help="Write the weights in half the size (bfloat16).")] = False,
) -> None:
    """Convert a MusicGen, AudioGen or EnCodec model once, so that it loads faster and needs nothing else."""
    import torch

    from cadenza.apps.api import load

    system = load(source, device="cpu")
    system.save(out, dtype=torch.bfloat16 if half else None)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {system.card.name}, {size / 2**20:.1f} MiB, licence of the weights: {system.card.license}")
    print(system.card.notice)
