"""Exact labels of a piece, and captions that mention some of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from .piece import Piece, bernoulli, choice, shuffled
from .tables import Split, load_tables

SPARSE, BUSY = 2.2, 4.0  # note starts per second below and above which a piece is sparse or busy
COUNT = 6  # captions per clip
COUNT_COMPLETE = 4  # captions of these that give both tempo and key
UNSEEN_SHARE = 0.25  # of the phrases in held-out captions that are held-out phrases
FIELD_PROBABILITIES = {
    "key": 0.75, "bpm": 0.7, "tempo": 0.55, "mood": 0.5, "genre": 0.6, "players": 0.85,
    "dynamics": 0.3, "density": 0.3, "metre": 0.25, "accompaniment": 0.3, "lead": 1.0, "ensemble": 1.0,
}  # fmt: skip
_FIELD = re.compile(r"\{(\w+)\}")
_OPTION = re.compile(r"\[([^\]]*)\]")
_ARTICLE = re.compile(r"\{([aA])\} ?(?=(\S+))")
_VOWEL = re.compile(r"[aeio8]|u(?!ni|s)", re.IGNORECASE)


def ground_truth(piece: Piece) -> dict[str, Any]:
    """Return all labels of a piece as plain data, with times in seconds from the first sample."""
    plan = piece.plan
    beats = [round(b * plan.beat_seconds, 3) for b in range(plan.beats)]
    instruments = {
        (part.role, part.instrument.name): {
            "role": part.role,
            "program": part.instrument.program,
            "name": part.instrument.name,
            "family": part.instrument.family,
        }
        for part in plan.parts
    }
    notes = [[*piece.note_to_seconds(note), note.pitch, note.velocity, note.role] for note in piece.notes]
    return {
        "seconds": plan.seconds,
        "tempo": float(plan.bpm),
        "key": plan.key.name,
        "mode": plan.key.mode,
        "metre": plan.time_signature.name,
        "bars": plan.bars,
        "genre": plan.genre.name,
        "mood": plan.mood,
        "texture": plan.ensemble,
        "accompaniment": plan.accompaniment if plan.find_part("chords") else None,
        "dynamics": plan.dynamics,
        "density": density_class(piece),
        "instruments": list(instruments.values()),
        "families": sorted({p.instrument.family for p in plan.parts}),
        "lead_family": plan.parts[0].instrument.family,
        "chords": chord_labels(piece),
        "melody": [note[:3] for note in sorted(notes) if note[4] == "melody"],
        "beats": beats,
        "downbeats": beats[:: plan.beats_per_bar],
        "notes": sorted(notes, key=lambda n: (n[0], n[2], n[4])),
    }


def density_class(piece: Piece) -> str:
    """Return `sparse`, `medium` or `busy`, by the distinct note starts per second without drums."""
    starts = {round(n.start, 3) for n in piece.notes if n.role != "drums"}
    rate = len(starts) / (piece.plan.beats * piece.plan.beat_seconds)
    return "sparse" if rate < SPARSE else "busy" if rate > BUSY else "medium"


def chord_labels(piece: Piece) -> list[list[Any]]:
    """Return start, end in seconds and label of each chord, repeats merged, until the end of the clip."""
    plan, chords = piece.plan, []
    for label, group in groupby(piece.segments, key=lambda s: s.chord.label):
        segments = list(group)
        start, end = segments[0].start * plan.beat_seconds, segments[-1].end * plan.beat_seconds
        chords.append([round(start, 3), round(end, 3), label])
    chords[-1][1] = plan.seconds
    return chords


@dataclass(frozen=True)
class Caption:
    """A sentence or list of tags, the fields it mentions, and those of them in held-out phrases."""

    text: str
    mentions: tuple[str, ...]
    unseen: tuple[str, ...] = ()


def make_captions(labels: dict[str, Any], rng: np.random.Generator, split: Split) -> list[Caption]:
    """Return six different captions that agree with the labels; the first four give tempo and key."""
    writer = _CaptionWriter(labels, rng, split)
    captions: dict[str, Caption] = {}
    while len(captions) < COUNT:
        caption = writer.write(complete=len(captions) < COUNT_COMPLETE)
        text = _capitalize(caption.text) if bernoulli(rng, 0.15) else caption.text
        captions.setdefault(text, Caption(text, caption.mentions, caption.unseen))
    return list(captions.values())


def tempo_phrase(bpm: float, rng: np.random.Generator, *, held_out: bool = False) -> str:
    """Return a phrase such as `slow` or `andante` that is true of a tempo."""
    phrases = [term.phrases for term in load_tables().tempo_terms if term.low <= bpm <= term.high]
    if held_out:
        return choice(rng, choice(rng, [p for p in phrases if p.held_out]).held_out)
    common = [p for p in phrases if len(p.train) > 3]
    return choice(rng, choice(rng, common if bernoulli(rng, 0.65) else phrases).train)


class _CaptionWriter:
    """Writes captions of one clip in the phrases of one split."""

    def __init__(self, labels: dict[str, Any], rng: np.random.Generator, split: Split) -> None:
        self.labels, self.rng, self.held_out = labels, rng, split == "held_out"
        self.instruments = list(dict.fromkeys(i["name"] for i in labels["instruments"]))

    def write(self, *, complete: bool) -> Caption:
        """Return a caption of a random template; a complete one gives key and tempo."""
        templates = load_tables().templates.choose_split(held_out=self.held_out)
        while True:
            template = choice(self.rng, templates)
            fields = sorted(_fields_of(template))
            phrases = {field: self._phrase(field) for field in fields}
            chosen = {field for field in fields if bernoulli(self.rng, FIELD_PROBABILITIES[field])}
            if complete:
                chosen.add("key")
                if not chosen & {"bpm", "tempo"}:
                    chosen.add("bpm" if "tempo" not in fields or bernoulli(self.rng, 0.6) else "tempo")
            text, used = _fill(template, {field: text for field, (text, _) in phrases.items() if text is not None}, chosen)
            if len(used) >= 2 and (not complete or ("key" in used and {"bpm", "tempo"} & used)):
                return Caption(text, tuple(sorted(used)), tuple(f for f in sorted(used) if phrases[f][1]))

    def _phrase(self, field: str) -> tuple[str | None, bool]:
        """Return the phrase of a field, None if it does not apply, and whether it is a held-out one."""
        tables, rng, labels = load_tables(), self.rng, self.labels
        unseen = self.held_out and bernoulli(rng, UNSEEN_SHARE)
        if field == "key":
            tonic, tonality = labels["key"].split()
            return f"{choice(rng, tables.tonics[tonic])} {tonality}", False
        if field == "bpm":
            return choice(rng, tables.bpm.choose_split(held_out=unseen)).format(n=round(labels["tempo"])), unseen
        if field == "tempo":
            return tempo_phrase(labels["tempo"], rng, held_out=unseen), unseen
        if field == "players":
            players = self._players(unseen)
            names = [name for i in self.instruments for name in tables.phrases["instrument"][i].held_out]
            return players, unseen and any(name in players for name in names)
        if field == "lead":
            phrases = tables.phrases["instrument"][self.instruments[0]]
        else:
            phrases = tables.phrases[field].get(labels["texture" if field == "ensemble" else field])
        if phrases is None:
            return None, False
        return choice(rng, phrases.choose_split(held_out=unseen)), unseen and bool(phrases.held_out)

    def _players(self, unseen: bool) -> str:
        """Return the names of all instruments, or sometimes of two of a larger group."""
        rng, instruments = self.rng, self.instruments

        def choose_name(instrument: str) -> str:
            return choice(rng, load_tables().phrases["instrument"][instrument].choose_split(held_out=unseen))

        if len(instruments) == 1:
            name = choose_name(instruments[0])
            return choice(rng, (f"solo {name}", f"solo {name}", f"unaccompanied {name}", f"{name} solo", f"{name} alone", name))
        if len(instruments) > 2 and bernoulli(rng, 0.35):
            instruments = instruments[:2] if bernoulli(rng, 0.6) else [instruments[0], instruments[-1]]
        names = list(dict.fromkeys(choose_name(i) for i in instruments))
        if bernoulli(rng, 0.25):
            names = shuffled(rng, names)
        *others, last = names
        return f"{', '.join(others)} and {last}" if others else last


def _fields_of(template: str) -> set[str]:
    return {field.lower() for field in _FIELD.findall(template)} - {"a"}


def _fill(template: str, phrases: dict[str, str], chosen: set[str]) -> tuple[str, set[str]]:
    """Return the text of a template and the fields it uses; none if a required phrase is absent."""

    def keep_option(match: re.Match[str]) -> str:
        return match[1] if _fields_of(match[1]) <= chosen & set(phrases) else ""

    text = _OPTION.sub(keep_option, template)
    used = _fields_of(text)
    if not used <= set(phrases):
        return "", set()
    for field in sorted(used):
        text = text.replace("{" + field + "}", phrases[field])
        text = text.replace("{" + field.capitalize() + "}", _capitalize(phrases[field]))
    text = _ARTICLE.sub(lambda match: match[1] + ("n " if _VOWEL.match(match[2]) else " "), text)
    text = re.sub(r"\s+", " ", text).strip(" ,;:.|")
    text = re.sub(r"\b(\w+) \1\b", r"\1", text)
    return text + ("." if template.endswith(".") else ""), used


def _capitalize(text: str) -> str:
    return text[:1].upper() + text[1:]
