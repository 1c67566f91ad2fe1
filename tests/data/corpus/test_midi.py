"""The MIDI writer against a file written out by hand from the standard."""

from cadenza.data.corpus.midi import control, note_off, note_on, program, smf


def test_a_note_is_the_bytes_of_the_standard():
    made = smf([note_off(200, 0, 69), note_on(0, 0, 69, 100), program(0, 0, 24)], end=300)
    track = bytes.fromhex("00 ff5103 07a120  00 c018  00 904564  8148 804500  64 ff2f00".replace(" ", ""))
    assert (
        made
        == b"MThd" + bytes.fromhex("00000006 0000 0001 01f4".replace(" ", "")) + b"MTrk" + len(track).to_bytes(4, "big") + track
    )


def test_at_one_time_a_control_comes_first_and_an_end_before_a_start():
    made = smf([note_on(5, 1, 60, 90), note_off(5, 1, 60), control(5, 1, 7, 80)], end=5)
    order = [made.index(bytes(b)) for b in ((0xB1, 7, 80), (0x81, 60, 0), (0x91, 60, 90))]
    assert order == sorted(order)
