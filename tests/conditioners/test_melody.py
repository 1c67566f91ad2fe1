"""The melody conditioner: the same frames from notes, MIDI, a sung line and salience."""

import math
from pathlib import Path
from typing import Any

import mido
import numpy as np
import pytest
import torch

from cadenza.conditioners.base import ConditionerSet
from cadenza.conditioners.melody import MelodyConditioner, MelodySpec
from cadenza.core.errors import RequestError
from cadenza.dsp.audio import Audio

NOTES = [(0.0, 0.5, 69), (0.5, 1.0, 72), (1.5, 2.0, 64)]
STEPS = [33] * 25 + [36] * 25 + [-1] * 25 + [28] * 25


def melody(**fields: Any) -> MelodyConditioner:
    return MelodySpec.parse({"type": "melody", "output_dim": 8, "frame_rate": 50, "max_frames": 120, **fields}).build()


def pitch(value: Any, **fields: Any) -> list[int]:
    return melody(**fields).prepare([value]).tensors["pitch"][0].tolist()


def sung(notes: list[tuple[float, float, int]], rate: int = 22050) -> Audio:
    time = torch.arange(int(2 * rate)) / rate
    wave = torch.zeros_like(time)
    for start, end, note in notes:
        hertz = 440 * 2 ** ((note - 69) / 12)
        here = (time >= start) & (time < end)
        wave[here] = sum(torch.sin(2 * math.pi * hertz * k * time[here]) / k for k in (1, 2, 3))  # type: ignore[assignment]
    return Audio(0.2 * wave[None, None], rate)


def test_notes_fill_their_frames_and_the_rest_is_not_covered() -> None:
    found = melody().prepare([NOTES]).tensors
    assert found["pitch"][0].tolist() == [*STEPS, *[-1] * 20]
    assert found["covered"][0].tolist() == [True] * 100 + [False] * 20
    assert found["since"][0, [0, 24, 25]].tolist() == pytest.approx([0.01, 0.49, 0.01])
    assert found["left"][0, [0, 24, 25]].tolist() == pytest.approx([0.49, 0.01, 0.49])


def test_a_score_says_what_its_notes_say(tmp_path: Path) -> None:
    track, now = mido.MidiTrack(), 0.0
    for start, end, note in NOTES:
        for kind, second in (("note_on", start), ("note_off", end)):
            track.append(mido.Message(kind, note=note, time=round((second - now) * 960)))  # 480 a beat, two beats a second
            now = second
    file = mido.MidiFile(tracks=[track])
    file.save(tmp_path / "tune.mid")
    assert pitch(str(tmp_path / "tune.mid"))[:100] == STEPS


def test_a_sung_line_says_the_same_classes_without_octaves(tmp_path: Path) -> None:
    sung(NOTES).save(tmp_path / "hum.wav")
    found = melody().prepare([str(tmp_path / "hum.wav")]).tensors
    right = [a == b for a, b in zip(found["pitch"][0, :100].tolist(), STEPS, strict=True)]
    assert sum(right) >= 94, "all but the frames at the ends of notes"
    assert not found["octave"].item() and found["covered"][0, :100].all()


def test_salience_is_read_row_by_row() -> None:
    salience = np.zeros((61, 100), np.float32)
    for frame, step in enumerate(STEPS):
        if step >= 0:
            salience[step, frame] = 0.7
    assert pitch(salience)[:100] == STEPS


def test_notes_out_of_range_move_by_octaves() -> None:
    low, high = pitch([(0.0, 1.0, 24), (1.0, 2.0, 120)])[0], pitch([(0.0, 1.0, 24), (1.0, 2.0, 120)])[60]
    assert low == 0 and (high + 36) % 12 == 0 and high <= 60


def test_without_its_octave_a_note_is_its_class() -> None:
    part = melody()
    torch.nn.init.normal_(part.out.weight)
    a, b = part.prepare([[(0.0, 1.0, 60)]]), part.prepare([[(0.0, 1.0, 72)]])
    assert not torch.equal(part(a).embeddings, part(b).embeddings)
    hidden = melody(octave_dropout=1.0)
    hidden.load_state_dict(part.state_dict())
    rng = torch.Generator().manual_seed(0)
    torch.testing.assert_close(hidden(hidden.augment(a, rng)).embeddings, hidden(hidden.augment(b, rng)).embeddings)


def test_before_training_it_adds_nothing() -> None:
    part = melody()
    assert not part(part.prepare([NOTES])).embeddings.any()


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([(0.0, 1.0)], r"a note is \(start, end, pitch\)"),
        ([(1.0, 0.0, 60)], "0 <= start <= end"),
        ([(0.0, 1.0, 200)], "from 0 to 127"),
        (3, "is a list of"),
        (np.zeros((5, 9)), "salience"),
        (Audio(torch.zeros(1, 1, 16000), 16000), "no pitch found"),
        ("nowhere.wav", "nowhere.wav"),
    ],
)
def test_what_cannot_be_used_is_named(value: Any, says: str) -> None:
    with pytest.raises(RequestError, match=says):
        melody().prepare([value])


def test_no_notes_are_absent() -> None:
    assert ConditionerSet({"it": melody()}).prepare([{"it": []}])["it"].present.tolist() == [False]


def test_a_clip_that_begins_later_has_the_melody_of_its_piece() -> None:
    found = ConditionerSet({"it": melody()}).prepare([{"it": NOTES, "seconds_start": 0.6}])["it"].tensors["pitch"][0]
    assert found[:70].tolist() == STEPS[30:]


def test_the_beginning_of_a_longer_melody_counts() -> None:
    part = melody()
    longer, cut = [(0.0, 1.0, 60), (1.0, 900.0, 64)], [(0.0, 1.0, 60), (1.0, 99.0, 64)]
    for name, x in part.prepare([longer]).tensors.items():
        torch.testing.assert_close(x, part.prepare([cut]).tensors[name])
