"""Scores: every attribute in every setting, each control's own effect, and what adding a control does to the rest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cadenza.evaluation.adherence import LEAST, Adherence, Interval, adherence, paired_difference, score_matrix
from cadenza.evaluation.estimates import Estimate
from cadenza.evaluation.settings import TEXT, ControlSetting, setting_without
from cadenza.evaluation.wishes import ATTRIBUTES, AttributeTargets

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
class AttributeResult:
    """One attribute in one setting: adherence, and the control's own effect where there is something beside it."""

    adherence: Adherence
    asked: int  # clips whose request says something of this attribute
    effect: Interval | None

    @property
    def ceiling_minus_chance(self) -> float:
        """The score from chance to ceiling: what an effect is divided by to be compared with A."""
        return self.adherence.ceiling - self.adherence.chance


def score_settings(
    asked: Sequence[ControlSetting], heard: Heard, *, ceiling: Sequence[Estimate], captions: Sequence[AttributeTargets] = ()
) -> dict[str, dict[str, AttributeResult]]:
    """Every attribute that a setting asks for, with intervals.

    `ceiling` are the reference renders through the codec; `captions` what their captions say, for prompts without one.
    """
    return {setting.name: _measured(setting, asked, heard, ceiling=ceiling, captions=captions) for setting in asked}


def control_effects(
    asked: Sequence[ControlSetting], heard: Heard, found: Mapping[str, Mapping[str, AttributeResult]]
) -> dict[str, dict[str, Interval]]:
    """What each control, added to all others, changes in the attributes of these, as a part of A."""
    whole = next((setting for setting in asked if setting.name == "all"), None)
    changed: dict[str, dict[str, Interval]] = {}
    for control in sorted(whole.given) if whole else ():
        assert whole is not None
        other = setting_without(whole, asked, control)
        if other is None:
            continue
        changed[control] = {}
        for attribute, one in found[whole.name].items():
            if SHOWN_BY.get(attribute) not in other.given or one.ceiling_minus_chance <= LEAST:
                continue
            gap = _gap(attribute, whole, heard, other)
            changed[control][attribute] = Interval(
                gap.value / one.ceiling_minus_chance, gap.low / one.ceiling_minus_chance, gap.high / one.ceiling_minus_chance
            )
    return changed


def _measured(
    setting: ControlSetting,
    asked: Sequence[ControlSetting],
    heard: Heard,
    *,
    ceiling: Sequence[Estimate],
    captions: Sequence[AttributeTargets],
) -> dict[str, AttributeResult]:
    found = {}
    for attribute, met in ATTRIBUTES.items():
        says = _says(attribute, setting, heard)
        if int(says.sum()) < 2 or (attribute == "duration" and not setting.references):
            continue
        table = score_matrix(heard[setting.name], setting.wishes, met, others=OTHERS)
        if setting.references:
            best = torch.tensor([met(e, wish) for e, wish in zip(ceiling, setting.wishes, strict=True)])
        else:  # a prompt without a reference: what references reach with their captions
            reached = torch.tensor([met(e, wish) for e, wish in zip(ceiling, captions, strict=True)])
            best = reached.nanmean().expand(len(setting.wishes))
        scored = adherence(table[:, says][:, :, says], best[says], rng=_rng())
        other = _other(attribute, setting, asked)
        effect = None if other is None else _gap(attribute, setting, heard, other)
        found[attribute] = AttributeResult(scored, int(says.sum()), effect)
    return found


def _other(attribute: str, setting: ControlSetting, asked: Sequence[ControlSetting]) -> ControlSetting | None:
    """The setting without what says this attribute in `setting`, if it was asked."""
    control = SHOWN_BY.get(attribute)
    if control is None:
        return None
    return setting_without(setting, asked, control if control in setting.given else TEXT)


def _gap(attribute: str, setting: ControlSetting, heard: Heard, other: ControlSetting) -> Interval:
    """The score of a setting minus that of another with the same clips and seeds, both against what the first asks."""
    says = _says(attribute, setting, heard)
    own, without = (_own(attribute, setting, heard[name])[:, says] for name in (setting.name, other.name))
    return paired_difference(own, without, rng=_rng())


def _own(attribute: str, setting: ControlSetting, batches: Sequence[Sequence[Estimate]]) -> Tensor:
    met = ATTRIBUTES[attribute]
    return torch.tensor([[met(e, wish) for e, wish in zip(batch, setting.wishes, strict=True)] for batch in batches])


def _says(attribute: str, setting: ControlSetting, heard: Heard) -> Tensor:
    """Which requests say something of an attribute."""
    return ~torch.tensor([ATTRIBUTES[attribute](heard[setting.name][0][0], wish) for wish in setting.wishes]).isnan()


def _rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)
