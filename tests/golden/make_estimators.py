"""Renders the four short pieces that the bundled estimators are tried on; needs FluidSynth.

Run from the repository's root after a change of the corpus, and say why in the commit:
    python tests/golden/make_estimators.py
"""

import json
from pathlib import Path

import soundfile

from cadenza.corpus.captions import ground_truth
from cadenza.corpus.render import render_clips

SEED, COUNT, RATE = 800001, 4, 24000
FOLDER = Path(__file__).parent / "estimators"
KEPT = ("seconds", "tempo", "key", "families", "lead_family", "instruments", "chords")


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for i, (piece, wave) in enumerate(render_clips(SEED, range(COUNT), RATE)):
        record = ground_truth(piece)
        melody = [note for note in record["notes"] if note[4] == "melody"]
        soundfile.write(FOLDER / f"{i}.ogg", wave, RATE, format="OGG", subtype="VORBIS", compression_level=0.9)
        (FOLDER / f"{i}.json").write_text(json.dumps({**{name: record[name] for name in KEPT}, "notes": melody}) + "\n")


if __name__ == "__main__":
    main()
