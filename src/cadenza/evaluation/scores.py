"""Scores: every attribute in every setting, each control's own effect, and what adding a control does to the rest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cadenza.evaluation.adherence import LEAST, Adherence, Interval, adherence, difference, pairings
from cadenza.evaluation.estimates import Estimate
from cadenza.evaluation.settings import TEXT, Setting, beside
from cadenza.evaluation.wishes import ATTRIBUTES, Wish

OTHERS = 40  # requests of other clips that a clip is scored against, at most
Heard = Mapping[str, Sequence[Sequence[Estimate]]]  # by setting, seed and clip

SHOWN_BY = {  # the control that is to be heard in an attribute; a setting without it says it in its text
    "tempo": "tempo",
    "beat": "tempo",
    "key": "key",
    "chords": "chords",
    "chord IoU": "chords",
    "melody": "melody",
    "chroma": "melody",
    "onset": "melody",
    "pace": TEXT,
    "family": TEXT,
}


@dataclass(frozen=True)
class Measured:
    """One attribute in one setting: adherence, and the control's own effect where there is something beside it."""

    adherence: Adherence
    asked: int  # clips whose request says something of this attribute
    effect: Interval | None

    @property
    def room(self) -> float:
        """The score from chance to ceiling: what an effect is divided by to be compared with A."""
        return self.adherence.ceiling - self.adherence.chance


def scores(
    asked: Sequence[Setting], heard: Heard, *, ceiling: Sequence[Estimate], captions: Sequence[Wish] = ()
) -> dict[str, dict[str, Measured]]:
    """Every attribute that a setting asks for, with intervals.

    `ceiling` are the reference renders through the codec; `captions` what their captions say, for prompts without one.
    """
    return {setting.name: _measured(setting, asked, heard, ceiling=ceiling, captions=captions) for setting in asked}


def changes(
    asked: Sequence[Setting], heard: Heard, found: Mapping[str, Mapping[str, Measured]]
) -> dict[str, dict[str, Interval]]:
    """What each control, added to all others, changes in the attributes of these, as a part of A."""
    whole = next((setting for setting in asked if setting.name == "all"), None)
    changed: dict[str, dict[str, Interval]] = {}
    for control in sorted(whole.given) if whole else ():
        assert whole is not None
        other = beside(whole, asked, control)
        if other is None:
            continue
        changed[control] = {}
        for attribute, one in found[whole.name].items():
            if SHOWN_BY.get(attribute) not in other.given or one.room <= LEAST:
                continue
            gap = _gap(attribute, whole, heard, other)
            changed[control][attribute] = Interval(gap.value / one.room, gap.low / one.room, gap.high / one.room)
    return changed


def _measured(
    setting: Setting, asked: Sequence[Setting], heard: Heard, *, ceiling: Sequence[Estimate], captions: Sequence[Wish]
) -> dict[str, Measured]:
    found = {}
    for attribute, met in ATTRIBUTES.items():
        says = _says(attribute, setting, heard)
        if int(says.sum()) < 2 or (attribute == "duration" and not setting.references):
            continue
        table = pairings(heard[setting.name], setting.wishes, met, others=OTHERS)
        if setting.references:
            best = torch.tensor([met(e, wish) for e, wish in zip(ceiling, setting.wishes, strict=True)])
        else:  # a prompt without a reference: what references reach with their captions
            reached = torch.tensor([met(e, wish) for e, wish in zip(ceiling, captions, strict=True)])
            best = reached.nanmean().expand(len(setting.wishes))
        scored = adherence(table[:, says][:, :, says], best[says], rng=_rng())
        other = _other(attribute, setting, asked)
        effect = None if other is None else _gap(attribute, setting, heard, other)
        found[attribute] = Measured(scored, int(says.sum()), effect)
    return found


def _other(attribute: str, setting: Setting, asked: Sequence[Setting]) -> Setting | None:
    """The setting without what says this attribute in `setting`, if it was asked."""
    control = SHOWN_BY.get(attribute)
    if control is None:
        return None
    return beside(setting, asked, control if control in setting.given else TEXT)


def _gap(attribute: str, setting: Setting, heard: Heard, other: Setting) -> Interval:
    """The score of a setting minus that of another with the same clips and seeds, both against what the first asks."""
    says = _says(attribute, setting, heard)
    own, without = (_own(attribute, setting, heard[name])[:, says] for name in (setting.name, other.name))
    return difference(own, without, rng=_rng())


def _own(attribute: str, setting: Setting, batches: Sequence[Sequence[Estimate]]) -> Tensor:
    met = ATTRIBUTES[attribute]
    return torch.tensor([[met(e, wish) for e, wish in zip(batch, setting.wishes, strict=True)] for batch in batches])


def _says(attribute: str, setting: Setting, heard: Heard) -> Tensor:
    """Which requests say something of an attribute."""
    return ~torch.tensor([ATTRIBUTES[attribute](heard[setting.name][0][0], wish) for wish in setting.wishes]).isnan()


def _rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)
