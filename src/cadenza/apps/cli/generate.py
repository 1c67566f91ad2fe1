"""`cadenza generate`: text, audio and controls to audio files."""

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


def generate(  # noqa: PLR0913, PLR0915
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PROMPT|FILE]...",
            help='Text prompt, or an audio file to continue. Repeat for several clips. "": no prompt.',
        ),
    ] = None,
    prompts: Annotated[Path | None, typer.Option(help="File with one prompt a line, or one JSON item a line (.jsonl).")] = None,
    out: Annotated[
        str | None,
        typer.Option(
            help="File to write: wav, flac, ogg, opus, mp3 or aiff. {index}, {seed} and {prompt} are replaced; without them "
            "several clips become NAME-1, NAME-2, ... Existing files are overwritten. -: stream to the standard output.",
            show_default="out.wav",
        ),
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream", help="Play during generation; with --out, write during generation.")
    ] = False,
    format_: Annotated[
        str | None, typer.Option("--format", help="Format of --out -: wav (default), mp3 or raw (16 bits, little-endian).")
    ] = None,
    model: Annotated[str, typer.Option(help="Bundled model, folder, or name on the hub.")] = "starter",
    seconds: Annotated[
        float | None, typer.Option(help="Clip length in seconds, including the audio prompt. Default: the model's.")
    ] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same clip. Default: random, and printed.")] = None,
    tempo: Annotated[str | None, typer.Option(help="Beats per minute, such as 92.")] = None,
    key: Annotated[str | None, typer.Option(help="Key, such as 'A minor'.")] = None,
    chords: Annotated[str | None, typer.Option(help="Chords such as 'Am F C G', or with seconds: 'C@0 Am@2.5'.")] = None,
    melody: Annotated[str | None, typer.Option(help="Monophonic audio, a MIDI file, or [[start, end, pitch], ...].")] = None,
    beats: Annotated[str | None, typer.Option(help="Times of the beats in seconds, such as '[0, 0.6, 1.2]'.")] = None,
    drums: Annotated[str | None, typer.Option(help="Drum audio, a MIDI file, or times of drum hits in seconds.")] = None,
    set_: Annotated[
        list[str],
        typer.Option(
            "--set",
            "--condition",
            metavar="ID=VALUE",
            help="A control of all clips: number, text, file or JSON; '0-8: 90; 8-end: 120' changes over time. "
            "`cadenza inspect MODEL` lists the controls.",
        ),
    ] = [],
    sampling: Annotated[
        list[str],
        typer.Option(
            "--sampling",
            metavar="NAME=VALUE",
            help="temperature (0: greedy), top_k (0: all), top_p (0 to 1), allow_eos (0 or 1). Default: the model's.",
        ),
    ] = [],
    guidance_: Annotated[
        str | None,
        typer.Option(
            "--guidance",
            metavar="NUMBER|JSON",
            help="Guidance scale: 1 = no guidance, 3 = usual. Default: the model's. Or JSON with the fields scale, id_scales, "
            "weights, negative, interval, schedule, strength and rescale, such as "
            '\'{"scale": 3, "id_scales": {"chords": 2}, "interval": [0, 0.8]}\'.',
        ),
    ] = None,
    negative: Annotated[
        str | None, typer.Option(metavar="TEXT", help="Negative prompt: what to avoid, such as 'drums'.")
    ] = None,
    variations: Annotated[int, typer.Option(min=1, max=1024, help="Clips of each prompt, with consecutive seeds.")] = 1,
    continue_from: Annotated[
        Path | None, typer.Option(help="Audio or codes that every clip continues; shorter than --seconds.")
    ] = None,
    only_new: Annotated[bool, typer.Option("--only-new", help="Leave the audio prompt out of the result.")] = False,
    stride: Annotated[
        float | None,
        typer.Option(help="Seconds between windows of a clip longer than the model's context. Default: the model's."),
    ] = None,
    loudness: Annotated[
        float | None, typer.Option(help="Loudness of each clip in LUFS, -60 to -5, such as -14. Default: not changed.")
    ] = None,
    half: Annotated[bool, typer.Option("--half", help="Compute in bfloat16 or float16, with half the memory.")] = False,
    quantize: Annotated[
        str | None,
        typer.Option(metavar="int8|int4", help="Quantise the weights to 8 or 4 bits: several times as fast on a CPU."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 or mps. Default: a GPU if there is one.")] = None,
) -> None:
    """Generate audio from a text prompt, audio and controls."""
    clip_prompts = parse_prompts(what or [], prompts)
    seed = secrets.randbelow(2**31) if seed is None else seed
    seeds = [seed + j for _ in clip_prompts for j in range(variations)]
    titles = [prompt.title for prompt in clip_prompts for _ in range(variations)]
    streamed = stream or out == PIPE
    if streamed and loudness is not None:
        raise RequestError("--loudness needs a whole clip; leave it out, or leave out --stream")
    if not streamed and format_ is not None:
        raise typer.BadParameter("is for --out -; the suffix of a file name sets its format", param_hint="--format")
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
            [{**unset, **prompt.item} for prompt in clip_prompts], seconds=seconds, seed=seed, variations=variations,
            guidance=parse_guidance(guidance_, negative), sampling=parse_sampling(sampling), stride=stride, loudness=loudness,
            **_audio_prompts(clip_prompts, continue_from, only_new=only_new),
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
        controls = parse_controls(system, set_, named, clip_prompts)
        items = [{**prompt.item, **controls} for prompt in clip_prompts]
        request = request.model_copy(update={"items": tuple(items)})
        weights = f"{system.quantization} weights " if system.quantization else ""
        ready = time.perf_counter()
        tags = (file_tags(title, clip_seed, system.card) for title, clip_seed in zip(titles, seeds, strict=True))
        if to is not None:
            meter = StreamMeter(to.played, live=sys.stderr.isatty())
            sinks = write_stream(system.stream(request), to, meter, list(tags))
            clips = [(name, sink.samples / sink.sound.sample_rate, "") for name, sink in zip(to.names, sinks, strict=False)]
            made, elapsed, speed = meter.made, meter.busy, str(meter)
        else:
            with _bar() as progress:
                audio = system.generate(request, plan=plan, progress=progress)
            made, elapsed = float(audio.lengths.sum()) / audio.sample_rate, time.perf_counter() - ready
            speed = f"{elapsed:.1f} s to generate ({made / elapsed:.1f}x real time)"
            clips = []
            for clip, path, clip_tags in zip(audio, files, tags, strict=True):
                clip.save(path, tags=clip_tags)
                peak = f"peak {float(clip.wave.abs().max()):.2f}, "
                clips.append((str(path), clip.wave.shape[-1] / clip.sample_rate, peak))
        record_run(found.spec, plan, made / elapsed if elapsed else 0.0)
        _print_read(system, items)
        for (name, duration, peak), clip_seed in zip(clips, seeds, strict=False):
            print(f"{name}: {duration:.1f} s, {peak}model {system.card.name} ({system.card.license}), seed {clip_seed}")
        if 2 <= made < elapsed and system.device.type == "cpu" and system.quantization is None:
            print("slower than real time: --quantize int8 is several times as fast on a CPU", file=sys.stderr)
        print(f"{speed}, {ready - started:.1f} s to load, {weights}on {choice}", file=sys.stderr if streamed else sys.stdout)


def _audio_prompts(clip_prompts: list[ClipPrompt], all_from: Path | None, *, only_new: bool) -> dict[str, Any]:
    """Return the fields of the request for audio prompts."""
    paths = [prompt.continue_from or all_from for prompt in clip_prompts]
    return {"continue_from": tuple(paths), "include_prompt": not only_new} if any(paths) else {}


def _print_read(system: "System", items: list[dict[str, Any]]) -> None:
    """Print the values that were read from the prompts."""
    for item in items:
        values = {name: value for name, value in system.extract_prompt_values(item).items() if name not in item}
        if values:
            print(f"read in the prompt: {', '.join(f'{name} {format_value(value)}' for name, value in values.items())}")


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
