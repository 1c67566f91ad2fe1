"""True captions of a piece, each mentioning some of what is known about it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from .chance import flip, pick, shuffled
from .vocabulary import BPM, FIELDS, INSTRUMENTS, SHARPS, TEMPI, TEMPLATES, Split

COUNT = 6
FULL = 4  # captions of a clip, out of COUNT, that are sure to give both tempo and key
UNSEEN = 0.25  # the share of phrases in held-out captions that are drawn from the kept ones
CHANCE = {
    "key": 0.75, "bpm": 0.7, "tempo": 0.55, "mood": 0.5, "genre": 0.6, "players": 0.85,
    "dynamics": 0.3, "density": 0.3, "metre": 0.25, "accompaniment": 0.3, "lead": 1.0, "ensemble": 1.0,
}  # fmt: skip
_FIELD = re.compile(r"\{(\w+)\}")
_OPTION = re.compile(r"\[([^\]]*)\]")


@dataclass(frozen=True)
class Caption:
    """A sentence or list of tags, the attributes it mentions, and those said in kept phrases."""

    text: str
    mentions: tuple[str, ...]
    unseen: tuple[str, ...] = ()


class _Speaker:
    """Puts the facts of one clip into words of one split."""

    def __init__(self, facts: dict[str, Any], rng: np.random.Generator, split: Split) -> None:
        self.facts, self.rng, self.split = facts, rng, split
        self.names = list(dict.fromkeys(i["name"] for i in facts["instruments"]))

    def value(self, field: str) -> tuple[str | None, bool]:
        """The phrase for a field, or None where it does not apply, and whether it is a kept one."""
        unseen = self.split == "held_out" and flip(self.rng, UNSEEN)
        if field == "key":
            return key_phrase(self.facts["key"], self.rng), False
        if field == "bpm":
            return pick(self.rng, BPM.of(unseen=unseen)).format(n=round(self.facts["tempo"])), unseen
        if field == "tempo":
            return tempo_phrase(self.facts["tempo"], self.rng, unseen=unseen), unseen
        if field == "players":
            players = self._players(unseen)
            return players, unseen and any(kept in players for n in self.names for kept in INSTRUMENTS[n].held_out)
        if field == "lead":
            return self._named(self.names[0], unseen), unseen and bool(INSTRUMENTS[self.names[0]].held_out)
        fact = self.facts["texture" if field == "ensemble" else field]
        words = FIELDS[field].get(fact)
        if words is None:
            return None, False
        return pick(self.rng, words.of(unseen=unseen)), unseen and bool(words.held_out)

    def _named(self, name: str, unseen: bool) -> str:
        return pick(self.rng, INSTRUMENTS[name].of(unseen=unseen))

    def _players(self, unseen: bool) -> str:
        """The instruments: all of them, or of a larger group sometimes only two."""
        rng, names = self.rng, self.names
        if len(names) == 1:
            name = self._named(names[0], unseen)
            return pick(rng, (f"solo {name}", f"solo {name}", f"unaccompanied {name}", f"{name} solo", f"{name} alone", name))
        if len(names) > 2 and flip(rng, 0.35):
            names = names[:2] if flip(rng, 0.6) else [names[0], names[-1]]
        said = list(dict.fromkeys(self._named(n, unseen) for n in names))
        if flip(rng, 0.25):
            said = shuffled(rng, said)
        last = said.pop()
        return f"{', '.join(said)} and {last}" if said else last


def key_phrase(key: str, rng: np.random.Generator) -> str:
    """A spelling of a key such as `Bb minor` or `A sharp minor`."""
    tonic, family = key.split()
    return f"{pick(rng, SHARPS[tonic])} {family}"


def tempo_phrase(bpm: float, rng: np.random.Generator, *, unseen: bool = False) -> str:
    """A word such as `slow` or `andante` that is true of a tempo."""
    fitting = [words for low, high, words in TEMPI if low <= bpm <= high]
    common = [words for words in fitting if len(words.train) > 3]
    if unseen:
        fitting = [words for words in fitting if words.held_out]
        return pick(rng, pick(rng, fitting).of(unseen=True))
    return pick(rng, pick(rng, common if flip(rng, 0.65) else fitting).train)


def _article(text: str) -> str:
    vowel = re.compile(r"[aeio8]|u(?!ni|s)", re.IGNORECASE)

    def say(match: re.Match[str]) -> str:
        return match.group(1) + ("n " if vowel.match(match.group(2)) else " ")

    text = re.sub(r"\{(a)\} ?(?=(\S+))", say, text)
    return re.sub(r"\{(A)\} ?(?=(\S+))", say, text)


def _fill(template: str, values: dict[str, str], chosen: set[str]) -> tuple[str, set[str]] | None:
    """The template with its values and the fields used, or None where one it needs is missing."""

    def fields_of(text: str) -> set[str]:
        return {f.lower() for f in _FIELD.findall(text)} - {"a"}

    def option(match: re.Match[str]) -> str:
        return match.group(1) if fields_of(match.group(1)) <= chosen & set(values) else ""

    kept = _OPTION.sub(option, template)
    used = fields_of(kept)
    if not used <= set(values):
        return None
    for field in sorted(used):
        value = values[field]
        kept = kept.replace("{" + field + "}", value)
        kept = kept.replace("{" + field.capitalize() + "}", value[:1].upper() + value[1:])
    text = re.sub(r"\s+", " ", _article(kept)).strip(" ,;:.|")
    text = re.sub(r"\b(\w+) \1\b", r"\1", text)
    return text + ("." if template.endswith(".") else ""), used


def _caption(speaker: _Speaker, *, sure: bool) -> Caption:
    """One caption; if it is to be sure, it gives the key and the tempo in a number or a word."""
    rng, held_out = speaker.rng, speaker.split == "held_out"
    while True:
        template = pick(rng, TEMPLATES.of(unseen=held_out))
        fields = sorted({f.lower() for f in _FIELD.findall(template)} - {"a"})
        said = {f: speaker.value(f) for f in fields}
        chosen = {f for f in fields if flip(rng, CHANCE[f])}
        if sure:
            chosen.add("key")
            if not chosen & {"bpm", "tempo"}:
                chosen.add("bpm" if "tempo" not in fields or flip(rng, 0.6) else "tempo")
        made = _fill(template, {f: v for f, (v, _) in said.items() if v is not None}, chosen)
        if made is None or len(made[1]) < 2:
            continue
        text, used = made
        if sure and not ("key" in used and {"bpm", "tempo"} & used):
            continue
        return Caption(text, tuple(sorted(used)), tuple(f for f in sorted(used) if said[f][1]))


def captions(facts: dict[str, Any], rng: np.random.Generator, split: Split) -> list[Caption]:
    """Six different captions of a clip, true of its facts; the first four give tempo and key."""
    speaker = _Speaker(facts, rng, split)
    found: list[Caption] = []
    while len(found) < COUNT:
        made = _caption(speaker, sure=len(found) < FULL)
        text = made.text[:1].upper() + made.text[1:] if flip(rng, 0.15) else made.text
        if text not in {c.text for c in found}:
            found.append(Caption(text, made.mentions, made.unseen))
    return found
