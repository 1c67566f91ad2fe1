"""Adherence: how far outputs obey their requests, between chance and what reference renders reach."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from cadenza.evaluation.estimators import Estimate
from cadenza.evaluation.settings import TEXT, ControlSetting, setting_without
from cadenza.evaluation.targets import ATTRIBUTES, AttributeTargets

DRAWS = 2000
LEAST = 0.02  # a ceiling less than this above chance leaves nothing to measure


@dataclass(frozen=True)
class Interval:
    """A value with the bounds between which it falls in 95 of 100 bootstrap draws."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Adherence:
    """A = (score - chance) / (ceiling - chance), and what it is made of."""

    value: Interval
    score: Interval
    chance: float
    ceiling: float
    clips: int
    seeds: int


def score_matrix(
    outputs: Sequence[Sequence[Any]],
    requests: Sequence[Any],
    score: Callable[[Any, Any], float],
    *,
    others: int | None = None,
) -> Float[Tensor, "seeds n n"]:
    """The score of every output against its request and all others, or so many that follow it: `outputs[seed][clip]`.

    NaN where a request says nothing, and for pairs that are not scored.
    """
    n = len(requests)
    reach = n if others is None else min(n, others + 1)
    table = torch.full((len(outputs), n, n), math.nan)
    for seed, clips in enumerate(outputs):
        for i, output in enumerate(clips):
            for step in range(reach):
                j = (i + step) % n
                table[seed, i, j] = score(output, requests[j])
    return table


def adherence(
    table: Float[Tensor, "seeds n n"], reference: Float[Tensor, " n"], *, rng: torch.Generator, draws: int = DRAWS
) -> Adherence:
    """Adherence from the score of every output against every request.

    The score is the mean of the diagonal. Chance is the mean of all other pairs that were scored, which is what
    shuffling the requests gives in the limit of many shuffles. `reference` holds the scores of the reference renders
    through the codec. The bounds come from drawing clips and seeds anew, with replacement.
    """
    table = table.double()
    seeds, clips = table.shape[:2]
    if clips < 2 or table.shape[2] != clips or reference.shape != (clips,):
        raise ValueError(
            f"a square table of two and more clips and as many references are needed: {table.shape}, {reference.shape}"
        )
    plain = _parts(table, reference.double(), torch.ones(1, seeds).double(), torch.ones(1, clips).double())
    seed = torch.randint(seeds, (draws, seeds), generator=rng)
    clip = torch.randint(clips, (draws, clips), generator=rng)
    drawn = _parts(table, reference.double(), _counts(seed, seeds), _counts(clip, clips))
    score, chance, ceiling = (float(part[0]) for part in plain)
    return Adherence(_interval(_ratio(*plain), _ratio(*drawn)), _interval(plain[0], drawn[0]), chance, ceiling, clips, seeds)


def paired_difference(
    with_control: Float[Tensor, "seeds n"], without: Float[Tensor, "seeds n"], *, rng: torch.Generator, draws: int = DRAWS
) -> Interval:
    """A control's own effect: the mean score with it minus that without it, on the same clips and seeds."""
    gap = (with_control - without).double()
    seeds, clips = gap.shape
    seed = _counts(torch.randint(seeds, (draws, seeds), generator=rng), seeds)
    clip = _counts(torch.randint(clips, (draws, clips), generator=rng), clips)
    means = torch.einsum("rs,sn,rn->r", seed, gap, clip) / (seeds * clips)
    return _interval(gap.mean()[None], means)


def bootstrap_mean(values: Float[Tensor, " n"], *, rng: torch.Generator, draws: int = DRAWS) -> Interval:
    """The mean of one value a clip, with its bounds."""
    return paired_difference(values[None], torch.zeros_like(values)[None], rng=rng, draws=draws)


def _parts(table: Tensor, reference: Tensor, seeds: Tensor, clips: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Score, chance and ceiling, for each row of weights of seeds [r s] and clips [r n]."""
    seeds = seeds / seeds.sum(-1, keepdim=True)
    there = (~table.isnan()).double()
    own = torch.einsum("rs,snn->rn", seeds, table.nan_to_num())
    own_there = torch.einsum("rs,snn->rn", seeds, there)
    score = (own * clips).sum(-1) / (own_there * clips).sum(-1)
    total, number = _pairs(table.nan_to_num(), seeds, clips), _pairs(there, seeds, clips)
    chance = (total - (own * clips.square()).sum(-1)) / (number - (own_there * clips.square()).sum(-1))
    known = (~reference.isnan()).double()
    ceiling = (reference.nan_to_num() * clips).sum(-1) / (known * clips).sum(-1)
    return score, chance, ceiling


def _pairs(x: Tensor, seeds: Tensor, clips: Tensor) -> Tensor:
    """Sum over seeds, outputs and requests of weight times weight times x, without a table for every draw."""
    total = torch.zeros(len(seeds), dtype=x.dtype)
    for s in range(x.shape[0]):
        total += seeds[:, s] * ((clips @ x[s]) * clips).sum(-1)
    return total


def _ratio(score: Tensor, chance: Tensor, ceiling: Tensor) -> Tensor:
    room = ceiling - chance
    return torch.where(room > LEAST, (score - chance) / room, math.nan)


def _counts(drawn: Tensor, n: int) -> Tensor:
    return torch.zeros(len(drawn), n, dtype=torch.float64).scatter_add_(1, drawn, torch.ones(drawn.shape, dtype=torch.float64))


def _interval(value: Tensor, drawn: Tensor) -> Interval:
    known = drawn[~drawn.isnan()]
    if len(known) == 0 or bool(value.isnan().any()):
        return Interval(math.nan, math.nan, math.nan)
    low, high = torch.quantile(known, torch.tensor([0.025, 0.975], dtype=known.dtype)).tolist()
    return Interval(float(value[0]), low, high)


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
