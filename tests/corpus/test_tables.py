"""The tables of the composer are consistent, and the music made from them has not changed."""

import json
import runpy
from pathlib import Path

import pytest
import yaml

from cadenza.corpus import tables
from cadenza.corpus.arrangement import ACCOMPANIMENTS, STROKE_VELOCITY
from cadenza.corpus.harmony import parse_numeral
from cadenza.corpus.piece import TIME_SIGNATURES
from cadenza.corpus.tables import load_tables
from cadenza.corpus.theory import Key

TABLES = load_tables()
GOLDEN = Path(__file__).parents[1] / "golden"
FAMILIES = {"piano", "mallets", "organ", "guitar", "bass", "strings", "brass", "reed", "flute", "synth", "drums"}
BASS_STYLES = {"long", "root-fifth", "oom", "eighths", "shuffle", "offbeat", "walking", "beats", "funk", "syncopated"}
DENSITIES = {"sparse", "medium", "busy"}


def test_pieces_are_those_of_the_golden():
    digests = runpy.run_path(str(GOLDEN / "make_corpus.py"))["digests"]
    for name, expected in json.loads((GOLDEN / "corpus.json").read_text()).items():
        assert digests(*map(int, name.split("/"))) == expected, name


def test_every_key_of_the_file_is_unique():
    def check(node):
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value]
            assert len(keys) == len(set(keys)), f"line {node.start_mark.line + 1}: {keys}"
        for item in node.value if not isinstance(node, yaml.ScalarNode) else ():
            for child in item if isinstance(item, tuple) else (item,):
                check(child)

    check(yaml.compose(Path(tables.__file__).with_name("tables.yaml").read_text()))


def test_instruments_are_general_midi_programs_in_families():
    pitched = [i for i in TABLES.instruments.values() if i.family != "drums"]
    assert len({i.program for i in pitched}) == len(pitched)
    assert {i.family for i in TABLES.instruments.values()} == FAMILIES
    for instrument in TABLES.instruments.values():
        low, high = instrument.register
        assert 0 <= instrument.program <= 127
        assert 0 <= low < high <= 127
    assert set(TABLES.phrases["instrument"]) == set(TABLES.instruments)


@pytest.mark.parametrize("genre", TABLES.genres.values(), ids=lambda genre: genre.name)
def test_genres_use_entries_of_the_other_tables(genre):
    for weights in (genre.solos, genre.leads, genre.chords, genre.basses, genre.pads):
        assert weights.keys() <= TABLES.instruments.keys()
    assert genre.solos.keys() <= TABLES.registers["solo"].keys()
    assert genre.time_signatures.keys() <= TIME_SIGNATURES.keys()
    assert genre.accompaniments.keys() <= ACCOMPANIMENTS.keys() == TABLES.phrases["accompaniment"].keys()
    assert genre.bass_styles.keys() <= BASS_STYLES
    assert genre.density.keys() <= DENSITIES
    assert genre.ensembles.keys() <= {"alone", "solo", "duo", "trio", "band"}
    assert genre.moods.keys() <= TABLES.phrases["mood"].keys()
    assert genre.harmony in TABLES.harmony
    assert genre.drums is None or genre.drums in TABLES.grooves
    assert TABLES.instruments[genre.kit].family == "drums"
    assert genre.name in TABLES.phrases["genre"]


def test_progressions_are_numerals_of_the_key():
    for style in TABLES.harmony.values():
        assert style.loops or style.transitions or style.form
        for tonality, mode in (("major", "ionian"), ("minor", "aeolian")):
            texts = [*style.loops.get(tonality, ()), *style.cadences[tonality], style.final[tonality]]
            texts += [style.form.get(tonality, "")]
            transitions = style.transitions.get(tonality, {})
            for weights in transitions.values():
                assert weights.keys() <= transitions.keys()
            for numeral in [*" ".join(texts).split(), *transitions]:
                assert parse_numeral(Key(9, mode), numeral)


def test_rhythms_and_grooves_fill_one_bar():
    for name, rhythms in TABLES.rhythms.items():
        beats = TIME_SIGNATURES[name.removesuffix(" syncopated")].beats
        assert rhythms.keys() >= DENSITIES
        for bar in (bar for bars in rhythms.values() for bar in bars):
            assert sum(map(abs, bar)) == pytest.approx(beats)
    steps = {"4/4": 16, "3/4": 12, "6/8": 6}
    grooves = [(name, groove) for style in TABLES.grooves.values() for name, bars in style.items() for groove in bars]
    grooves += [(name, fill) for name, fills in TABLES.fills.items() for fill in fills]
    for name, groove in grooves:
        assert groove.keys() <= TABLES.drum_notes.keys()
        for strokes in groove.values():
            assert len(strokes) <= steps[name]
            assert set(strokes) <= {*STROKE_VELOCITY, "."}
