"""`cadenza import`: another library's model as a folder of ours."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cadenza.system.store import SavedSystem
    from cadenza.system.system import System


def import_(
    source: Annotated[str, typer.Argument(help="A folder of transformers or AudioCraft, or a name in the hub.")],
    out: Annotated[Path, typer.Argument(help="The folder to write; a system that is there is replaced.")],
    half: Annotated[bool, typer.Option("--half", help="Write the weights in half the size (bfloat16).")] = False,
    quantize: Annotated[
        str | None, typer.Option(metavar="int8|int4", help="Write the weights of the language model 8 or 4 bits wide.")
    ] = None,
    attend_padding: Annotated[
        bool | None,
        typer.Option(
            "--attend-padding/--mask-padding",
            help="Whether what pads the shorter prompts of a batch is attended to; by default as the model's library does: "
            "AudioCraft's do, transformers' do not.",
        ),
    ] = None,
) -> None:
    """Convert a MusicGen, AudioGen or EnCodec model once, so that it loads faster.

    A text encoder that lies beside it is copied, one that it names in the hub stays named.
    """
    import torch

    from cadenza.apps.api import resolve
    from cadenza.system.system import System

    stored = resolve(source).load()
    if attend_padding is not None:
        stored = _padded(stored, attend_padding)
    system = System.from_saved(stored, source=source)
    if quantize is not None:
        system.quantize(quantize)
    system.save(out, dtype=torch.bfloat16 if half else None)
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    print(f"{out}: {system.card.name}, {size / 2**20:.1f} MiB, licence of the weights: {system.card.license}")
    print(system.card.notice)
    _fetch(system)


def _padded(stored: "SavedSystem", attend_padding: bool) -> "SavedSystem":
    """The model with its padding attended to, or masked."""
    generator = stored.spec.generator
    if not hasattr(generator, "attend_padding"):
        raise typer.BadParameter("this model has no prompts to pad; leave it out", param_hint="--attend-padding")
    changed = generator.model_copy(update={"attend_padding": attend_padding})  # type: ignore[union-attr]
    return replace(stored, spec=stored.spec.model_copy(update={"generator": changed}))


def _fetch(system: "System") -> None:
    """Asks for the text encoders that are only named now, and not at the first prompt."""
    from cadenza.core.errors import CadenzaError

    for name, conditioner in system.conditioners.items():
        source = getattr(getattr(conditioner, "pretrained", None), "source", None)
        if source is None or source.folder is not None:
            continue
        try:
            conditioner.prepare_training([])  # type: ignore[operator]
        except CadenzaError as error:
            warnings.warn(f"the control '{name}' cannot be used yet: {error}", stacklevel=2)
        else:
            print(f"control {name}: the text encoder {source.model} is on this machine, and not copied")
