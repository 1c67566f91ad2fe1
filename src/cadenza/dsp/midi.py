"""Melody and drums of MIDI files."""

from pathlib import Path

from cadenza.core.errors import RequestError

_DRUM_CHANNEL = 9  # General MIDI, counted from 0


def read_midi_melody(path: str | Path) -> list[tuple[float, float, int]]:
    """Return the highest notes of a MIDI file without drums, as (start, end, MIDI pitch), times in seconds."""
    return skyline(_notes(path, drums=False))


def skyline(notes: list[tuple[float, float, int]]) -> list[tuple[float, float, int]]:
    """Return the highest note at each onset, cut where the next one begins."""
    top: dict[float, tuple[float, float, int]] = {}
    for note in notes:
        start = note[0]
        if start not in top or note[2] > top[start][2]:
            top[start] = note
    line: list[tuple[float, float, int]] = []
    for start, end, pitch in sorted(top.values()):
        if line and line[-1][1] > start:  # the previous note still sounds
            if line[-1][2] > pitch:
                continue
            line[-1] = (line[-1][0], start, line[-1][2])
        line.append((start, end, pitch))
    return line


def read_midi_drums(path: str | Path) -> list[tuple[float, int]]:
    """Return the drum onsets of a MIDI file as (seconds, General MIDI drum number)."""
    return [(start, pitch) for start, _, pitch in _notes(path, drums=True)]


def _notes(path: str | Path, *, drums: bool) -> list[tuple[float, float, int]]:
    """Return the notes of the drum channel, or of all others, as (start, end, MIDI pitch), times in seconds.

    Raises RequestError for a file that is not MIDI or has no such note.
    """
    import mido

    try:
        second, notes = 0.0, []
        open_: dict[tuple[int, int], float] = {}
        for message in mido.MidiFile(path):
            second += message.time
            if message.type not in {"note_on", "note_off"} or (message.channel == _DRUM_CHANNEL) != drums:
                continue
            key = message.channel, message.note
            if key in open_:
                notes.append((open_.pop(key), second, message.note))
            if message.type == "note_on" and message.velocity:
                open_[key] = second
    except (OSError, EOFError, ValueError, KeyError, IndexError) as error:
        raise RequestError(f"{path}: not a readable MIDI file ({error}); export it again, or give audio or a list") from None
    if not notes:
        raise RequestError(f"{path}: has no {'drums' if drums else 'notes other than drums'}; choose another file")
    return sorted(notes)
