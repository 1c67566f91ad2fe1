"""The melody of MIDI files that mido writes."""

from pathlib import Path

import mido
import pytest

from cadenza.core.errors import RequestError
from cadenza.dsp.midi import read_midi_melody, skyline


def score(path: Path, notes: list[tuple[int, int, int]], channel: int = 0, tempo: int = 500_000) -> Path:
    """Notes in ticks, 480 a beat."""
    file = mido.MidiFile(ticks_per_beat=480)
    track = mido.MidiTrack([mido.MetaMessage("set_tempo", tempo=tempo)])
    events = [(start, "note_on", pitch) for start, _, pitch in notes] + [(end, "note_off", pitch) for _, end, pitch in notes]
    now = 0
    for tick, kind, pitch in sorted(events):
        track.append(mido.Message(kind, note=pitch, velocity=64, channel=channel, time=tick - now))
        now = tick
    file.tracks.append(track)
    file.save(path)
    return path


def test_ticks_become_seconds_by_the_tempo(tmp_path: Path) -> None:
    found = read_midi_melody(score(tmp_path / "a.mid", [(0, 480, 60), (480, 720, 62)], tempo=1_000_000))
    assert [pitch for *_, pitch in found] == [60, 62]
    assert [second for note in found for second in note[:2]] == pytest.approx([0, 1, 1, 1.5])


def test_the_highest_voice_is_the_melody() -> None:
    chords = [(0.0, 2.0, 48), (0.0, 1.0, 72), (0.5, 2.0, 55), (1.0, 2.0, 74), (1.5, 1.8, 76)]
    assert skyline(chords) == [(0.0, 1.0, 72), (1.0, 1.5, 74), (1.5, 1.8, 76)]


def test_percussion_alone_and_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="has no notes other than drums"):
        read_midi_melody(score(tmp_path / "drums.mid", [(0, 10, 36)], channel=9))
    (tmp_path / "text.mid").write_text("no score")
    with pytest.raises(RequestError, match=r"text.mid: not a readable MIDI file"):
        read_midi_melody(tmp_path / "text.mid")
    with pytest.raises(RequestError, match=r"none.mid"):
        read_midi_melody(tmp_path / "none.mid")
