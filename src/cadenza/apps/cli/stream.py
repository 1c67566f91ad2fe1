"""`cadenza generate --stream`: audio that is played, piped or written to files during generation."""

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

PIPE = "-"  # value of --out for the standard output
PREFETCH = {True: 64, False: 8}  # chunks generated in advance for a player, which must not wait, and for files and pipes
LEAD = 0.5  # seconds generated before a player starts, so that a late chunk causes no gap


@dataclass(frozen=True)
class StreamTarget:
    """Player, pipe or files that receive the clips."""

    names: Sequence[str]  # of the clips
    open_sink: Callable[[int, "StreamFormat", Mapping[str, str]], "AudioSink"]  # for a clip by its number, with its tags
    is_player: bool = False
    is_file: bool = False


def open_target(files: Sequence[Path], kind: str | None, *, piped: bool, clips: int) -> StreamTarget:
    """Return the target of a stream: files if given, else with `piped` the standard output, else a player.

    `kind` is the format of a pipe. Raises BadParameter for an unknown format, AudioError if the target cannot be used.
    """
    from cadenza.dsp.streaming_writer import PIPED, StreamingAudioWriter

    if kind is not None and kind not in PIPED:
        raise typer.BadParameter(f"'{kind}' is none of {', '.join(PIPED)}", param_hint="--format")
    if files:
        names, suffix = [str(path) for path in files], files[0].suffix
        return StreamTarget(names, lambda i, *how: StreamingAudioWriter(files[i], suffix, *how), is_file=True)
    if clips > 1:
        raise AudioError(f"{clips} clips cannot be played or piped at once; generate one, or write files with --out song.wav")
    if not piped:
        from cadenza.apps.cli import playback

        open_player = playback.find_player()
        return StreamTarget(["played"], lambda _, sound, __: open_player(sound), is_player=True)
    if sys.stdout.isatty():
        raise AudioError("audio is not for a terminal; pipe it to a program, or name a file with --out")
    pipe = sys.stdout.buffer  # `audio_on_stdout` redirects sys.stdout later
    return StreamTarget(["written"], lambda _, sound, tags: StreamingAudioWriter(pipe, kind or "wav", sound, tags))


@dataclass
class StreamMeter:
    """Speed of a stream, and the number of times its player ran out of audio."""

    playing: bool = False
    started: float = field(default_factory=time.perf_counter)
    first: float | None = None  # seconds to the first audio
    generated: float = 0.0  # seconds of audio of all clips
    busy: float = 0.0  # seconds of computation, without waiting for the consumer
    chunks: int = 0
    underruns: int = 0
    until: float = 0.0  # time at which a player has played all chunks
    live: bool = False  # print a line of progress

    def time_stream(self, stream: Iterator["Audio"]) -> Iterator["Audio"]:
        """Yield the chunks of a stream, and measure the time that each takes."""
        with closing(stream):  # type: ignore[type-var]  # a generator function's
            before = self.started
            for chunk in stream:
                self.busy += time.perf_counter() - before
                self.generated += float(chunk.lengths.sum()) / chunk.sample_rate
                yield chunk
                before = time.perf_counter()
            self.busy += time.perf_counter() - before

    def record_chunk(self, chunk: "Audio") -> None:
        """Count a chunk that is about to be written."""
        now, seconds = time.perf_counter(), chunk.wave.shape[-1] / chunk.sample_rate
        if self.first is None:
            self.first, self.until = now - self.started, now
        elif self.playing and now > self.until:
            self.underruns += 1
        self.chunks, self.until = self.chunks + 1, max(self.until, now) + seconds
        if self.live:
            ahead = f", {self.until - now:.1f} s ahead" if self.playing else ""
            line = f"{self.generated:.1f} s generated, {self._speed()}{ahead}"
            print(f"\r{line:<60}", end="", file=sys.stderr, flush=True)

    def clear_line(self) -> None:
        """Remove the line of progress."""
        if self.live and self.chunks:
            print(f"\r{'':<60}\r", end="", file=sys.stderr, flush=True)

    def _speed(self) -> str:
        return f"{self.generated / self.busy if self.busy else 0:.1f}x real time"

    def __str__(self) -> str:
        first = "no audio" if self.first is None else f"first audio after {self.first:.1f} s"
        underruns = f", {self.underruns} underrun{'s' * (self.underruns != 1)}" if self.playing else ""
        return f"{first}, {self._speed()}, {self.chunks} chunks{underruns}"


def write_stream(
    chunks: Iterator["Audio"], target: StreamTarget, meter: StreamMeter, tags: Sequence[Mapping[str, str]]
) -> "list[AudioSink]":
    """Write the chunks, which a thread generates in advance, to the sinks of their clips; return the sinks.

    After an error or Ctrl-C generation stops, and files keep the samples written so far.
    """
    from cadenza.dsp.streaming_writer import StreamFormat
    from cadenza.system.prefetch import Prefetcher

    sinks: list[AudioSink] = []
    try:
        with closing(Prefetcher(meter.time_stream(chunks), chunks=PREFETCH[target.is_player])) as prefetched:
            for chunk in _buffer_lead(prefetched) if target.is_player else prefetched:
                if not sinks:
                    sound = StreamFormat(chunk.sample_rate, chunk.wave.shape[1])
                    sinks += [target.open_sink(i, sound, clip_tags) for i, clip_tags in enumerate(tags)]
                meter.record_chunk(chunk)
                for sink, clip in zip(sinks, chunk, strict=True):
                    if clip.wave.shape[-1]:
                        sink.write(clip.wave[0].float().cpu().numpy().T)
        for sink in sinks:
            sink.close()
    except BaseException:
        meter.clear_line()
        for name, sink in zip(target.names, sinks, strict=False):
            with suppress(OSError):
                getattr(sink, "stop", sink.close)()
            if target.is_file:
                print(f"{name}: ends after {sink.samples / sink.sound.sample_rate:.1f} s", file=sys.stderr)
        raise
    meter.clear_line()
    for name, sink in zip(target.names, sinks, strict=True):
        if sink.clipped:
            problem = f"{sink.clipped} samples were over full scale and are clipped"
            print(f"{name}: {problem}; without --stream the level of the whole clip is reduced instead", file=sys.stderr)
    return sinks


def _buffer_lead(chunks: Iterator["Audio"]) -> Iterator["Audio"]:
    """Yield the chunks, the first one when `LEAD` seconds are generated."""
    lead: list[Audio] = []
    for chunk in chunks:
        lead.append(chunk)
        if sum(part.wave.shape[-1] for part in lead) >= LEAD * chunk.sample_rate:
            break
    yield from lead
    yield from chunks


@contextmanager
def audio_on_stdout() -> Iterator[None]:
    """Reserve the standard output for audio: printed lines go to the standard error."""
    try:
        with redirect_stdout(sys.stderr):
            yield
    except BrokenPipeError:
        with suppress(OSError, ValueError):  # a test replaces the standard output
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python reports an error when it flushes
        raise
