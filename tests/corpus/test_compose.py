"""Properties that make composed pieces music, over many of them."""

import collections
import statistics

import mir_eval.chord
import pytest

from cadenza.corpus.captions import ground_truth
from cadenza.corpus.compose import compose_piece, plan_piece

ACCENTED = {"4/4": (0, 2), "3/4": (0,), "6/8": (0, 1)}


@pytest.fixture(scope="module")
def pieces():
    return [compose_piece(11, i) for i in range(150)]


def melody(piece):
    return [n for n in piece.notes if n.role == "melody"]


def test_a_piece_depends_on_seed_and_number_only(pieces):
    assert compose_piece(11, 7) == pieces[7]
    assert compose_piece(12, 7) != pieces[7]
    assert pieces[7] != pieces[8]


def test_keys_are_even_and_tempi_lie_between_50_and_180():
    plans = [plan_piece(5, i)[0] for i in range(2400)]
    keys = collections.Counter(p.key.name for p in plans)
    assert len(keys) == 24
    chi_square = sum((n - 100) ** 2 / 100 for n in keys.values())
    assert chi_square < 49.7  # the 99.9 % point for 23 degrees of freedom
    assert all(50 <= p.bpm <= 180 for p in plans)
    assert {p.genre.name for p in plans} >= {"ballad", "waltz", "jazz", "rock", "hymn", "lo-fi", "march"}
    assert max(collections.Counter(p.genre.name for p in plans).values()) < 0.2 * len(plans)


def test_pieces_last_whole_bars_and_a_short_tail(pieces):
    for piece in pieces:
        labels = ground_truth(piece)
        beats_a_bar = {"4/4": 4, "3/4": 3, "6/8": 2}[labels["metre"]]
        assert labels["seconds"] == pytest.approx(labels["bars"] * beats_a_bar * 60 / labels["tempo"] + 0.8, abs=1e-3)
        assert 9.5 <= labels["seconds"] <= 16.1


def test_accented_melody_notes_are_chord_tones(pieces):
    hits = total = 0
    for piece in pieces:
        labels = ground_truth(piece)
        for note in melody(piece):
            inside = note.start % piece.plan.beats_per_bar
            if any(abs(inside - a) < 1e-6 for a in ACCENTED[labels["metre"]]):
                at = note.start * 60 / labels["tempo"] + 1e-3
                label = next(c[2] for c in labels["chords"] if c[0] <= at < c[1])
                root, bitmap, _ = mir_eval.chord.encode(label)
                hits += bool(bitmap[(note.pitch - root) % 12])
                total += 1
    assert total > 1000
    assert hits / total >= 0.9


def test_most_notes_belong_to_the_key_and_both_ends_are_the_tonic(pieces):
    inside = total = 0
    for piece in pieces:
        tonic = piece.plan.key.tonic
        assert piece.segments[0].chord.root == tonic
        assert piece.segments[-1].chord.root == tonic
        assert min((n for n in piece.notes if n.role in ("bass", "melody")), key=lambda n: (-n.start, n.pitch)).pitch % 12 in (
            piece.segments[-1].chord.pitch_classes
        )
        pitched = [n for n in piece.notes if n.role != "drums"]
        inside += sum(n.pitch % 12 in piece.plan.key.pitch_classes for n in pitched)
        total += len(pitched)
    assert inside / total > 0.92


def test_melodies_are_single_lines_that_mostly_step_and_seldom_leap(pieces):
    steps = collections.Counter()
    for piece in pieces:
        line = melody(piece)
        for a, b in zip(line, line[1:], strict=False):
            assert a.start + a.length <= b.start + 1e-6
            steps[min(8, abs(a.pitch - b.pitch))] += 1
        assert line[-1].start == piece.plan.final_beat
        assert len({n.pitch for n in line}) >= 3
    total = sum(steps.values())
    assert (steps[1] + steps[2]) / total > 0.4
    assert steps[0] / total < 0.2
    assert steps[8] / total < 0.05


def test_motifs_return(pieces):
    returning = 0
    for piece in pieces:
        beats = piece.plan.beats_per_bar
        bars = collections.defaultdict(list)
        for note in melody(piece):
            bars[int(note.start // beats)].append(round(note.start % beats, 3))
        rhythms = [tuple(r) for r in bars.values()]
        returning += len(set(rhythms)) < len(rhythms)
    assert returning > 0.75 * len(pieces)


def test_velocities_vary_and_times_are_human_but_ordered(pieces):
    for piece in pieces:
        speeds = [n.velocity for n in piece.notes]
        assert statistics.pstdev(speeds) > 3
        assert 18 <= min(speeds) and max(speeds) <= 122
        times = [piece.note_to_seconds(n) for n in piece.notes]
        assert min(start for start, _ in times) == 0
        assert all(start < end <= piece.plan.seconds for start, end in times)
        late = [abs(s - piece.plan.beat_to_seconds(n.start)) for n, (s, _) in zip(piece.notes, times, strict=True)]
        assert max(late) < 0.2
        assert statistics.median(late) < 0.02


def test_no_part_strikes_a_pitch_that_it_still_holds(pieces):
    for piece in pieces:
        tool = {p.role: p.instrument.name for p in piece.plan.parts}
        ends: dict[tuple[str, int], float] = {}
        for note in sorted(piece.notes, key=lambda n: n.start):
            place = tool[note.role], note.pitch
            assert ends.get(place, -1.0) <= note.start + 1e-9
            ends[place] = note.start + note.length


def test_most_beats_carry_an_onset(pieces):
    shares = []
    for piece in pieces:
        starts = [n.start for n in piece.notes]
        beats = range(piece.plan.beats)
        shares.append(sum(any(abs(s - b) < 1e-6 for s in starts) for b in beats) / len(beats))
    assert statistics.mean(shares) > 0.85


def test_velocities_follow_the_dynamics():
    by_name = collections.defaultdict(list)
    for i in range(300):
        piece = compose_piece(4, i)
        half = piece.plan.beats / 2
        line = melody(piece)
        first = statistics.mean(n.velocity for n in line if n.start < half)
        second = statistics.mean(n.velocity for n in line if n.start >= half)
        by_name[piece.plan.dynamics].append((first + second, second - first))
    mean = {name: [statistics.mean(v) for v in zip(*values, strict=True)] for name, values in by_name.items()}
    assert mean["soft"][0] < mean["medium"][0] - 20 < mean["loud"][0] - 40
    assert mean["building"][1] > 10 > -5 > mean["fading"][1]
