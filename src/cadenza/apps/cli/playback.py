"""Audio players: the default output through PortAudio (the `play` extra), or ffplay."""

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np
from jaxtyping import Float

from cadenza.core.errors import AudioError
from cadenza.dsp.audio_io import to_pcm
from cadenza.dsp.streaming_writer import AudioSink, StreamFormat, StreamingAudioWriter

FFPLAY_OPTIONS = "-nodisp -autoexit -loglevel error -f wav -i -"


def find_player() -> Callable[[StreamFormat], AudioSink]:
    """Return a function that opens a player, whose `stop` ends at once; raise AudioError if no player is found."""
    if (library := _portaudio()) is not None:
        return lambda sound: PortAudioPlayer(library, sound)
    if (path := shutil.which("ffplay")) is not None:
        return lambda sound: SubprocessPlayer(path, sound)
    raise AudioError(
        'no audio player found: install ffmpeg (for ffplay), or pip install -e ".[play]"; '
        "or write to a file with --out song.wav, or to a pipe with --out -"
    )


def _portaudio() -> Any:
    """Return the sounddevice library if it is installed and has an output device, else None."""
    try:
        import sounddevice
    except (ImportError, OSError):  # OSError: PortAudio itself is not installed
        return None
    try:
        sounddevice.query_devices(kind="output")
    except (sounddevice.PortAudioError, ValueError):
        return None
    return sounddevice


class PortAudioPlayer:
    """Player on the default output device."""

    def __init__(self, library: Any, sound: StreamFormat) -> None:
        self.library, self.sound, self.clipped, self.samples = library, sound, 0, 0
        try:
            self.stream = library.RawOutputStream(sound.sample_rate, channels=sound.channels, dtype="int16", latency="high")
            self.stream.start()
        except library.PortAudioError as error:
            raise AudioError(f"the audio device cannot play {sound[0]} Hz, {sound[1]} channels: {error}") from error

    def write(self, samples: Float[np.ndarray, "t c"]) -> None:
        self.clipped += int((np.abs(samples) > 1).sum())
        self.samples += len(samples)
        try:
            self.stream.write(to_pcm(samples, 16).tobytes())
        except self.library.PortAudioError as error:
            raise AudioError(f"the audio device failed: {error}") from error

    def close(self) -> None:
        self.stream.stop()
        self.stream.close()

    def stop(self) -> None:
        self.stream.abort()
        self.stream.close()


class SubprocessPlayer(StreamingAudioWriter):
    """Player that writes WAV to the standard input of ffplay."""

    def __init__(self, path: str, sound: StreamFormat) -> None:
        self.errors = tempfile.TemporaryFile()
        self.process = subprocess.Popen(
            [path, *FFPLAY_OPTIONS.split()], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=self.errors
        )
        super().__init__(self.process.stdin, "wav", sound)  # type: ignore[arg-type]  # a pipe

    def write(self, samples: Float[np.ndarray, "t c"]) -> None:
        try:
            super().write(samples)
        except OSError:  # ffplay failed, or its window was closed
            self._wait()
            raise BrokenPipeError from None

    def close(self) -> None:
        with suppress(OSError):  # ffplay ended before it read everything; its status is checked next
            super().close()
        self._wait()

    def stop(self) -> None:
        self.process.kill()
        self._wait()

    def _wait(self) -> None:
        """Wait for the end of ffplay; raise AudioError with the last line that it printed if it failed."""
        self.process.communicate()  # closes the pipe
        if self.errors.closed:
            return
        with self.errors:
            self.errors.seek(0)
            lines = self.errors.read().decode(errors="replace").strip().splitlines()
        if self.process.returncode > 0:
            reason = lines[-1] if lines else f"status {self.process.returncode}"
            raise AudioError(f"ffplay could not play: {reason}; write to a file instead, with --out song.wav")
