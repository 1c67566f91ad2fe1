"""Captions: what they say is true, and what is kept for held-out corpora stays kept."""

import re

import pytest

from cadenza.data.corpus import vocabulary
from cadenza.data.corpus.captions import captions, tempo_phrase
from cadenza.data.corpus.chance import Stream, stream
from cadenza.data.corpus.compose import compose
from cadenza.data.corpus.truth import truth

WORDS = [w for table in (vocabulary.INSTRUMENTS, *vocabulary.FIELDS.values()) for w in table.values()]
WORDS += [w for *_, w in vocabulary.TEMPI] + [vocabulary.BPM]

LETTERS = {"C": 0, "D": 2, "E": 4, "F": 5, "G": 7, "A": 9, "B": 11}
SIGNS = {"": 0, "#": 1, "sharp": 1, "b": -1, "flat": -1}
KEY = re.compile(r"\b([A-G])[ -]?(#|sharp|b|flat)?[ -](major|minor)\b")
NUMBER = re.compile(r"(\d+) ?(?:bpm|BPM|beats)|tempo (?:of )?(\d+)", re.IGNORECASE)
TRUE_OF = {  # words of captions with the truth they claim
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
def facts():
    return [truth(compose(31, i)) for i in range(120)]


def said(facts, split):
    for i, fact in enumerate(facts):
        for caption in captions(fact, stream(31, i, Stream.CAPTIONS), split):
            yield fact, caption


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_captions_are_true(facts, split):
    numbers = keys = words = 0
    for fact, caption in said(facts, split):
        for found in NUMBER.finditer(caption.text):
            assert float(found.group(1) or found.group(2)) == fact["tempo"], caption.text
            numbers += 1
        for letter, sign, family in KEY.findall(caption.text):
            tonic = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")[(LETTERS[letter] + SIGNS[sign]) % 12]
            assert f"{tonic} {family}" == fact["key"], caption.text
            keys += 1
        for word, holds in TRUE_OF.items():
            text = caption.text.replace("bass guitar", "bass")
            if re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", text, re.IGNORECASE):
                assert holds(fact), (word, caption.text, fact["tempo"], fact["genre"], fact["families"])
                words += 1
    assert numbers > 200
    assert keys > 300
    assert words > 300


@pytest.mark.parametrize("split", ["train", "held_out"])
def test_what_a_caption_is_said_to_mention_is_in_it(facts, split):
    for fact, caption in said(facts, split):
        assert ("key" in caption.mentions) == bool(KEY.search(caption.text)), caption.text
        assert ("bpm" in caption.mentions) == bool(NUMBER.search(caption.text)), caption.text
        if "players" in caption.mentions and len({i["name"] for i in fact["instruments"]}) == 1:
            phrases = vocabulary.INSTRUMENTS[fact["instruments"][0]["name"]]
            assert any(p.lower() in caption.text.lower() for p in (*phrases.train, *phrases.held_out)), caption.text


def test_most_captions_of_a_clip_give_key_and_tempo(facts):
    for i, fact in enumerate(facts):
        found = captions(fact, stream(31, i, Stream.CAPTIONS), "train")
        sure = [c for c in found if "key" in c.mentions and {"bpm", "tempo"} & set(c.mentions)]
        assert len(sure) >= len(found) / 2
        assert len({c.text for c in found}) == len(found) == 6


def test_kept_phrases_are_a_tenth_and_disjoint_from_those_for_training():
    kept = {phrase for w in WORDS for phrase in w.held_out}
    trained = {phrase for w in WORDS for phrase in w.train}
    assert not kept & trained
    assert 0.08 < len(kept) / len(kept | trained) < 0.15
    assert not set(vocabulary.TEMPLATES.held_out) & set(vocabulary.TEMPLATES.train)


def test_training_captions_never_say_a_kept_phrase(facts):
    kept = [re.compile(rf"\b{re.escape(p)}\b", re.IGNORECASE) for w in WORDS for p in w.held_out if "{" not in p]
    for _, caption in said(facts, "train"):
        assert not caption.unseen
        assert not any(p.search(caption.text) for p in kept), caption.text


def test_held_out_captions_say_kept_phrases_where_they_are_said_to(facts):
    kept = [p.replace("{n}", "") for w in WORDS for p in w.held_out]
    marked = 0
    for _, caption in said(facts, "held_out"):
        if caption.unseen:
            marked += 1
            assert any(p.strip().lower() in caption.text.lower() for p in kept), caption.text
    assert 0.15 < marked / (6 * len(facts)) < 0.8


def test_captions_read_like_language(facts):
    for split in ("train", "held_out"):
        for _, caption in said(facts, split):
            assert not re.search(r"[\[\]{}]|\s\s|,,| ,|\(\)|\ba [aeio]|\bA [aeio]", caption.text), caption.text
            assert not re.search(r"\b(\w+) \1\b", caption.text, re.IGNORECASE), caption.text
            assert 8 <= len(caption.text) <= 260


@pytest.mark.parametrize("bpm", range(45, 200))
def test_every_tempo_has_a_word(bpm):
    for unseen in (False, True):
        assert tempo_phrase(bpm, stream(0, bpm, Stream.CAPTIONS), unseen=unseen)


def test_music_does_not_change_with_the_split(facts):
    train = [c.text for c in captions(facts[0], stream(31, 0, Stream.CAPTIONS), "train")]
    held_out = [c.text for c in captions(facts[0], stream(31, 0, Stream.CAPTIONS), "held_out")]
    assert train != held_out
    assert truth(compose(31, 0)) == facts[0]
