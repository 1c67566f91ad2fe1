"""Histograms: every value counted once, in the step that says so."""

import json
import math

from cadenza.data.validation import Histogram


def test_values_are_where_the_edges_say():
    made = Histogram.from_values([1, 2, 2, 5, 9.9], [0, 1, 2, 5, 10, 20])
    assert made == Histogram((1, 2, 5, 10), (1, 2, 2)) and Histogram.from_values([], [0, 1]) == Histogram()
    assert made.lines("title") == [
        "title",
        " 1 to 2 " + 20 * "#" + " 1",
        " 2 to 5 " + 40 * "#" + " 2",
        "5 to 10 " + 40 * "#" + " 2",
    ]


def test_open_ends():
    levels = Histogram.of_loudness([-math.inf, -80, -20.5, 3])
    assert sum(levels.counts) == 4 and levels.counts[0] == 2 and levels.counts[-1] == 1
    assert "under -69" in levels.lines("LUFS")[1] and "0 or more" in levels.lines("LUFS")[-1]
    data = json.loads(json.dumps(levels.to_dict(), allow_nan=False))
    assert data["edges"][0] is None and data["edges"][-1] is None and len(data["edges"]) == len(data["counts"]) + 1
    assert Histogram.of_durations([0.05, 4000]).counts[0] == Histogram.of_durations([0.05, 4000]).counts[-1] == 1
