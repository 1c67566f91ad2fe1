"""Write hashes of a few composed pieces, by which a change of the composer is noticed.

Run from the repository's root after an intended change of the corpus, and give the reason in the commit:
    python tests/golden/make_corpus.py
"""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

import mido

from cadenza.data.corpus.captions import captions
from cadenza.data.corpus.chance import Stream, stream
from cadenza.data.corpus.compose import compose
from cadenza.data.corpus.midi import smf
from cadenza.data.corpus.render import events
from cadenza.data.corpus.truth import truth

PATH = Path(__file__).parent / "corpus.json"
PIECES = [(seed, index) for seed in (1, 500001) for index in range(12)]


def digest(value: Any) -> str:
    """Hash of the JSON text of a value."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def digests(seed: int, index: int) -> dict[str, str]:
    """Key and tempo of a piece as text; hashes of its notes, other labels, MIDI events and captions."""
    piece = compose(seed, index)
    facts = truth(piece)
    track = mido.MidiFile(file=io.BytesIO(smf(events(piece, 1000), 20_000))).tracks[0]
    record = {
        "piece": f"{facts['genre']}, {facts['key']}, {facts['tempo']:g} bpm",
        "notes": digest(facts["notes"]),
        "labels": digest({name: value for name, value in facts.items() if name != "notes"}),
        "midi": digest([(message.time, message.hex()) for message in track if not message.is_meta]),
    }
    for split in ("train", "held_out"):
        found = captions(facts, stream(seed, index, Stream.CAPTIONS), split)
        record[split] = digest([(c.text, c.mentions, c.unseen) for c in found])
    return record


def main() -> None:
    """Write the file of hashes."""
    PATH.write_text(json.dumps({f"{seed}/{index}": digests(seed, index) for seed, index in PIECES}, indent=1) + "\n")


if __name__ == "__main__":
    main()
