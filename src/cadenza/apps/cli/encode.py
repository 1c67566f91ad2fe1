"""`cadenza encode` and `cadenza decode`: audio to codes and back."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from cadenza.core.types import Codes
    from cadenza.system.system import System


def encode(
    audio: Annotated[Path, typer.Argument(help="An audio file; or a folder or manifest, to train on.")],
    out: Annotated[Path, typer.Option(help="The file of codes to write; the folder of a store, for a folder.")] = Path(
        "codes.safetensors"
    ),
    model: Annotated[str, typer.Option(help="A bundled model, a folder, or a name in the hub.")] = "starter",
    plot: Annotated[Path | None, typer.Option(help="Also draw the first second of one file as coloured tokens (png).")] = None,
    bandwidth: Annotated[
        float | None, typer.Option(help="Use only as many codebooks as so many kbit/s pay for; all by default.")
    ] = None,
) -> None:
    """Turn audio into codes, as the model sees it."""
    from cadenza.apps.api import load

    system = load(model)
    levels = None if bandwidth is None else system.spec.codec.num_codebooks_for_bandwidth(bandwidth)
    if audio.is_dir() or audio.suffix in (".jsonl", ".gz", ".tar", ".json"):
        if levels is not None:
            raise typer.BadParameter("a store to train on has all codebooks; leave it out", param_hint="--bandwidth")
        if plot is not None:
            raise typer.BadParameter("only the codes of one audio file are drawn; leave it out", param_hint="--plot")
        _encode_all(system, audio, out)
    else:
        codes = _encode_one(system, audio, out, levels)
        if plot is not None:
            _draw(codes, plot, system.codec.frame_format.frame_rate)


def _encode_all(system: "System", source: Path, out: Path) -> None:
    """Fills a store with the codes of every clip; an interrupted one is continued."""
    from cadenza.data.encoded_store import encode_dataset
    from cadenza.data.sources import load_manifest

    manifest, found = load_manifest(source)
    if found.broken:
        print(found)
    report = encode_dataset(
        manifest, system.codec, out, on_broken_file="skip", progress=lambda done, total: print(f"{done} of {total} clips")
    )
    print(f"{out}: {report}")


def _encode_one(system: "System", audio: Path, out: Path, levels: int | None) -> "Codes":
    from cadenza.core.errors import RequestError
    from cadenza.core.types import Codes
    from cadenza.dsp.audio import load_audio
    from cadenza.system.codes_io import save_codes

    given = load_audio(audio)
    heard = given.resample(system.spec.codec.sample_rate).to_channels(system.spec.codec.channels)
    codes = system.codec.encode(heard, num_codebooks=levels)
    if not isinstance(codes, Codes):
        raise RequestError("this codec makes continuous latents; choose another model")
    save_codes(out, codes, system.spec.codec)
    _, rows, frames = codes.ids.shape
    print(f"{out}: {rows} codebooks x {frames} frames for {given.wave.shape[-1] / given.sample_rate:.2f} s")
    return codes


def _draw(codes: "Codes", path: Path, frame_rate: float) -> None:
    from cadenza.dsp.plots import plot_codes

    plot_codes(codes, path, frame_rate=frame_rate)
    print(path)


def decode(
    codes: Annotated[Path, typer.Argument(help="A file that `cadenza encode` wrote.")],
    out: Annotated[Path, typer.Option(help="The audio file to write: wav, flac, ogg, opus, mp3 or aiff.")] = Path("out.wav"),
    model: Annotated[str, typer.Option(help="The model that encoded it: bundled, a folder, or a name in the hub.")] = "starter",
) -> None:
    """Turn codes back into audio."""
    from cadenza.apps.api import load
    from cadenza.system.codes_io import load_codes

    system = load(model)
    audio = system.codec.decode(load_codes(codes, system.spec.codec).to(system.device))
    for path in audio.save(out):
        print(f"{path}: {audio.wave.shape[-1] / audio.sample_rate:.2f} s")
