"""`cadenza generate`: audio files or a stream from text prompts, audio and controls."""

import re
import secrets
import string
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from cadenza import __version__
from cadenza.apps.cli.parsing import format_value, parse_controls, parse_guidance, parse_prompts, parse_sampling
from cadenza.apps.cli.stream import PIPE, StreamMeter, audio_on_stdout, open_target, write_stream
from cadenza.core.errors import AudioError, RequestError

FIELDS = ("index", "seed", "prompt")  # of the name of --out
MAX_TITLE = 200  # characters of a prompt in a tag
MAX_SLUG = 40  # characters of a prompt in a file name


def generate(  # noqa: PLR0913, PLR0915
    what: Annotated[
        list[str] | None,
        typer.Argument(metavar="[PROMPT|FILE]...", help='Text prompt, or audio to continue, of each clip; "": no prompt.'),
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
    stream: Annotated[bool, typer.Option("--stream", help="Play, or with --out write, during generation.")] = False,
    format_: Annotated[str | None, typer.Option("--format", help="Of --out -: wav (default), mp3 or raw (16 bits).")] = None,
    model: Annotated[str, typer.Option(help="Bundled model, folder, or name on the hub.")] = "starter",
    seconds: Annotated[float | None, typer.Option(help="Clip length, with the audio prompt. Default: the model's.")] = None,
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
        typer.Option(metavar="NAME=VALUE", help="temperature (0: greedy), top_k (0: all), top_p, allow_eos (0 or 1)."),
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
    negative: Annotated[str | None, typer.Option(help="Negative prompt: what to avoid, such as 'drums'.")] = None,
    variations: Annotated[int, typer.Option(min=1, max=1024, help="Clips of each prompt, with consecutive seeds.")] = 1,
    continue_from: Annotated[Path | None, typer.Option(help="Audio or codes that every clip continues.")] = None,
    only_new: Annotated[bool, typer.Option("--only-new", help="Leave the audio prompt out of the result.")] = False,
    stride: Annotated[float | None, typer.Option(help="Seconds between windows of a long clip. Default: the model's.")] = None,
    loudness: Annotated[float | None, typer.Option(help="LUFS of each clip, -60 to -5. Default: not changed.")] = None,
    half: Annotated[bool, typer.Option("--half", help="Compute in bfloat16 or float16, with half the memory.")] = False,
    quantize: Annotated[str | None, typer.Option(metavar="int8|int4", help="Quantise weights; faster on a CPU.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1 or mps. Default: a GPU, if found.")] = None,
) -> None:
    """Generate audio from a text prompt, audio and controls."""
    clips = parse_prompts(what or [], prompts)
    seed = secrets.randbelow(2**31) if seed is None else seed
    seeds = [seed + j for _ in clips for j in range(variations)]
    titles = [clip.title for clip in clips for _ in range(variations)]
    streamed = stream or out == PIPE
    if streamed and loudness is not None:
        raise RequestError("--loudness needs a whole clip; leave it out, or leave out --stream")
    if format_ is not None and out != PIPE:
        raise typer.BadParameter("is for --out -; the suffix of a file name sets its format", param_hint="--format")
    files = [] if out == PIPE or (stream and out is None) else output_paths(out or "out.wav", titles, seeds)
    target = open_target(files, format_, piped=out == PIPE, clips=len(seeds)) if streamed else None
    with audio_on_stdout() if out == PIPE else nullcontext():
        started = time.perf_counter()
        from cadenza.apps.api import load, resolve
        from cadenza.apps.cli.plan import format_plan, plan_before_loading
        from cadenza.core.device import select_device
        from cadenza.system.planner import record_run
        from cadenza.system.request import Request

        named = {"tempo": tempo, "key": key, "chords": chords, "melody": melody, "beats": beats, "drums": drums}
        unset = dict.fromkeys([*(name for name in named if named[name] is not None), *(pair.split("=")[0] for pair in set_)])
        audio_prompts = tuple(clip.continue_from or continue_from for clip in clips)
        request = Request.from_input(  # raises before a model is loaded
            [{**unset, **clip.item} for clip in clips], seconds=seconds, seed=seed, variations=variations,
            guidance=parse_guidance(guidance_, negative), sampling=parse_sampling(sampling), stride=stride, loudness=loudness,
            continue_from=audio_prompts if any(audio_prompts) else None, include_prompt=not only_new,
        )  # fmt: skip
        choice = select_device(device, "half" if half else None)
        model_folder = resolve(model)
        dtype = choice.dtype if half else None
        plan = plan_before_loading(model_folder, request, device=str(choice.device), dtype=dtype, quantize=quantize)
        if plan.job.dtype != choice.dtype:
            choice = replace(choice, dtype=plan.job.dtype, reason=plan.reason)
        if not streamed:
            print(format_plan(model_folder.spec, plan))
        system = load(model_folder, device=choice.device, dtype=choice.dtype, quantize=quantize)  # type: ignore[arg-type]
        controls = parse_controls(system, set_, named, clips)
        items = [{**clip.item, **controls} for clip in clips]
        request = request.model_copy(update={"items": tuple(items)})
        card = system.card
        shared = {"software": f"Cadenza {__version__}", "license": card.license}
        tags = [
            {"title": title[:MAX_TITLE], "comment": f"model {card.name}; seed {seed}; weights under {card.license}", **shared}
            for title, seed in zip(titles, seeds, strict=True)
        ]
        ready = time.perf_counter()
        if target is not None:
            meter = StreamMeter(target.is_player, live=sys.stderr.isatty())
            sinks = write_stream(system.stream(request), target, meter, tags)
            generated, elapsed, speed = meter.generated, meter.busy, str(meter)
            results = [
                (name, sink.samples / sink.sound.sample_rate, "") for name, sink in zip(target.names, sinks, strict=False)
            ]
        else:
            from rich.console import Console
            from rich.progress import Progress

            with Progress(console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as bar:
                task = bar.add_task("generating", total=None)
                audio = system.generate(
                    request, plan=plan, progress=lambda done, total: bar.update(task, completed=done, total=total)
                )
            generated, elapsed = float(audio.lengths.sum()) / audio.sample_rate, time.perf_counter() - ready
            speed = f"{elapsed:.1f} s to generate ({generated / elapsed:.1f}x real time)"
            results = []
            for clip, path, clip_tags in zip(audio, files, tags, strict=True):
                clip.save(path, tags=clip_tags)
                peak = f"peak {float(clip.wave.abs().max()):.2f}, "
                results.append((str(path), clip.wave.shape[-1] / clip.sample_rate, peak))
        record_run(model_folder.spec, plan, generated / elapsed if elapsed else 0.0)
        for item in items:
            extracted = {id: value for id, value in system.extract_prompt_values(item).items() if id not in item}
            if extracted:
                print(f"read in the prompt: {', '.join(f'{id} {format_value(value)}' for id, value in extracted.items())}")
        for (name, duration, peak), clip_seed in zip(results, seeds, strict=False):
            print(f"{name}: {duration:.1f} s, {peak}model {card.name} ({card.license}), seed {clip_seed}")
        if 2 <= generated < elapsed and system.device.type == "cpu" and system.quantization is None:
            print("slower than real time: --quantize int8 is several times as fast on a CPU", file=sys.stderr)
        weights = f"{system.quantization} weights " if system.quantization else ""
        print(f"{speed}, {ready - started:.1f} s to load, {weights}on {choice}", file=sys.stderr if streamed else sys.stdout)


def output_paths(out: str, titles: Sequence[str], seeds: Sequence[int]) -> list[Path]:
    """Return a path for each clip: `out` with its fields replaced, or numbered `out-1`, `out-2`, ...

    Raises AudioError for an unknown field or format, equal names, or a folder that cannot be written.
    """
    from cadenza.dsp.audio_io import FORMATS

    try:
        fields = [name for _, name, _, _ in string.Formatter().parse(out) if name is not None]
    except ValueError as error:
        raise AudioError(f"{out}: not a valid file name pattern: {error}") from None
    if unknown := [name for name in fields if name not in FIELDS]:
        raise AudioError(f"{out}: unknown field {{{unknown[0]}}}; there are " + ", ".join(f"{{{name}}}" for name in FIELDS))
    path = Path(out)
    if path.suffix.lower() not in FORMATS:
        raise AudioError(f"{out}: unknown kind of file '{path.suffix}'; choose from {', '.join(FORMATS)}")
    if path.is_dir():
        raise AudioError(f"{out} is a folder; give the name of a file")
    if fields:
        slugs = [re.sub(r"\W+", "-", title.lower()).strip("-")[:MAX_SLUG].strip("-") or "untitled" for title in titles]
        values = enumerate(zip(seeds, slugs, strict=True), 1)
        paths = [Path(out.format(index=index, seed=seed, prompt=slug)) for index, (seed, slug) in values]
    else:
        paths = [path] if len(seeds) == 1 else [path.with_stem(f"{path.stem}-{i + 1}") for i in range(len(seeds))]
    if len(set(paths)) < len(paths):
        raise AudioError(f"{out}: {len(paths)} clips would share {len(set(paths))} names; add {{index}} or {{seed}} to --out")
    for folder in {path.parent for path in paths}:
        if not folder.is_dir():
            raise AudioError(f"{out}: folder '{folder}' not found; create it first, or choose another with --out")
        try:
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise AudioError(f"{out}: cannot write there ({error.strerror}); choose another folder with --out") from None
    return paths
