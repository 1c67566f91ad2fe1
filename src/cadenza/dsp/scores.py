"""Scores: the melody of a MIDI file."""

from pathlib import Path

from cadenza.core.errors import RequestError

_DRUMS = 9  # the channel of percussion


def melody(path: str | Path) -> list[tuple[float, float, int]]:
    """The highest notes of a MIDI file, without percussion, as (start, end, MIDI pitch) in seconds."""
    import mido

    try:
        file = mido.MidiFile(path)
        second, open_, notes = 0.0, {}, []
        for message in file:
            second += message.time
            if message.type not in {"note_on", "note_off"} or message.channel == _DRUMS:
                continue
            key = message.channel, message.note
            if key in open_:
                notes.append((open_.pop(key), second, message.note))
            if message.type == "note_on" and message.velocity:
                open_[key] = second
    except (OSError, EOFError, ValueError, KeyError, IndexError) as error:
        raise RequestError(
            f"{path}: not a readable MIDI file ({error}); export it again, or give audio or a list of notes"
        ) from None
    if not notes:
        raise RequestError(f"{path}: holds no notes but percussion; give a file with a melody")
    return skyline(notes)


def skyline(notes: list[tuple[float, float, int]]) -> list[tuple[float, float, int]]:
    """The notes that nothing higher begins with, each until the next one begins."""
    top: dict[float, tuple[float, float, int]] = {}
    for note in notes:
        start = note[0]
        if start not in top or note[2] > top[start][2]:
            top[start] = note
    line: list[tuple[float, float, int]] = []
    for start, end, pitch in sorted(top.values()):
        if line and line[-1][1] > start and line[-1][2] > pitch:
            continue  # under a higher note that still sounds
        if line and line[-1][1] > start:
            line[-1] = (line[-1][0], start, line[-1][2])
        line.append((start, end, pitch))
    return line
