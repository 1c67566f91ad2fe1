"""The chords conditioner: the same frames from a line, from starts and from spans."""

from typing import Any

import pytest
import torch

from cadenza.conditioners.base import ConditionerSet
from cadenza.conditioners.chords import ChordsConditioner, ChordsSpec
from cadenza.core.errors import RequestError
from cadenza.core.timeline import Timeline

TONES = slice(24, 36)


def chords(**fields: Any) -> ChordsConditioner:
    return ChordsSpec.parse({"type": "chords", "output_dim": 8, "frame_rate": 10, "max_frames": 40, **fields}).build()


def frames(value: Any, **fields: Any) -> torch.Tensor:
    return chords(**fields).prepare([value]).tensors["x"][0]


def test_spans_fill_the_frames_whose_middle_they_cover() -> None:
    found = chords().prepare([[(0.0, 1.0, "C"), (1.0, 2.04, "A:min")]])
    x, covered = found.tensors["x"][0], found.tensors["covered"][0]
    assert covered.tolist() == [True] * 20 + [False] * 20
    assert [x[i, TONES].nonzero().flatten().tolist() for i in (0, 9, 10, 19, 20)] == [[0, 4, 7]] * 2 + [[0, 4, 9]] * 2 + [[]]


def test_a_line_starts_and_spans_agree() -> None:
    spans = [(0.0, 1.0, "C"), (1.0, 1.5, "F"), (1.5, 2.0, "G"), (2.0, 3.0, "C"), (3.0, 3.5, "F"), (3.5, 4.0, "G")]
    torch.testing.assert_close(frames("C | F G", bar_seconds=1.0), frames(spans))
    torch.testing.assert_close(frames("C@0 F@1 G@1.5 C@2 F@3 G@3.5"), frames(spans))
    torch.testing.assert_close(frames("C, %, F, %", bar_seconds=1.0)[:, TONES], frames("C C F F", bar_seconds=1.0)[:, TONES])


def test_a_bar_lasts_four_beats_of_the_tempo_and_the_line_lasts_as_long_as_the_clip() -> None:
    parts = ConditionerSet({"chords": chords()})
    prepared = parts.prepare(
        [{"chords": "C G", "tempo": 120}, {"chords": "C G", "tempo": torch.tensor([0.0, 1, 2])}, {"chords": "C G"}], frames=100
    )
    x = prepared["chords"].tensors["x"]
    assert x.shape == (3, 100, 39)
    for row, bar in zip(x, (20, 40, 20), strict=True):
        roots = row[:, :12].argmax(-1).tolist()
        assert roots == [7 * (frame // bar % 2) for frame in range(100)]


def test_a_bar_lasts_four_beats_of_the_tempo_in_which_it_begins() -> None:
    parts = ConditionerSet({"chords": chords()})
    for tempo in (
        [(0.0, 4.0, 120), (4.0, None, 60)],
        {"timeline": [(0, 4, 120), (4, None, 60)], "fade": 1.0},
        Timeline.parse([(0.0, 4.0, 120), (4.0, None, 60)]),
        [(0.0, 4.0, [0.0, 0.5, 1.0]), (4.0, None, 60)],
    ):
        x = parts.prepare([{"chords": "C G", "tempo": tempo}], frames=100)["chords"].tensors["x"]
        assert x[0, :, :12].argmax(-1).tolist() == [0] * 20 + [7] * 20 + [0] * 40 + [7] * 20
    x = parts.prepare([{"chords": "C G", "tempo": [(2.0, 4.0, None), (4.0, None, 60)]}], frames=100)["chords"].tensors["x"]
    assert x[0, :, :12].argmax(-1).tolist() == [0] * 20 + [7] * 20 + [0] * 40 + [7] * 20  # `bar_seconds` without a tempo


@pytest.mark.parametrize("tempo", [1e9, 0, [1.0, 1.0], ["a", "b"], "fast"])
def test_a_tempo_that_makes_no_bars_is_named(tempo: Any) -> None:
    with pytest.raises(RequestError, match="chords: .*(beats a minute)"):
        ConditionerSet({"chords": chords()}).prepare([{"chords": "C G", "tempo": tempo}])


def test_the_last_chord_may_be_open() -> None:
    torch.testing.assert_close(frames([(0.0, 1.0, "C"), (1.0, None, "F")]), frames([(0.0, 1.0, "C"), (1.0, 99.0, "F")]))
    part = chords()
    torch.testing.assert_close(
        part.prepare([part.crop_value([(0.0, 1.0, "C"), (1.0, None, "F")], 0.5)]).tensors["x"],
        part.prepare([[(0.0, 0.5, "C"), (0.5, 99.0, "F")]]).tensors["x"],
    )


def test_no_chord_is_said_and_silence_is_not() -> None:
    part = chords(max_frames=20)
    with torch.no_grad():
        part.out.weight.normal_()
    tokens = part(part.prepare([[(0.0, 1.0, "N")]]))
    assert tokens.mask[0].tolist() == [True] * 10 + [False] * 10
    assert part.prepare([[(0.0, 1.0, "N")]]).tensors["x"][0, 0, 36] == 1


def test_a_table_knows_its_chords_alone() -> None:
    part = chords(vocabulary=["N", "C", "A:min"])
    assert part.prepare([[(0.0, 2.0, "C"), (2.0, 4.0, "A:min")]]).tensors["row"][0].tolist() == [1] * 20 + [2] * 20
    with pytest.raises(RequestError, match=r"no chord called 'A:mi'. Did you mean 'A:min'"):
        part.prepare([[(0.0, 2.0, "A:mi")]])


def test_before_training_it_adds_nothing() -> None:
    part = chords()
    assert not part(part.prepare(["C G"])).embeddings.any()


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ("H9", "German H"),
        ("| |", "no chord is given"),
        ("% C", "which is missing"),
        ("C@0 G", "has no start"),
        ("C@2 G@1", "must rise"),
        ([(1.0, 0.5, "C")], "0 <= start <= end"),
        ([(0.0, "C")], r"a chord is \(start, end, name\)"),
        (7, "are a text"),
    ],
)
def test_what_cannot_be_used_is_named(value: Any, says: str) -> None:
    part = chords()
    with pytest.raises(RequestError, match=says):
        part.prepare([part.value_from_item({"it": value}, "it")])


def test_an_empty_list_is_absent() -> None:
    assert ConditionerSet({"it": chords()}).prepare([{"it": []}])["it"].present.tolist() == [False]


def test_a_clip_that_begins_later_has_the_chords_of_its_piece() -> None:
    parts = ConditionerSet({"chords": chords(max_frames=20)})
    spans = [(0.0, 1.5, "C"), (1.5, 3.0, "F"), (3.0, 4.0, "G")]
    whole = frames(spans)[20:]
    later = parts.prepare([{"chords": spans, "seconds_start": 2.0}])["chords"].tensors["x"][0]
    torch.testing.assert_close(later[:, TONES], whole[:, TONES])
    line = parts.prepare([{"chords": "C F", "seconds_start": 3.0}])["chords"].tensors["x"][0, :, :12].argmax(-1)
    assert line.tolist() == [5] * 10 + [0] * 10, "bars of two seconds count from the start of the piece"
    assert parts.prepare([{"chords": spans, "seconds_start": 9.0}])["chords"].present.tolist() == [False]
