"""What is a timeline and what is a value like any other; what meets, fades."""

import math

import pytest

from cadenza.core.errors import RequestError
from cadenza.core.timeline import Timeline, TimeSpan


@pytest.mark.parametrize(
    "value",
    [
        [(0, 8, "a"), (8, None, "b")],
        ((0, 8, "a"), [8, None, "b"]),
        [{"start": 0, "end": 8, "value": "a"}, {"start": 8, "value": "b"}],
        [(8, None, "b"), (0, 8, "a")],
        {"timeline": [(0, 8, "a"), (8, None, "b")]},
    ],
)
def test_a_timeline_has_several_forms(value: object) -> None:
    line = Timeline.parse(value)
    assert line == Timeline((TimeSpan(0, 8, "a"), TimeSpan(8, math.inf, "b")))
    assert Timeline.parse(line) is line


@pytest.mark.parametrize(
    "value",
    [
        None,
        "a",
        3,
        [],
        [0.1, 0.6, 1.2],
        ["a", "b", "c"],
        ["abc"],
        [("a", 1, 2)],
        [(0, 1)],
        [(0, 1, 2), 3],
        {"drums": [(0, 1, 2)]},
    ]
    + [{"timeline": [], "tempo": 3}, [(True, 1, "a")]],
)
def test_other_values_are_none(value: object) -> None:
    assert Timeline.parse(value) is None


@pytest.mark.parametrize(
    "value",
    [[(8, 8, "a")], [(8, 4, "a")], [(math.nan, 4, "a")], [(0, math.nan, "a")], {"timeline": "a"}, {"timeline": []}]
    + [{"timeline": [(0, 1, "a")], "fade": -1}],
)
def test_a_wrong_timeline_is_an_error(value: object) -> None:
    with pytest.raises(RequestError, match="timeline"):
        Timeline.parse(value)


def test_spans_fade_where_they_meet_and_nowhere_else() -> None:
    line = Timeline.parse({"timeline": [(0, 8, "a"), (8, 9, "b"), (10, None, "c")], "fade": 2.0})
    assert line is not None
    assert line.bounds_with_fades() == [
        (0, 8, 0, 1.0),
        (8, 9, 1.0, 0),
        (10, math.inf, 0, 0),
    ]  # no longer than the second that meets
    assert line.shifted(3).bounds_with_fades()[0] == (-3, 5, 0, 1.0)
