"""MIDI bytes, against a file written by hand from the standard."""

from mido import Message

from cadenza.corpus.render import to_midi_bytes


def test_a_note_is_the_bytes_of_the_standard():
    events = [
        (200, Message("note_off", note=69, velocity=0)),
        (0, Message("note_on", note=69, velocity=100)),
        (0, Message("program_change", program=24)),
    ]
    track = bytes.fromhex("00 ff5103 07a120  00 c018  00 904564  8148 804500  64 ff2f00")
    header = b"MThd" + bytes.fromhex("00000006 0000 0001 01f4")
    assert to_midi_bytes(events, end=300) == header + b"MTrk" + len(track).to_bytes(4, "big") + track


def test_at_one_time_a_control_comes_first_and_an_end_before_a_start():
    events = [
        (5, Message("note_on", channel=1, note=60, velocity=90)),
        (5, Message("note_off", channel=1, note=60, velocity=0)),
        (5, Message("control_change", channel=1, control=7, value=80)),
    ]
    data = to_midi_bytes(events, end=5)
    order = [data.index(bytes(b)) for b in ((0xB1, 7, 80), (0x81, 60, 0), (0x91, 60, 90))]
    assert order == sorted(order)
