"""`cadenza generate`: a sentence in, a file out."""

import secrets
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cadenza.apps.cli.outputs import file_tags, output_paths
from cadenza.apps.cli.parsing import ClipPrompt, format_value, parse_controls, parse_guidance, parse_prompts, parse_sampling
from cadenza.apps.cli.stream import PIPE, StreamMeter, audio_on_stdout, resolve_target, write_stream
from cadenza.core.errors import RequestError

if TYPE_CHECKING:
    from cadenza.system.system import Progress, System


def generate(  # noqa: PLR0913
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PROMPT|FILE]...",
            help='What to play; an audio file is gone on from. Several make several files. "": without a prompt.',
        ),
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="A file with a prompt in each line, or items as JSON (.jsonl).")] = None,
    out: Annotated[
        str | None,
        typer.Option(
            help="The file to write: wav, flac, ogg, opus, mp3 or aiff; {index}, {seed} and {prompt} are filled in, "
            "else several are NAME-1, NAME-2, ... An older file is replaced. -: the standard output, as it is made.",
            show_default="out.wav",
        ),
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Play while it is made; with --out, write while it is made.")
    ] = False,
    format_: Annotated[
        str | None, typer.Option("--format", help="Of --out -: raw (16 bits, little-endian), wav or mp3; wav by default.")
    ] = None,
    model: Annotated[str, typer.Option(help="A bundled model, a folder, or a name on the hub.")] = "starter",
    seconds: Annotated[
        float | None, typer.Option(help="Length of each clip, with what it goes on from; the model's own by default.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same clip; drawn and printed by default.")] = None,
    tempo: Annotated[str | None, typer.Option(help="Beats a minute, such as 92.")] = None,
    key: Annotated[str | None, typer.Option(help="Such as 'A minor'.")] = None,
    chords: Annotated[str | None, typer.Option(help="A line such as 'Am F C G', or 'C@0 Am@2.5' with seconds.")] = None,
    melody: Annotated[str | None, typer.Option(help="Audio of one voice, a MIDI file, or [[start, end, pitch], ...].")] = None,
    beats: Annotated[str | None, typer.Option(help="The seconds of the beats, such as '[0, 0.6, 1.2]'.")] = None,
    drums: Annotated[str | None, typer.Option(help="Audio of drums, a MIDI file, or the seconds of strikes.")] = None,
    set_: Annotated[
        list[str],
        typer.Option(
            "--set",
            "--condition",
            metavar="ID=VALUE",
            help="Any control for all clips, as a number, text, file or JSON; '0-8: 90; 8-end: 120' changes over time; "
            "`cadenza inspect MODEL` lists them.",
        ),
    ] = [],
    sampling: Annotated[
        list[str],
        typer.Option(
            "--sampling",
            metavar="NAME=VALUE",
            help="temperature (0: the likeliest), top_k (0: all), top_p (0 to 1), may_end (0, 1); the model's own by default.",
        ),
    ] = [],
    guidance_: Annotated[
        str | None,
        typer.Option(
            "--guidance",
            metavar="NUMBER|JSON",
            help="How strongly to follow the controls: 1 is plain, 3 is usual; the model's own by default. Or JSON of scale, "
            "emphasis, weights, negative, interval, schedule, strength and rescale, such as "
            '\'{"scale": 3, "id_scales": {"chords": 2}, "interval": [0, 0.8]}\'.',
        ),
    ] = None,
    negative: Annotated[str | None, typer.Option(metavar="TEXT", help="What to keep away from, such as 'drums'.")] = None,
    variations: Annotated[int, typer.Option(min=1, max=1024, help="Clips of each prompt, with seeds one apart.")] = 1,
    continue_from: Annotated[
        Path | None, typer.Option(help="Audio or codes that every clip goes on from, shorter than --seconds.")
    ] = None,
    only_new: Annotated[bool, typer.Option("--only-new", help="Leave out what a clip went on from.")] = False,
    stride: Annotated[
        float | None,
        typer.Option(help="Seconds from window to window of a clip longer than the model; the model's own by default."),
    ] = None,
    loudness: Annotated[
        float | None, typer.Option(help="LUFS of each clip, -60 to -5, such as -14; as it is by default.")
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Compute in half the memory (bfloat16, or float16).")] = False,
    quantize: Annotated[
        str | None,
        typer.Option(metavar="int8|int4", help="Compute with weights of 8 or 4 bits: several times as fast on a CPU."),
    ] = None,
    device: Annotated[
        str | None, typer.Option(help="Where to compute: cpu, cuda, cuda:1, mps; a GPU if one answers by default.")
    ] = None,
) -> None:
    """Make music from a sentence."""
    wanted = parse_prompts(what or [], prompts)
    seed = secrets.randbelow(2**31) if seed is None else seed
    seeds = [seed + j for _ in wanted for j in range(variations)]
    titles = [one.title for one in wanted for _ in range(variations)]
    streamed = stream or out == PIPE
    if streamed and loudness is not None:
        raise RequestError("--loudness is set when a clip is whole; leave it out, or leave out --stream")
    if not streamed and format_ is not None:
        raise typer.BadParameter("is for --out -; the name of a file says its kind", param_hint="--format")
    to = resolve_target(out, format_, lambda out: output_paths(out, titles, seeds), len(seeds)) if streamed else None
    files = [] if streamed else output_paths(out or "out.wav", titles, seeds)
    with audio_on_stdout() if out == PIPE else nullcontext():
        started = time.perf_counter()
        from cadenza.apps.api import load, resolve
        from cadenza.apps.cli.plan import format_plan, plan_before_loading
        from cadenza.core.device import select_device
        from cadenza.system.planner import record_run
        from cadenza.system.request import Request

        named = {"tempo": tempo, "key": key, "chords": chords, "melody": melody, "beats": beats, "drums": drums}
        unset = dict.fromkeys([*(name for name in named if named[name] is not None), *(pair.split("=")[0] for pair in set_)])
        request = Request.from_input(  # raises before a model is read
            [{**unset, **prompt.item} for prompt in wanted], seconds=seconds, seed=seed, variations=variations,
            guidance=parse_guidance(guidance_, negative), sampling=parse_sampling(sampling), stride=stride, loudness=loudness,
            **_beginnings(wanted, continue_from, only_new=only_new),
        )  # fmt: skip
        choice = select_device(device, "half" if half else None)
        found = resolve(model)
        options: dict[str, Any] = {"dtype": choice.dtype if half else None, "quantize": quantize}
        plan = plan_before_loading(found.folder, found.spec, request, device=str(choice.device), **options)
        if plan.job.dtype != choice.dtype:
            choice = replace(choice, dtype=plan.job.dtype, reason=plan.reason)
        if not streamed:
            print(format_plan(found.spec, plan))
        system = load(found, device=choice.device, dtype=choice.dtype, quantize=quantize)  # type: ignore[arg-type]
        controls = parse_controls(system, set_, named, wanted)
        items = [{**prompt.item, **controls} for prompt in wanted]
        request = request.model_copy(update={"items": tuple(items)})
        weights = f"{system.quantization} weights " if system.quantization else ""
        ready = time.perf_counter()
        tags = (file_tags(title, clip_seed, system.card) for title, clip_seed in zip(titles, seeds, strict=True))
        if to is not None:
            meter = StreamMeter(to.played, live=sys.stderr.isatty())
            sinks = write_stream(system.stream(request), to, meter, list(tags))
            _say_read(system, items)
            for name, clip_seed, sink in zip(to.names, seeds, sinks, strict=False):
                _say_made(name, sink.samples / sink.sound.sample_rate, system, clip_seed)
            _say_faster(system, meter.made, meter.busy)
            record_run(found.spec, plan, meter.speed)
            print(f"{meter}, {ready - started:.1f} s to load, {weights}on {choice}", file=sys.stderr)
            return
        with _bar() as progress:
            audio = system.generate(request, plan=plan, progress=progress)
        elapsed = time.perf_counter() - ready
        for clip, path, clip_tags in zip(audio, files, tags, strict=True):
            clip.save(path, tags=clip_tags)
        _say_read(system, items)
        for clip, path, clip_seed in zip(audio, files, seeds, strict=True):
            peak = float(clip.wave.abs().max())
            _say_made(f"{path}", clip.wave.shape[-1] / clip.sample_rate, system, clip_seed, f"peak {peak:.2f}, ")
        made = float(audio.lengths.sum()) / audio.sample_rate
        _say_faster(system, made, elapsed)
        record_run(found.spec, plan, made / elapsed)
        print(
            f"{elapsed:.1f} s to generate ({made / elapsed:.1f}x real time), {ready - started:.1f} s to load, {weights}on {choice}"
        )


def _say_made(name: str, seconds: float, system: "System", seed: int, more: str = "") -> None:
    """What was made, where it is, and what would make it again."""
    print(f"{name}: {seconds:.1f} s, {more}model {system.card.name} ({system.card.license}), seed {seed}")


def _say_faster(system: "System", made: float, took: float) -> None:
    """What would be faster, where seconds of music came slower than they are heard."""
    if 2 <= made < took and system.device.type == "cpu" and system.quantization is None:
        print("slower than real time: --quantize int8 is several times as fast on a CPU", file=sys.stderr)


def _beginnings(wanted: list[ClipPrompt], all_from: Path | None, *, only_new: bool) -> dict[str, Any]:
    """The fields of the request that say what clips go on from."""
    own = [one.continue_from or all_from for one in wanted]
    return {"continue_from": tuple(own), "include_prompt": not only_new} if any(own) else {}


def _say_read(system: "System", items: list[dict[str, Any]]) -> None:
    """What the prompts said in numbers."""
    for item in items:
        found = {name: value for name, value in system.extract_prompt_values(item).items() if name not in item}
        if found:
            print(f"read in the prompt: {', '.join(f'{name} {format_value(value)}' for name, value in found.items())}")


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
