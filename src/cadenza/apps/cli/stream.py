"""`cadenza generate --stream`: audio that is played, piped or written while it is made."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, redirect_stdout, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cadenza.core.errors import AudioError

if TYPE_CHECKING:
    from cadenza.dsp.audio import Audio
    from cadenza.dsp.streaming_writer import AudioSink, StreamFormat

PIPE = "-"  # what --out says where audio goes to the standard output
PLAYED, WRITTEN = 64, 8  # chunks made ahead of a player, which must not wait, and of what only takes
LEAD = 0.5  # seconds made before a player begins, so that a chunk that is late is not heard


@dataclass(frozen=True)
class StreamTarget:
    """Where clips go: something that makes the outlet of each, once it is known how they sound."""

    names: Sequence[str]  # of the clips
    make: Callable[[int, "StreamFormat", Mapping[str, str]], "AudioSink"]  # of a clip by its number, with the tags of its file
    ahead: int  # chunks
    played: bool = False
    kept: bool = False  # in files


def resolve_target(out: str | None, form: str | None, files: Callable[[str], Sequence[Path]], clips: int) -> StreamTarget:
    """Played where nothing is said, a pipe for `-`, else files that grow; mistakes are said before any work."""
    from cadenza.dsp.streaming_writer import PIPED, StreamingAudioWriter

    if form is not None and form not in PIPED:
        raise typer.BadParameter(f"'{form}' is none of {', '.join(PIPED)}", param_hint="--format")
    if form is not None and out != PIPE:
        raise typer.BadParameter("is for --out -; the suffix of a file name sets its format", param_hint="--format")
    if out is not None and out != PIPE:
        paths = files(out)
        names = [str(path) for path in paths]
        return StreamTarget(
            names, lambda i, sound, tags: StreamingAudioWriter(paths[i], paths[i].suffix, sound, tags), WRITTEN, kept=True
        )
    if clips > 1:
        mend = "play one at a time, or write files with --out song.wav"
        raise AudioError(f"{clips} clips cannot go one way at once; {mend}")
    if out is None:
        from cadenza.apps.cli import playback

        player = playback.find_player()
        return StreamTarget(["played"], lambda _, sound, __: player(sound), PLAYED, played=True)
    if sys.stdout.isatty():
        raise AudioError("audio is not for a terminal; pipe it to a program, or name a file with --out")
    pipe = sys.stdout.buffer  # kept here, as nothing else may write there from now on
    return StreamTarget(["written"], lambda _, sound, tags: StreamingAudioWriter(pipe, form or "wav", sound, tags), WRITTEN)


@dataclass
class StreamMeter:
    """How fast a stream is made, and whether what plays it has run dry."""

    playing: bool = False
    started: float = field(default_factory=time.perf_counter)
    first: float | None = None  # seconds to the first audio
    made: float = 0.0  # seconds of audio of all clips
    busy: float = 0.0  # seconds that went into it, those without room for more left out
    chunks: int = 0
    underruns: int = 0
    until: float = 0.0  # the time to which what was taken lasts
    live: bool = False  # whether to say how far it is while it goes on

    @property
    def speed(self) -> float:
        """Seconds of audio made in a second."""
        return self.made / self.busy if self.busy else 0.0

    def time_stream(self, stream: Iterator["Audio"]) -> Iterator["Audio"]:
        """The stream, timed."""
        with closing(stream):  # type: ignore[type-var]  # a generator function's
            before = self.started
            while True:
                chunk = next(stream, None)
                self.busy += time.perf_counter() - before
                if chunk is None:
                    return
                self.made += float(chunk.lengths.sum()) / chunk.sample_rate
                yield chunk
                before = time.perf_counter()

    def record_chunk(self, chunk: "Audio") -> None:
        """Counts a chunk that its consumer is given."""
        now, seconds = time.perf_counter(), chunk.wave.shape[-1] / chunk.sample_rate
        if self.first is None:
            self.first, self.until = now - self.started, now
        elif self.playing and now > self.until:
            self.underruns += 1
        self.chunks, self.until = self.chunks + 1, max(self.until, now) + seconds
        if self.live:
            ahead = f", {self.until - now:.1f} s ahead" if self.playing else ""
            line = f"{self.made:.1f} s made, {self.speed:.1f}x real time{ahead}"
            print(f"\r{line:<60}", end="", file=sys.stderr, flush=True)

    def clear_line(self) -> None:
        """Takes the live line away."""
        if self.live and self.chunks:
            print(f"\r{'':<60}\r", end="", file=sys.stderr, flush=True)

    def __str__(self) -> str:
        first = "no audio" if self.first is None else f"first audio after {self.first:.1f} s"
        dry = f", {self.underruns} underrun{'s' * (self.underruns != 1)}" if self.playing else ""
        return f"{first}, {self.speed:.1f}x real time, {self.chunks} chunks{dry}"


def write_stream(
    chunks: Iterator["Audio"], to: StreamTarget, meter: StreamMeter, tags: Sequence[Mapping[str, str]]
) -> "list[AudioSink]":
    """Chunks into the outlets of their clips, which it gives back, made in a thread while they are taken.

    Whatever ends it early, nothing more is made, and what was written stays.
    """
    from cadenza.dsp.streaming_writer import StreamFormat
    from cadenza.system.prefetch import Prefetcher

    outlets: list[AudioSink] = []
    ahead = Prefetcher(meter.time_stream(chunks), chunks=to.ahead)
    try:
        with closing(ahead):
            for chunk in _led(ahead) if to.played else ahead:
                if not outlets:
                    sound = StreamFormat(chunk.sample_rate, chunk.wave.shape[1])
                    outlets += [to.make(i, sound, each) for i, each in enumerate(tags)]
                meter.record_chunk(chunk)
                for outlet, clip in zip(outlets, chunk, strict=True):
                    if clip.wave.shape[-1]:
                        outlet.write(clip.wave[0].float().cpu().numpy().T)
        for outlet in outlets:
            outlet.close()
    except BaseException:
        meter.clear_line()
        for name, outlet in zip(to.names, outlets, strict=False):
            with suppress(OSError):
                getattr(outlet, "stop", outlet.close)()
            if to.kept:
                print(f"{name}: ends after {outlet.samples / outlet.sound.sample_rate:.1f} s", file=sys.stderr)
        raise
    finally:
        meter.clear_line()
    for name, outlet in zip(to.names, outlets, strict=True):
        if outlet.clipped:
            print(
                f"{name}: {outlet.clipped} samples were over full scale and are clipped; "
                "a clip that is made whole (without --stream) is turned down instead",
                file=sys.stderr,
            )
    return outlets


def _led(chunks: Iterator["Audio"]) -> Iterator["Audio"]:
    """The same chunks, the first of them when there is a lead."""
    held: list[Audio] = []
    for chunk in chunks:
        held.append(chunk)
        if sum(each.wave.shape[-1] for each in held) >= LEAD * chunk.sample_rate:
            break
    while held:
        yield held.pop(0)
    yield from chunks


@contextmanager
def audio_on_stdout() -> Iterator[None]:
    """Keep the standard output for audio: what is printed goes to the standard error."""
    try:
        with redirect_stdout(sys.stderr):
            yield
    except BrokenPipeError:
        with suppress(OSError, ValueError):  # a test replaces the standard output
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python reports an error when it flushes
        raise
