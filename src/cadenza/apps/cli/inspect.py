"""`cadenza inspect`: what a model is made of."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cadenza.system.store import ModelFolder
    from cadenza.system.system import System

_DTYPES = ("float32", "bfloat16")
_QUANTIZED = ("int8", "int4")


def inspect(
    model: Annotated[str, typer.Argument(help="A bundled model, a folder, or a name in the hub.")] = "starter",
    seconds: Annotated[float | None, typer.Option(help="Say what clips of this length would take.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, max=1024, help="Say what so many clips at once would take.")] = None,
    dtype: Annotated[
        str | None, typer.Option(metavar="float32|bfloat16", help="How to compute; by default as the memory allows.")
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="The same as --dtype bfloat16.")] = False,
    quantize: Annotated[str | None, typer.Option(metavar="int8|int4", help="How to hold the generator's weights.")] = None,
    memory: Annotated[str | None, typer.Option(help="Plan for so much memory, such as 4GB, not for what is free.")] = None,
) -> None:
    """Show the parts, controls, sizes and licence of a model, without reading its weights; plan what a run would take."""
    import torch

    from cadenza.apps.api import resolve
    from cadenza.system.system import System

    found = resolve(model)
    folder, card = found.folder, found.card
    with torch.device("meta"):
        system = System(found.spec, card)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20
    print(f"{card.name}: {card.summary}\nlicence of the weights: {card.license}")
    if card.notice:
        print(card.notice)
    print(f"{folder}: layout of {found.layout}, {size:.1f} MiB")
    _show(system)
    if seconds is not None or batch is not None or memory is not None:
        _plan(found, system, seconds, batch or 1, dtype="bfloat16" if half else dtype, quantize=quantize, memory=memory)


def _plan(
    found: "ModelFolder",
    system: "System",
    seconds: float | None,
    batch: int,
    *,
    dtype: str | None,
    quantize: str | None,
    memory: str | None,
) -> None:
    """What clips of `seconds` with a prompt would take."""
    import torch

    from cadenza.apps.cli.plan import format_plan, plan_before_loading
    from cadenza.core.device import select_device
    from cadenza.core.errors import RequestError
    from cadenza.core.memory import parse_bytes
    from cadenza.system.request import Request

    if system.generator is None:
        raise RequestError("this system is a codec alone: there is nothing to generate, so nothing to plan")
    if dtype not in (None, *_DTYPES):
        raise typer.BadParameter(f"'{dtype}' is not one of {', '.join(_DTYPES)}", param_hint="--dtype")
    if quantize not in (None, *_QUANTIZED):
        raise typer.BadParameter(f"'{quantize}' is not one of {', '.join(_QUANTIZED)}", param_hint="--quantize")
    try:
        room = None if memory is None else parse_bytes(memory)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--memory") from None
    told = next(iter(system.conditioners), None)
    request = Request.from_input([{} if told is None else {told: None}] * batch, seconds=seconds)
    computed = None if dtype is None else getattr(torch, dtype)
    device = str(select_device().device)
    options = {"device": device, "dtype": computed, "quantize": quantize, "max_bytes": room}
    print(format_plan(found.spec, plan_before_loading(found.folder, found.spec, request, **options)))  # type: ignore[arg-type]


def _show(system: "System") -> None:
    spec, frame_format = system.spec, system.spec.codec.frame_format
    channels = {1: "mono", 2: "stereo"}.get(spec.codec.channels, f"{spec.codec.channels} channels")
    kind = type(system.codec).__name__
    print(
        f"codec: {kind}, {spec.codec.sample_rate} Hz {channels}, {frame_format.frame_rate:g} frames/s x {frame_format.channels}"
    )
    if spec.generator is not None:
        print(
            f"generator: {type(system.generator).__name__}, "
            f"{spec.generator.max_frames / frame_format.frame_rate:g} s in one piece"
        )
    for name, part in spec.conditioners.items():
        slots = ", ".join(slot for slot, other in spec.fusion.slot_ids() if other == name) or "ignored"
        beside = f", with the files of {part.model}" if hasattr(part, "model") else ""  # type: ignore[attr-defined]
        print(f"control {name}: {type(system.conditioners[name]).__name__} ({part.widget}) -> {slots}{beside}")
    parts = {"codec": system.codec, "conditioners": system.conditioners, "generator": system.generator}
    for name, part in parts.items():
        if part is not None and (part is not system.conditioners or spec.conditioners):
            print(f"{name}: {sum(p.numel() for p in part.parameters()) / 1e6:.2f} M parameters")
