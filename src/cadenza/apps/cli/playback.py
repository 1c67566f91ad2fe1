"""Players: audio heard while it is made, through the `play` extra or a program that is at hand."""

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float

from cadenza.core.errors import AudioError
from cadenza.dsp.audio_io import to_pcm
from cadenza.dsp.streaming_writer import AudioSink, StreamFormat, StreamingAudioWriter

# what each program is told to play from its standard input: the kind of audio it is given there, and its options
PROGRAMS: Mapping[str, tuple[str, str]] = {
    "ffplay": ("wav", "-nodisp -autoexit -loglevel error -f wav -i -"),
    "mpv": ("wav", "--no-video --no-terminal --demuxer-lavf-format=wav -"),
    "paplay": ("raw", "--raw --format=s16le --rate={rate} --channels={channels}"),
    "aplay": ("raw", "-q -t raw -f S16_LE -r {rate} -c {channels} -"),
    "play": ("raw", "-q -t raw -e signed-integer -b 16 -L -r {rate} -c {channels} -"),
}
NONE = (
    "there is nothing to play with: install ffmpeg (for ffplay), mpv, alsa-utils (aplay), pulseaudio-utils (paplay) or sox, "
    'or pip install "cadenza[play]"; or write to a file with --out song.wav, or to a pipe with --out -'
)


class Player(AudioSink, Protocol):
    """What plays the samples that it is given, in its own time: `close` waits until everything was heard."""

    def stop(self) -> None:
        """Falls silent at once."""


def find_player() -> Callable[[StreamFormat], Player]:
    """What makes a player of the first kind that is at hand; AudioError says what to install where there is none."""
    if (device := _device()) is not None:
        return lambda sound: PortAudioPlayer(device, sound)
    for name in PROGRAMS:
        if (path := shutil.which(name)) is not None:
            return lambda sound: SubprocessPlayer(name, path, sound)
    raise AudioError(NONE)


def _device() -> Any:
    """The library that plays, where it is installed and knows of a place to play."""
    try:
        import sounddevice
    except (ImportError, OSError):  # not installed, or without PortAudio, which is only in its wheels for macOS and Windows
        return None
    try:
        sounddevice.query_devices(kind="output")
    except (sounddevice.PortAudioError, ValueError):
        return None
    return sounddevice


@dataclass
class PortAudioPlayer:
    """The default output of the machine, through PortAudio."""

    library: Any
    sound: StreamFormat
    clipped: int = 0
    samples: int = 0
    stream: Any = field(init=False)

    def __post_init__(self) -> None:
        rate, channels = self.sound
        try:
            self.stream = self.library.RawOutputStream(rate, channels=channels, dtype="int16", latency="high")
            self.stream.start()
        except self.library.PortAudioError as error:
            raise AudioError(f"the audio device cannot play {rate} Hz on {channels} channel(s): {error}") from error

    def write(self, samples: Float[np.ndarray, "t c"]) -> None:
        self.clipped += int((np.abs(samples) > 1).sum())
        self.samples += len(samples)
        try:
            self.stream.write(to_pcm(samples, 16).tobytes())
        except self.library.PortAudioError as error:
            raise AudioError(f"the audio device has failed: {error}") from error

    def close(self) -> None:
        self.stream.stop()
        self.stream.close()

    def stop(self) -> None:
        self.stream.abort()
        self.stream.close()


class SubprocessPlayer:
    """A program that plays what it reads."""

    def __init__(self, name: str, path: str, sound: StreamFormat) -> None:
        kind, options = PROGRAMS[name]
        options = options.format(rate=sound.sample_rate, channels=sound.channels)
        self.name, self.sound, self.said = name, sound, tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [path, *options.split()], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=self.said
        )
        assert self.process.stdin is not None
        self.audio = StreamingAudioWriter(self.process.stdin, kind, sound)

    @property
    def clipped(self) -> int:
        return self.audio.clipped

    @property
    def samples(self) -> int:
        return self.audio.samples

    def write(self, samples: Float[np.ndarray, "t c"]) -> None:
        try:
            self.audio.write(samples)
        except OSError:  # it has gone: with an error of its own, or because somebody has closed it
            self._end()
            raise BrokenPipeError from None

    def close(self) -> None:
        try:
            self.audio.close()
        except OSError:
            pass  # what it did not take is what it did not want
        self._end()

    def stop(self) -> None:
        self.process.kill()
        self._end()

    def _end(self) -> None:
        """Waits for the program; AudioError with its own words where it has failed."""
        assert self.process.stdin is not None
        try:
            self.process.stdin.close()
        except OSError:
            pass  # it has gone already; its status says how
        status = self.process.wait()
        if not self.said.closed:
            self.said.seek(0)
            words = self.said.read().decode(errors="replace").strip().splitlines()
            self.said.close()
            if status > 0:
                reason = words[-1] if words else f"status {status}"
                raise AudioError(f"{self.name} could not play: {reason}; write to a file instead, with --out song.wav")
