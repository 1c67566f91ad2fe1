"""`cadenza generate`: a sentence in, a file out."""

import os
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from cadenza.dsp.audio import Audio
    from cadenza.system.system import Progress, System


SMALL = 50_000_000  # parameters; `starter` has 15 million: 4.3 times real time with one thread, 2.4 with two


def generate(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="What to play; several make several files.")],
    out: Annotated[Path, typer.Option(help="The file to write: wav, flac, ogg, opus or mp3.")] = Path("out.wav"),
    model: Annotated[str, typer.Option(help="A bundled model or a folder.")] = "starter",
    seconds: Annotated[float | None, typer.Option(help="Length of each clip; the model's own by default.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same clip; drawn and printed by default.")] = None,
    set_: Annotated[list[str], typer.Option("--set", metavar="ID=VALUE", help="Another control, such as tempo=90.")] = [],
    sampling: Annotated[
        list[str], typer.Option("--sampling", metavar="NAME=VALUE", help="Such as temperature=0.9, top_k=100.")
    ] = [],
    guidance: Annotated[float | None, typer.Option(help="How strongly to follow the controls; 1 is plain.")] = None,
    variations: Annotated[int, typer.Option(help="Clips of each prompt, with seeds one apart.")] = 1,
) -> None:
    """Make music from a sentence."""
    _writable(out)
    started = time.perf_counter()
    from cadenza.apps.api import load

    system = load(model)
    _choose_threads(system)
    controls = dict(_value(system, pair) for pair in set_)
    seed = secrets.randbelow(2**31) if seed is None else seed
    options = {"seconds": seconds, "seed": seed, "guidance": guidance, "variations": variations}
    ready = time.perf_counter()
    items = [{"prompt": prompt, **controls} for prompt in prompts]
    with _bar() as progress:
        audio = system.generate(
            items,
            sampling=dict(_number(pair) for pair in sampling),
            progress=progress,
            **options,
        )
    took = time.perf_counter() - ready
    paths = audio.save(out)
    seeds = [seed + j for _ in prompts for j in range(variations)]
    _say_read(system, items)
    _report(audio, paths, f"model {system.card.name} ({system.card.license})", seeds)
    made = float(audio.lengths.sum()) / audio.sample_rate
    print(f"{took:.1f} s to generate ({made / took:.1f}x real time), {ready - started:.1f} s to load")


def _say_read(system: "System", items: list[dict[str, Any]]) -> None:
    for item in items:
        found = {name: value for name, value in system.read(item).items() if name not in item}
        if found:
            values = ", ".join(
                f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}" for name, value in found.items()
            )
            print(f"read in the prompt: {values}")


def _report(audio: "Audio", paths: list[Path], model: str, seeds: list[int]) -> None:
    for clip, path, seed in zip(audio, paths, seeds, strict=True):
        peak = float(clip.wave.abs().max())
        print(f"{path}: {clip.wave.shape[-1] / audio.sample_rate:.1f} s, peak {peak:.2f}, {model}, seed {seed}")


def _value(system: "System", pair: str) -> tuple[str, Any]:
    """`id=value` as the conditioner called `id` takes it."""
    name, value = _pair(pair, "--set")
    if name in system.conditioners and system.spec.conditioners[name].widget == "number":
        return name, _float(value, pair, "--set")
    return name, value


def _number(pair: str) -> tuple[str, float]:
    name, value = _pair(pair, "--sampling")
    return name, _float(value, pair, "--sampling")


def _pair(pair: str, option: str) -> tuple[str, str]:
    name, equals, value = pair.partition("=")
    if not equals or not name.strip() or not value.strip():
        raise typer.BadParameter(f"'{pair}' is not NAME=VALUE", param_hint=option)
    return name.strip(), value.strip()


def _float(value: str, pair: str, option: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise typer.BadParameter(f"'{pair}': {value} is not a number", param_hint=option) from None


def _choose_threads(system: "System") -> None:
    """One thread for a small model on a CPU: its matrices are done before a second one has woken up."""
    import torch

    if "OMP_NUM_THREADS" not in os.environ and system.device.type == "cpu":
        if sum(parameter.numel() for parameter in system.parameters()) < SMALL:
            torch.set_num_threads(1)


def _writable(out: Path) -> None:
    """Finds out before the work, not after it, that the file cannot be written."""
    from cadenza.core.errors import AudioError
    from cadenza.dsp.files import FORMATS

    if out.suffix.lower() not in FORMATS:
        raise AudioError(f"{out}: unknown kind of file '{out.suffix}'; choose from {', '.join(FORMATS)}")
    if out.is_dir():
        raise AudioError(f"{out} is a folder; give the name of a file")
    try:
        tempfile.TemporaryFile(dir=out.parent).close()
    except OSError as error:
        raise AudioError(f"{out}: nothing can be written there ({error.strerror}); choose another place with --out") from None


@contextmanager
def _bar() -> Iterator["Progress | None"]:
    """A progress bar on a terminal, nothing elsewhere."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress as Bar

    with Bar(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("generating", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
