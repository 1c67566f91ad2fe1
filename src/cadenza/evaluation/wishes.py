"""Wishes: what a request asks for in terms the estimators can check, and how well an estimate meets it."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from cadenza.data.corpus.vocabulary import INSTRUMENTS, TEMPI
from cadenza.evaluation.estimates import TOLERANCE, Estimate
from cadenza.evaluation.labels import key_class


@dataclass(frozen=True)
class Wish:
    """What a request says; None for what it leaves open.

    `tempo` is a number of beats a minute and `pace` the range that a word such as 'slow' stands for. `families`
    are wanted; `open` ones may play or not.
    """

    tempo: float | None = None
    pace: tuple[float, float] | None = None
    key: int | None = None
    families: Bool[Tensor, " n"] | None = None
    open: Bool[Tensor, " n"] | None = None


def tempo_met(estimate: Estimate, wish: Wish) -> float:
    """1 within 4 % of the wanted number."""
    return math.nan if wish.tempo is None else float(abs(estimate.tempo - wish.tempo) <= TOLERANCE * wish.tempo)


def pace_met(estimate: Estimate, wish: Wish) -> float:
    """1 within 4 % of the range that the tempo word stands for."""
    if wish.pace is None:
        return math.nan
    low, high = wish.pace
    return float(low * (1 - TOLERANCE) <= estimate.tempo <= high * (1 + TOLERANCE))


def key_met(estimate: Estimate, wish: Wish) -> float:
    """1 for exactly the wanted key."""
    return math.nan if wish.key is None else float(estimate.key == wish.key)


def families_met(estimate: Estimate, wish: Wish) -> float:
    """F1 of the families heard against those wanted, the open ones left out."""
    if wish.families is None or wish.open is None:
        return math.nan
    heard = (estimate.families >= 0.5) & ~wish.open
    right = int((heard & wish.families).sum())
    total = int(heard.sum() + wish.families.sum())
    return 2 * right / total if total else 1.0


ATTRIBUTES = {"tempo": tempo_met, "pace": pace_met, "key": key_met, "family": families_met}


def of_values(sidecar: Mapping[str, Any]) -> Wish:
    """The wish that tempo and key given as values express."""
    return Wish(tempo=float(sidecar["tempo"]), key=key_class(sidecar["key"]))


def of_caption(text: str, mentions: Sequence[str], sidecar: Mapping[str, Any], families: Sequence[str]) -> Wish:
    """The wish that a corpus caption expresses: the truths it mentions, its players as far as they are named.

    Families that truly play but go unmentioned are open; those that neither play nor are named are unwanted.
    """
    said = set(mentions)
    wanted = torch.zeros(len(families), dtype=torch.bool)
    if said & {"players", "lead"}:
        for player in sidecar["instruments"]:
            if _named(player["name"], text):
                wanted[families.index(player["family"])] = True
    plays = torch.tensor([name in sidecar["families"] for name in families])
    tempo = float(sidecar["tempo"])
    return Wish(
        tempo=tempo if "bpm" in said else None,
        pace=_pace(text, tempo) if "tempo" in said else None,
        key=key_class(sidecar["key"]) if "key" in said else None,
        families=wanted if wanted.any() else None,
        open=plays & ~wanted if wanted.any() else None,
    )


def _named(instrument: str, text: str) -> bool:
    """Whether a text holds one of an instrument's names as whole words."""
    words = INSTRUMENTS[instrument]
    return any(_holds(text, name) for name in (*words.train, *words.held_out))


def _pace(text: str, tempo: float) -> tuple[float, float] | None:
    """The range of the longest tempo phrase in a text that is true of the tempo."""
    found = [
        (len(phrase), float(low), float(high))
        for low, high, words in TEMPI
        if low <= tempo <= high
        for phrase in (*words.train, *words.held_out)
        if _holds(text, phrase)
    ]
    return max(found)[1:] if found else None


def _holds(text: str, phrase: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(phrase)}(?![\w-])", text, re.IGNORECASE) is not None


@cache
def hand_written() -> tuple[dict[str, Any], ...]:
    """Sixty sentences as a musician would write them, with what each asks for."""
    return tuple(json.loads(Path(__file__).with_name("prompts.json").read_text()))


def of_prompt(entry: Mapping[str, Any], families: Sequence[str]) -> Wish:
    """The wish that a hand-written prompt expresses; with `only`, families that it does not name are unwanted."""
    wanted = torch.tensor([name in entry["families"] for name in families])
    pace = entry.get("pace")
    return Wish(
        tempo=entry.get("tempo"),
        pace=None if pace is None else (pace[0], pace[1]),
        key=key_class(entry["key"]) if "key" in entry else None,
        families=wanted,
        open=torch.zeros_like(wanted) if entry["only"] else ~wanted,
    )
