"""`cadenza encode` and `cadenza decode`: audio to codes and back."""

from pathlib import Path
from typing import Annotated

import typer


def encode(
    audio: Annotated[Path, typer.Argument(help="Audio file; or a folder or manifest, for training.")],
    out: Annotated[Path, typer.Option(help="File of codes, or for a folder the store to write.")] = Path("codes.safetensors"),
    model: Annotated[str, typer.Option(help="Bundled model, folder, or name on the hub.")] = "starter",
    plot: Annotated[Path | None, typer.Option(help="Also plot the first second of one file as colored tokens (png).")] = None,
    bandwidth: Annotated[float | None, typer.Option(help="Use the codebooks that fit in so many kbit/s; default: all.")] = None,
) -> None:
    """Encode audio to the codes of a model's codec."""
    from cadenza.apps.api import load
    from cadenza.core.errors import RequestError
    from cadenza.core.types import Codes
    from cadenza.data.encoded_store import encode_dataset
    from cadenza.data.sources import load_manifest
    from cadenza.dsp.audio import load_audio
    from cadenza.dsp.plots import plot_codes
    from cadenza.system.codes_io import save_codes

    system = load(model)
    spec, codec = system.spec.codec, system.codec
    num_codebooks = None if bandwidth is None else spec.num_codebooks_for_bandwidth(bandwidth)
    if audio.is_dir() or audio.suffix in (".jsonl", ".gz", ".tar", ".json"):
        if num_codebooks is not None or plot is not None:
            raise typer.BadParameter(
                "are for one audio file, not for a store; leave them out", param_hint="--bandwidth, --plot"
            )
        manifest, files = load_manifest(audio)
        if files.broken:
            print(files)
        report = encode_dataset(
            manifest, codec, out, on_broken_file="skip", progress=lambda done, total: print(f"{done} of {total} clips")
        )
        print(f"{out}: {report}")
        return
    source = load_audio(audio)
    codes = codec.encode(source.resample(spec.sample_rate).to_channels(spec.channels), num_codebooks=num_codebooks)
    if not isinstance(codes, Codes):
        raise RequestError("the codec of this model has continuous latents; choose another model")
    save_codes(out, codes, spec)
    _, rows, frames = codes.ids.shape
    print(f"{out}: {rows} codebooks x {frames} frames for {source.wave.shape[-1] / source.sample_rate:.2f} s")
    if plot is not None:
        plot_codes(codes, plot, frame_rate=codec.frame_format.frame_rate)
        print(plot)


def decode(
    codes: Annotated[Path, typer.Argument(help="File that `cadenza encode` wrote.")],
    out: Annotated[Path, typer.Option(help="Audio file to write: wav, flac, ogg, opus, mp3 or aiff.")] = Path("out.wav"),
    model: Annotated[str, typer.Option(help="Model that encoded it: bundled, a folder, or a name on the hub.")] = "starter",
) -> None:
    """Decode codes to audio."""
    from cadenza.apps.api import load
    from cadenza.system.codes_io import load_codes

    system = load(model)
    audio = system.codec.decode(load_codes(codes, system.spec.codec).to(system.device))
    for path in audio.save(out):
        print(f"{path}: {audio.wave.shape[-1] / audio.sample_rate:.2f} s")
