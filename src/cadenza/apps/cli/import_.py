"""`cadenza import` and `cadenza export`: models of other libraries to Cadenza folders, and back."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer


def import_(
    source: Annotated[str, typer.Argument(help="Folder of transformers or AudioCraft, or name on the hub.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; a saved system there is replaced.")],
    half: Annotated[bool, typer.Option("--half", help="Write the weights in half the size (bfloat16).")] = False,
    quantize: Annotated[str | None, typer.Option(metavar="int8|int4", help="Quantise the language model.")] = None,
    attend_padding: Annotated[
        bool | None, typer.Option("--attend-padding/--mask-padding", help="Attend to prompt padding; default: as its library.")
    ] = None,
) -> None:
    """Convert a MusicGen, AudioGen or EnCodec model once, so that it loads faster.

    A text encoder in the folder is copied; one on the hub is named, not copied.
    """
    import torch

    from cadenza.apps.api import resolve
    from cadenza.core.errors import CadenzaError
    from cadenza.system.system import System

    saved = resolve(source).load()
    if attend_padding is not None:
        generator = saved.spec.generator
        if not hasattr(generator, "attend_padding"):
            raise typer.BadParameter("this model has no prompts to pad; leave it out", param_hint="--attend-padding")
        generator = generator.model_copy(update={"attend_padding": attend_padding})  # type: ignore[union-attr]
        saved = replace(saved, spec=saved.spec.model_copy(update={"generator": generator}))
    system = System.from_saved(saved, source=source)
    if quantize is not None:
        system.quantize(quantize)
    system.save(out, dtype=torch.bfloat16 if half else None)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {system.card.name}, {size / 2**20:.1f} MiB, licence of the weights: {system.card.license}")
    print(system.card.notice)
    for name, conditioner in system.conditioners.items():  # download encoders now, not at the first prompt
        encoder = getattr(getattr(conditioner, "pretrained", None), "source", None)
        if encoder is None or encoder.folder is not None:
            continue
        try:
            conditioner.prepare_training([])
        except CadenzaError as error:
            warnings.warn(f"the control '{name}' cannot be used yet: {error}", stacklevel=2)
        else:
            print(f"control {name}: the text encoder {encoder.model} is on this machine, and not copied")


def export_(
    model: Annotated[str, typer.Argument(help="Bundled model, folder, or name on the hub.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; it must be new or empty.")],
) -> None:
    """Write a MusicGen or EnCodec model in the layout of transformers."""
    from cadenza.apps.api import load
    from cadenza.importers.export import export

    for line in export(load(model, device="cpu"), out):
        print(line)
