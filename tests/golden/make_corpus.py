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

from cadenza.corpus.captions import ground_truth, make_captions
from cadenza.corpus.compose import compose_piece
from cadenza.corpus.piece import RandomStream, random_stream
from cadenza.corpus.render import midi_events, to_midi_bytes

PATH = Path(__file__).parent / "corpus.json"
PIECES = [(seed, index) for seed in (1, 500001) for index in range(12)]


def digest(value: Any) -> str:
    """Hash of the JSON text of a value."""
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]


def digests(seed: int, index: int) -> dict[str, str]:
    """Key and tempo of a piece as text; hashes of its notes, other labels, MIDI events and captions."""
    piece = compose_piece(seed, index)
    labels = ground_truth(piece)
    track = mido.MidiFile(file=io.BytesIO(to_midi_bytes(midi_events(piece, 1000), 20_000))).tracks[0]
    record = {
        "piece": f"{labels['genre']}, {labels['key']}, {labels['tempo']:g} bpm",
        "notes": digest(labels["notes"]),
        "labels": digest({name: value for name, value in labels.items() if name != "notes"}),
        "midi": digest([(message.time, message.hex()) for message in track if not message.is_meta]),
    }
    for split in ("train", "held_out"):
        captions = make_captions(labels, random_stream(seed, index, RandomStream.CAPTIONS), split)
        record[split] = digest([(c.text, c.mentions, c.unseen) for c in captions])
    return record


def main() -> None:
    """Write the file of hashes."""
    PATH.write_text(json.dumps({f"{seed}/{index}": digests(seed, index) for seed, index in PIECES}, indent=1) + "\n")


if __name__ == "__main__":
    main()
