"""The FluidSynth program with a soundfont: where they are, what they are, how they are run."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path

import numpy as np

from cadenza.core.errors import DataError

RATE = 48_000
GAIN = 0.4
MEND = "install both, for example with 'apt-get install fluidsynth fluid-soundfont-gm'"
PLACES = (
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


@dataclass(frozen=True)
class Soundfont:
    """A soundfont's file name with its hash and, where known, its licence."""

    file: str
    sha256: str
    name: str
    licence: str
    copyright: str
    notice: str

    def to_dict(self) -> dict[str, str]:
        """The record as plain data."""
        return asdict(self)


def program_path() -> str:
    """The FluidSynth program on this machine."""
    found = shutil.which("fluidsynth")
    if found is None:
        raise DataError(f"the corpus is rendered by the program 'fluidsynth', which is not on PATH: {MEND}")
    return found


def soundfont_path() -> Path:
    """The soundfont that CADENZA_SOUNDFONT names, or FluidR3_GM in its usual places."""
    named = os.environ.get("CADENZA_SOUNDFONT")
    if named:
        if not Path(named).is_file():
            raise DataError(f"CADENZA_SOUNDFONT names '{named}', which is not a file: correct it, or unset it and {MEND}")
        return Path(named)
    for place in PLACES:
        if Path(place).is_file():
            return Path(place)
    raise DataError(f"no soundfont FluidR3_GM.sf2 in {', '.join(PLACES)}: {MEND}, or set CADENZA_SOUNDFONT")


@cache
def soundfont(path: Path) -> Soundfont:
    """The identity of a soundfont; the licence is recorded only for the file we know."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    sha256 = digest.hexdigest()
    known = FLUID_R3 if sha256 == FLUID_R3_SHA256 else dict.fromkeys(FLUID_R3, "unknown")
    return Soundfont(path.name, sha256, **known)


@cache
def version() -> str:
    """The version that the FluidSynth program reports."""
    done = subprocess.run([program_path(), "--version"], capture_output=True, text=True, check=False)
    found = re.search(r"\d+\.\d+\.\d+", done.stdout + done.stderr)
    return found.group() if found else "unknown"


def play(midi: bytes) -> np.ndarray:
    """What FluidSynth makes of a MIDI file: [t] float32, mono, dry, 48 kHz."""
    with tempfile.TemporaryDirectory(prefix="cadenza-corpus-") as folder:
        source, target = Path(folder, "in.mid"), Path(folder, "out.raw")
        source.write_bytes(midi)
        options = ["-n", "-i", "-q", "-g", str(GAIN), "-r", str(RATE), "-R", "0", "-C", "0", "-T", "raw", "-O", "s16"]
        fixed = ["-o", "synth.cpu-cores=1", "-o", "synth.polyphony=256", "-o", "synth.dynamic-sample-loading=1"]
        command = [program_path(), *options, *fixed, "-F", str(target), str(soundfont_path()), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0 or not target.is_file() or target.stat().st_size == 0:
            raise DataError(
                f"fluidsynth failed ({done.returncode}): {done.stderr.strip()[-500:]}; try it by hand: {' '.join(command)}"
            )
        stereo = np.fromfile(target, dtype="<i2").reshape(-1, 2)
    if np.max(stereo) == 32767 or np.min(stereo) == -32768:
        raise DataError(f"fluidsynth's output clips at gain {GAIN}: lower GAIN in {__name__}, which makes another corpus")
    return (stereo[:, 0].astype(np.float32) + stereo[:, 1]) / 65536.0
