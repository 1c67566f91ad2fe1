"""Captions are true, and held-out phrases appear in held-out corpora only."""

import re

import pytest

from cadenza.corpus.captions import ground_truth, make_captions, tempo_phrase
from cadenza.corpus.compose import compose_piece
from cadenza.corpus.piece import RandomStream, random_stream
from cadenza.corpus.tables import load_tables

TABLES = load_tables()
PHRASES = [p for table in TABLES.phrases.values() for p in table.values()]
PHRASES += [term.phrases for term in TABLES.tempo_terms] + [TABLES.bpm]

LETTERS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
SIGNS = {"": 0, "#": 1, "sharp": 1, "b": -1, "flat": -1}
KEY = re.compile(r"\b([A-G])[ -]?(#|sharp|b|flat)?[ -](major|minor)\b")
NUMBER = re.compile(r"(\d+) ?(?:bpm|BPM|beats)|tempo (?:of )?(\d+)", re.IGNORECASE)
TRUE_OF = {  # words of captions with the labels of which they are true
    "slow": lambda f: f["tempo"] <= 85,
    "unhurried": lambda f: f["tempo"] <= 85,
    "fast": lambda f: f["tempo"] >= 110 or "arpeggio" in (f["accompaniment"] or ""),
    "quick": lambda f: f["tempo"] >= 110,
    "mid-tempo": lambda f: 80 <= f["tempo"] <= 120,
    "violin": lambda f: any(i["name"] == "violin" for i in f["instruments"]),
    "cello": lambda f: any(i["name"] == "cello" for i in f["instruments"]),
    "accordion": lambda f: any(i["name"] == "accordion" for i in f["instruments"]),
    "trumpet": lambda f: any(i["name"] == "trumpet" for i in f["instruments"]),
    "guitar": lambda f: "guitar" in f["families"] or f["genre"] == "rock",
    "piano": lambda f: "piano" in f["families"],
    "drums": lambda f: "drums" in f["families"],
    "solo": lambda f: f["texture"] in ("solo", "alone"),
    "duet": lambda f: f["texture"] == "duo",
    "trio": lambda f: f["texture"] == "trio",
    "waltz": lambda f: f["genre"] == "waltz" or f["metre"] == "3/4",
    "loud": lambda f: f["dynamics"] in ("loud", "medium", "building"),
    "quiet": lambda f: f["dynamics"] == "soft" or "quietly" in str(f["mood"]) or f["mood"] == "calm",
    "minor": lambda f: f["key"].endswith("minor"),
    "major": lambda f: f["key"].endswith("major"),
    "6/8": lambda f: f["metre"] == "6/8",
    "arpeggios": lambda f: "arpeggio" in f["accompaniment"],
}


@pytest.fixture(scope="module")
def clips():
    return [ground_truth(compose_piece(31, i)) for i in range(120)]


def captions_of(clip, index, split):
    return make_captions(clip, random_stream(31, index, RandomStream.CAPTIONS), split)


def all_captions(clips, split):
    for i, clip in enumerate(clips):
        for caption in captions_of(clip, i, split):
            yield clip, caption


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_captions_are_true(clips, split):
    numbers = keys = words = 0
    for clip, caption in all_captions(clips, split):
        for match in NUMBER.finditer(caption.text):
            assert float(match.group(1) or match.group(2)) == clip["tempo"], caption.text
            numbers += 1
        for letter, sign, family in KEY.findall(caption.text):
            tonic = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")[(LETTERS[letter] + SIGNS[sign]) % 12]
            assert f"{tonic} {family}" == clip["key"], caption.text
            keys += 1
        for word, holds in TRUE_OF.items():
            text = caption.text.replace("bass guitar", "bass")
            if re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text, re.IGNORECASE):
                assert holds(clip), (word, caption.text, clip["tempo"], clip["genre"], clip["families"])
                words += 1
    assert numbers > 200
    assert keys > 300
    assert words > 300


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_captions_contain_the_fields_that_they_mention(clips, split):
    for clip, caption in all_captions(clips, split):
        assert ("key" in caption.mentions) == bool(KEY.search(caption.text)), caption.text
        assert ("bpm" in caption.mentions) == bool(NUMBER.search(caption.text)), caption.text
        if "players" in caption.mentions and len({i["name"] for i in clip["instruments"]}) == 1:
            phrases = TABLES.phrases["instrument"][clip["instruments"][0]["name"]]
            assert any(p.lower() in caption.text.lower() for p in (*phrases.train, *phrases.held_out)), caption.text


def test_most_captions_of_a_clip_give_key_and_tempo(clips):
    for i, clip in enumerate(clips):
        captions = captions_of(clip, i, "train")
        sure = [c for c in captions if "key" in c.mentions and {"bpm", "tempo"} & set(c.mentions)]
        assert len(sure) >= len(captions) / 2
        assert len({c.text for c in captions}) == len(captions) == 6


def test_held_out_phrases_are_a_tenth_and_disjoint_from_training_phrases():
    held_out = {phrase for phrases in PHRASES for phrase in phrases.held_out}
    train = {phrase for phrases in PHRASES for phrase in phrases.train}
    assert not held_out & train
    assert 0.08 < len(held_out) / len(held_out | train) < 0.15
    assert not set(TABLES.templates.held_out) & set(TABLES.templates.train)


def test_training_captions_contain_no_held_out_phrase(clips):
    held_out = [
        re.compile(rf"\b{re.escape(p)}\b", re.IGNORECASE) for phrases in PHRASES for p in phrases.held_out if "{" not in p
    ]
    for _, caption in all_captions(clips, "train"):
        assert not caption.unseen
        assert not any(p.search(caption.text) for p in held_out), caption.text


def test_held_out_captions_contain_the_held_out_phrases_that_they_mark(clips):
    held_out = [p.replace("{n}", "") for phrases in PHRASES for p in phrases.held_out]
    marked = 0
    for _, caption in all_captions(clips, "held_out"):
        if caption.unseen:
            marked += 1
            assert any(p.strip().lower() in caption.text.lower() for p in held_out), caption.text
    assert 0.15 < marked / (6 * len(clips)) < 0.8


def test_captions_are_well_formed(clips):
    for split in ("train", "held_out"):
        for _, caption in all_captions(clips, split):
            assert not re.search(r"[\[\]{}]|\s\s|,,| ,|\(\)|\ba [aeio]|\bA [aeio]", caption.text), caption.text
            assert not re.search(r"\b(\w+) \1\b", caption.text, re.IGNORECASE), caption.text
            assert 8 <= len(caption.text) <= 260


@pytest.mark.parametrize("bpm", range(45, 200))
def test_every_tempo_has_a_word(bpm):
    for held_out in (False, True):
        assert tempo_phrase(bpm, random_stream(0, bpm, RandomStream.CAPTIONS), held_out=held_out)


def test_music_does_not_change_with_the_split(clips):
    train = [c.text for c in captions_of(clips[0], 0, "train")]
    held_out = [c.text for c in captions_of(clips[0], 0, "held_out")]
    assert train != held_out
    assert ground_truth(compose_piece(31, 0)) == clips[0]
