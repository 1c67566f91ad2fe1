"""Render pieces to audio: MIDI, FluidSynth with a soundfont, and a room."""

from __future__ import annotations

import hashlib
import io
import math
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import mido
import numpy as np
import soxr

from cadenza.core.errors import DataError

from .compose import compose_piece
from .piece import Piece, PiecePlan, RandomStream, random_stream

FLUIDSYNTH_RATE = 48_000
FLUIDSYNTH_GAIN = 0.4
INSTALL = "install both, for example with 'apt-get install fluidsynth fluid-soundfont-gm'"
SOUNDFONT_PATHS = (
    "/usr/share/sounds/sf2/FluidR3_GM.sf2",
    "/usr/share/soundfonts/FluidR3_GM.sf2",
    "/usr/local/share/sounds/sf2/FluidR3_GM.sf2",
    "/opt/homebrew/share/soundfonts/FluidR3_GM.sf2",
)
FLUID_R3 = {
    "name": "Fluid R3 GM",
    "licence": "MIT",
    "copyright": "Copyright (c) 2000-2002, 2008 Frank Wen; Copyright (c) 2008 Toby Smithe",
    "notice": "I hereby release Fluid under the MIT license, as described in COPYING. (README of the soundfont)",
}
FLUID_R3_SHA256 = "74594e8f4250680adf590507a306655a299935343583256f3b722c48a1bc1cb0"

DRUM_CHANNEL = 9
BASE_VOLUME = 88
VOLUME, SOUND_OFF, RESET = 7, 120, 121  # MIDI controllers
MESSAGE_ORDER = ("control_change", "note_off", "program_change", "note_on")  # of messages at the same time
GAP_MS, MARGIN_MS = 700, 250  # silence between pieces, and before the first and after the last

MidiEvent = tuple[int, mido.Message]  # with its time in milliseconds
LEVEL_DB = {"soft": -22.5, "medium": -19.0, "loud": -16.5, "building": -19.0, "fading": -19.0}
MAX_PEAK = 0.97
FADE_SECONDS = 0.25


def render_clips(seed: int, indices: Sequence[int], sample_rate: int) -> list[tuple[Piece, np.ndarray]]:
    """Compose and render clips in one run of FluidSynth; returns each piece with its audio, [t] float32."""
    pieces = [compose_piece(seed, i) for i in indices]
    clips = zip(indices, pieces, render_pieces(pieces), strict=True)
    return [(piece, master_clip(dry, piece, seed=seed, index=i, sample_rate=sample_rate)) for i, piece, dry in clips]


def render_pieces(pieces: Sequence[Piece]) -> list[np.ndarray]:
    """Render the dry audio of each piece, [t] at 48 kHz, which starts exactly at its first beat."""
    starts, now, events = [], GAP_MS + MARGIN_MS, []
    for piece in pieces:
        now = math.ceil(now / 4) * 4
        starts.append(now)
        events += midi_events(piece, now)
        now += math.ceil(piece.plan.seconds * 1000) + GAP_MS
    audio = render_midi(to_midi_bytes(events, now + MARGIN_MS))
    clips = []
    for piece, start in zip(pieces, starts, strict=True):
        first = start * FLUIDSYNTH_RATE // 1000
        clips.append(audio[first : first + round(piece.plan.seconds * FLUIDSYNTH_RATE)].astype(np.float64))
    return clips


def assign_channels(piece: Piece) -> dict[str, int]:
    """Return a MIDI channel for each role; roles of one instrument share it."""
    channels: dict[str, int] = {}
    by_instrument: dict[str, int] = {}
    for part in piece.plan.parts:
        if part.role == "drums":
            channels["drums"] = DRUM_CHANNEL
        else:
            channels[part.role] = by_instrument.setdefault(part.instrument.name, len(by_instrument))
    return channels


def midi_events(piece: Piece, start: int) -> list[MidiEvent]:
    """Return the MIDI events of a piece that begins at `start` milliseconds."""
    channels = assign_channels(piece)
    events: list[MidiEvent] = []

    def add(kind: str, time: int, channel: int, **fields: Any) -> None:
        events.append((time, mido.Message(kind, channel=channel, **fields)))

    for part in piece.plan.parts:
        volume = round(BASE_VOLUME * 10 ** (part.instrument.trim / 40))
        add("program_change", start - 100, channels[part.role], program=part.instrument.program)
        add("control_change", start - 50, channels[part.role], control=VOLUME, value=min(127, volume))
    for note in piece.notes:
        begin, end = piece.note_to_seconds(note)
        add("note_on", start + round(begin * 1000), channels[note.role], note=note.pitch, velocity=note.velocity)
        add("note_off", start + round(end * 1000), channels[note.role], note=note.pitch, velocity=0)
    stop = start + math.ceil(piece.plan.seconds * 1000) + 50
    for channel in sorted(set(channels.values())):
        add("control_change", stop, channel, control=SOUND_OFF, value=0)
        add("control_change", stop + 20, channel, control=RESET, value=0)
    return events


def to_midi_bytes(events: Iterable[MidiEvent], end: int) -> bytes:
    """Return a MIDI file with one track and one tick per millisecond that ends at `end`."""
    track, now = mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=500_000)]), 0
    for time, message in sorted(events, key=lambda e: (e[0], MESSAGE_ORDER.index(e[1].dict()["type"]), e[1].bytes())):
        track.append(message.copy(time=time - now))
        now = time
    track.append(mido.MetaMessage("end_of_track", time=max(0, end - now)))
    buffer = io.BytesIO()
    mido.MidiFile(type=0, ticks_per_beat=500, tracks=[track]).save(file=buffer)
    return buffer.getvalue()


def find_fluidsynth() -> str:
    """Return the path of the FluidSynth program."""
    path = shutil.which("fluidsynth")
    if path is None:
        raise DataError(f"the corpus is rendered by the program 'fluidsynth', which is not on PATH: {INSTALL}")
    return path


@cache
def fluidsynth_version() -> str:
    """Return the version that FluidSynth reports."""
    process = subprocess.run([find_fluidsynth(), "--version"], capture_output=True, text=True, check=False)
    version = re.search(r"\d+\.\d+\.\d+", process.stdout + process.stderr)
    return version.group() if version else "unknown"


def find_soundfont() -> Path:
    """Return the soundfont of CADENZA_SOUNDFONT, or FluidR3_GM in its usual places."""
    if path := os.environ.get("CADENZA_SOUNDFONT"):
        if not Path(path).is_file():
            raise DataError(f"CADENZA_SOUNDFONT is '{path}', which is not a file: correct it, or unset it and {INSTALL}")
        return Path(path)
    for path in SOUNDFONT_PATHS:
        if Path(path).is_file():
            return Path(path)
    raise DataError(f"soundfont FluidR3_GM.sf2 not found in {', '.join(SOUNDFONT_PATHS)}: {INSTALL}, or set CADENZA_SOUNDFONT")


@cache
def identify_soundfont(path: Path) -> dict[str, str]:
    """Return the file name and hash of a soundfont, with the licence of FluidR3_GM or 'unknown'."""
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    known = FLUID_R3 if sha256 == FLUID_R3_SHA256 else dict.fromkeys(FLUID_R3, "unknown")
    return {"file": path.name, "sha256": sha256, **known}


def render_midi(midi: bytes) -> np.ndarray:
    """Render a MIDI file with FluidSynth: [t] float32, mono, dry, 48 kHz."""
    with tempfile.TemporaryDirectory(prefix="cadenza-corpus-") as folder:
        source, target = Path(folder, "in.mid"), Path(folder, "out.raw")
        source.write_bytes(midi)
        options = ["-n", "-i", "-q", "-g", str(FLUIDSYNTH_GAIN), "-r", str(FLUIDSYNTH_RATE), "-R", "0", "-C", "0"]
        options += ["-T", "raw", "-O", "s16"]
        options += ["-o", "synth.cpu-cores=1", "-o", "synth.polyphony=256", "-o", "synth.dynamic-sample-loading=1"]
        command = [find_fluidsynth(), *options, "-F", str(target), str(find_soundfont()), str(source)]
        process = subprocess.run(command, capture_output=True, text=True, check=False)
        if process.returncode != 0 or not target.is_file() or target.stat().st_size == 0:
            error = process.stderr.strip()[-500:]
            raise DataError(f"fluidsynth failed ({process.returncode}): {error}; run it by hand: {' '.join(command)}")
        stereo = np.fromfile(target, dtype="<i2").reshape(-1, 2)
    if np.max(stereo) == 32767 or np.min(stereo) == -32768:
        raise DataError(
            f"the output of fluidsynth clips at gain {FLUIDSYNTH_GAIN}: "
            f"lower FLUIDSYNTH_GAIN in {__name__} and build the corpus in another folder"
        )
    return (stereo[:, 0].astype(np.float32) + stereo[:, 1]) / 65536.0


def master_clip(dry: np.ndarray, piece: Piece, *, seed: int, index: int, sample_rate: int) -> np.ndarray:
    """Resample dry audio at 48 kHz and master it: [t] float32 at the sample rate."""
    if sample_rate != FLUIDSYNTH_RATE:
        dry = soxr.resample(dry, FLUIDSYNTH_RATE, sample_rate, quality="HQ")
    return master(dry, piece.plan, random_stream(seed, index, RandomStream.ROOM), sample_rate).astype(np.float32)


def master(dry: np.ndarray, plan: PiecePlan, rng: np.random.Generator, rate: int) -> np.ndarray:
    """Add the room of the genre to a dry clip, set the level of its dynamics and fade its end."""
    low, high = plan.genre.room
    decay = low + (high - low) * rng.random()
    wet = 10 ** ((-19.0 + 5.0 * rng.random() + (2.0 if decay > 1.3 else 0.0)) / 20)
    audio = dry + wet * convolve(dry, room_impulse_response(rng, decay, rate))
    audio = audio * 10 ** ((LEVEL_DB[plan.dynamics] - gated_level_db(audio, rate)) / 20)
    fade = int(FADE_SECONDS * rate)
    audio[-fade:] *= 0.5 + 0.5 * np.cos(np.pi * np.arange(1, fade + 1) / fade)
    peak = float(np.max(np.abs(audio)))
    return audio if peak <= MAX_PEAK else audio * (MAX_PEAK / peak)


def room_impulse_response(rng: np.random.Generator, decay: float, rate: int) -> np.ndarray:
    """Return the late reverberation of a room: noise of unit energy that falls by 60 dB in `decay` seconds."""
    count = int(rate * min(decay, 2.0))
    time = np.arange(count) / rate
    noise = (rng.random(count) - 0.5) * 10.0 ** (-3.0 * time / decay)
    spectrum = np.fft.rfft(noise)
    hertz = np.fft.rfftfreq(count, 1 / rate)
    spectrum *= (hertz / np.hypot(hertz, 180.0)) / np.hypot(1.0, hertz / 3800.0)
    tail = np.fft.irfft(spectrum, count)
    tail /= np.sqrt(np.sum(tail**2)) + 1e-12
    return np.concatenate([np.zeros(int(0.014 * rate)), tail])


def convolve(signal: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Return the signal filtered by an impulse response, cut to the length of the signal."""
    size = 1 << (len(signal) + len(response) - 1).bit_length()
    return np.fft.irfft(np.fft.rfft(signal, size) * np.fft.rfft(response, size), size)[: len(signal)]


def gated_level_db(signal: np.ndarray, rate: int) -> float:
    """Return the level of the 0.4 s blocks within 10 dB of the mean of the audible ones."""
    block = int(0.4 * rate)
    count = max(1, len(signal) // block)
    power = np.mean(np.resize(signal, (count, block)) ** 2, axis=1) + 1e-12
    power = power[power > 1e-7] if np.any(power > 1e-7) else power
    power = power[power >= 0.1 * power.mean()]
    return float(10 * np.log10(power.mean()))
