"""`cadenza encode` and `cadenza decode`: audio to codes and back."""

from pathlib import Path
from typing import Annotated

import typer


def encode(
    audio: Annotated[Path, typer.Argument(help="An audio file.")],
    out: Annotated[Path, typer.Option(help="The file of codes to write.")] = Path("codes.safetensors"),
    model: Annotated[str, typer.Option(help="A bundled model or a folder.")] = "starter",
    plot: Annotated[Path | None, typer.Option(help="Also draw the first second as coloured tokens (png).")] = None,
) -> None:
    """Turn audio into codes, as the model sees it."""
    from cadenza.apps.api import load
    from cadenza.core.errors import RequestError
    from cadenza.core.types import Codes
    from cadenza.dsp.audio import read
    from cadenza.system.codes import write_codes

    system = load(model)
    given = read(audio)
    codes = system.codec.encode(given.resample(system.spec.codec.sample_rate).mix(system.spec.codec.channels))
    if not isinstance(codes, Codes):
        raise RequestError(f"the codec of {model} makes continuous latents; choose a model whose codec makes codes")
    write_codes(out, codes, system.spec.codec)
    _, rows, frames = codes.ids.shape
    print(f"{out}: {rows} codebooks x {frames} frames for {given.wave.shape[-1] / given.sample_rate:.2f} s")
    if plot is not None:
        from cadenza.evaluation.plots import draw_codes

        draw_codes(codes, plot, frame_rate=system.codec.grid.frame_rate)
        print(plot)


def decode(
    codes: Annotated[Path, typer.Argument(help="A file that `cadenza encode` wrote.")],
    out: Annotated[Path, typer.Option(help="The audio file to write.")] = Path("out.wav"),
    model: Annotated[str, typer.Option(help="The model that encoded it.")] = "starter",
) -> None:
    """Turn codes back into audio."""
    from cadenza.apps.api import load
    from cadenza.system.codes import read_codes

    system = load(model)
    audio = system.codec.decode(read_codes(codes, system.spec.codec).to(system.device))
    for path in audio.save(out):
        print(f"{path}: {audio.wave.shape[-1] / audio.sample_rate:.2f} s")
