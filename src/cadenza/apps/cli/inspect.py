"""`cadenza inspect`: parts, controls and size of a model."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cadenza.system.system import System


def inspect(
    model: Annotated[str, typer.Argument(help="Bundled model, folder, or name on the hub.")] = "starter",
    seconds: Annotated[float | None, typer.Option(help="Plan clips of this length.")] = None,
    batch: Annotated[int | None, typer.Option(min=1, max=1024, help="Plan this number of clips at once.")] = None,
    dtype: Annotated[str | None, typer.Option(metavar="float32|bfloat16|float16", help="Default: by the memory.")] = None,
    half: Annotated[bool, typer.Option("--half", help="bfloat16 or float16, by the device.")] = False,
    quantize: Annotated[str | None, typer.Option(metavar="int8|int4", help="Quantisation of the weights.")] = None,
    memory: Annotated[str | None, typer.Option(help="Plan for this memory, such as 4GB. Default: the free memory.")] = None,
) -> None:
    """Show the parts, controls, sizes and licence of a model without loading its weights; plan the memory of a run."""
    import torch

    from cadenza.apps.api import resolve
    from cadenza.apps.cli.plan import format_plan, plan_before_loading
    from cadenza.core.device import select_device
    from cadenza.core.memory import parse_bytes
    from cadenza.system.request import Request
    from cadenza.system.system import System

    model_folder = resolve(model)
    folder, spec, card = model_folder.folder, model_folder.spec, model_folder.card
    with torch.device("meta"):
        system = System(spec, card)
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20
    print(f"{card.name}: {card.summary}\nlicence of the weights: {card.license}")
    if card.notice:
        print(card.notice)
    print(f"{folder}: layout of {model_folder.layout}, {size:.1f} MiB")
    _print_parts(system)
    if seconds is None and batch is None and memory is None:
        return
    choice = select_device(dtype="half" if half else dtype)  # type: ignore[arg-type]
    try:
        max_bytes = None if memory is None else parse_bytes(memory)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--memory") from None
    item = dict.fromkeys(list(system.conditioners)[:1])
    request = Request.from_input([item] * (batch or 1), seconds=seconds)
    options = {"dtype": choice.dtype if half or dtype else None, "quantize": quantize, "max_bytes": max_bytes}
    print(format_plan(spec, plan_before_loading(model_folder, request, device=str(choice.device), **options)))


def _print_parts(system: "System") -> None:
    spec, frame_format = system.spec, system.spec.codec.frame_format
    channels = {1: "mono", 2: "stereo"}.get(spec.codec.channels, f"{spec.codec.channels} channels")
    rates = f"{spec.codec.sample_rate} Hz {channels}, {frame_format.frame_rate:g} frames/s x {frame_format.channels}"
    print(f"codec: {type(system.codec).__name__}, {rates}")
    if spec.generator is not None:
        context = spec.generator.max_frames / frame_format.frame_rate
        print(f"generator: {type(system.generator).__name__}, context of {context:g} s")
    for name, part in spec.conditioners.items():
        slots = ", ".join(slot for slot, id in spec.fusion.slot_ids() if id == name) or "ignored"
        files = f", with the files of {part.model}" if hasattr(part, "model") else ""  # type: ignore[attr-defined]
        print(f"control {name}: {type(system.conditioners[name]).__name__} ({part.widget}) -> {slots}{files}")
    parts = {"codec": system.codec, "conditioners": system.conditioners, "generator": system.generator}
    for name, part in parts.items():
        if part is not None and (part is not system.conditioners or spec.conditioners):
            print(f"{name}: {sum(p.numel() for p in part.parameters()) / 1e6:.2f} M parameters")
