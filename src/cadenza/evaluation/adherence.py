"""Adherence: scores of outputs against their requests, scaled from chance (0) to reference renders (1)."""

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

NUM_DRAWS = 2000  # of the bootstrap
MIN_RANGE = 0.02  # with a ceiling closer to chance than this, adherence is NaN
MAX_OTHERS = 40  # requests of other clips that a clip is scored against
Estimates = Mapping[str, Sequence[Sequence[Estimate]]]  # by setting, seed and clip
CONTROL_OF = {  # the control that an attribute measures; in a setting without it, the text expresses the attribute
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
class Interval:
    """A value with the bounds of its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Adherence:
    """A = (score - chance) / (ceiling - chance), with its terms and the numbers of clips and seeds."""

    value: Interval
    score: Interval
    chance: float
    ceiling: float
    clips: int
    seeds: int


@dataclass(frozen=True)
class AttributeResult:
    """Adherence of one attribute in one setting, and the own effect of its control where another control is given too."""

    adherence: Adherence
    asked: int  # clips whose request has a target for this attribute
    effect: Interval | None

    @property
    def ceiling_minus_chance(self) -> float:
        """Range of the score; an effect divided by it has the unit of A."""
        return self.adherence.ceiling - self.adherence.chance


def score_matrix(
    outputs: Sequence[Sequence[Any]],
    requests: Sequence[Any],
    score: Callable[[Any, Any], float],
    *,
    others: int | None = None,
) -> Float[Tensor, "seeds n n"]:
    """Score every output `outputs[seed][clip]` against its own request and the next `others` requests (all by default).

    NaN where a request has no target, and for pairs that are not scored.
    """
    n = len(requests)
    steps = n if others is None else min(n, others + 1)
    table = torch.full((len(outputs), n, n), math.nan)
    for seed, clips in enumerate(outputs):
        for i, output in enumerate(clips):
            for step in range(steps):
                j = (i + step) % n
                table[seed, i, j] = score(output, requests[j])
    return table


def adherence(
    table: Float[Tensor, "seeds n n"], reference: Float[Tensor, " n"], *, rng: torch.Generator, draws: int = NUM_DRAWS
) -> Adherence:
    """Compute adherence from the scores of every output against every request.

    The score is the mean of the diagonal. Chance is the mean of all other scored pairs, the limit of shuffling the
    requests many times. `reference` [n] holds the scores of the reference renders through the codec. The bounds come
    from resampling clips and seeds with replacement. Raises ValueError for other shapes or fewer than two clips.
    """
    table, reference = table.double(), reference.double()
    seeds, clips = table.shape[:2]
    if clips < 2 or table.shape[2] != clips or reference.shape != (clips,):
        raise ValueError(
            f"The score table {tuple(table.shape)} or the references {tuple(reference.shape)} have a wrong shape. "
            "Expected a square table [seeds, n, n] with n >= 2 and references [n]."
        )
    plain = _score_chance_ceiling(table, reference, torch.ones(1, seeds).double(), torch.ones(1, clips).double())
    drawn = _score_chance_ceiling(table, reference, *_resample(seeds, clips, draws, rng))
    score, chance, ceiling = (float(part[0]) for part in plain)
    return Adherence(_interval(_ratio(*plain), _ratio(*drawn)), _interval(plain[0], drawn[0]), chance, ceiling, clips, seeds)


def paired_difference(
    with_control: Float[Tensor, "seeds n"], without: Float[Tensor, "seeds n"], *, rng: torch.Generator, draws: int = NUM_DRAWS
) -> Interval:
    """Mean score with a control minus the mean score without it, on the same clips and seeds."""
    gap = (with_control - without).double()
    seeds, clips = gap.shape
    seed, clip = _resample(seeds, clips, draws, rng)
    means = torch.einsum("rs,sn,rn->r", seed, gap, clip) / (seeds * clips)
    return _interval(gap.mean()[None], means)


def _score_chance_ceiling(
    table: Tensor, reference: Tensor, seeds: Float[Tensor, "r s"], clips: Float[Tensor, "r n"]
) -> tuple[Tensor, Tensor, Tensor]:
    """Score, chance and ceiling, each [r], for each row of weights of seeds and clips."""
    seeds = seeds / seeds.sum(-1, keepdim=True)
    scored = (~table.isnan()).double()
    own = torch.einsum("rs,snn->rn", seeds, table.nan_to_num())
    own_scored = torch.einsum("rs,snn->rn", seeds, scored)
    score = (own * clips).sum(-1) / (own_scored * clips).sum(-1)
    total, number = _weighted_sum(table.nan_to_num(), seeds, clips), _weighted_sum(scored, seeds, clips)
    chance = (total - (own * clips.square()).sum(-1)) / (number - (own_scored * clips.square()).sum(-1))
    known = (~reference.isnan()).double()
    ceiling = (reference.nan_to_num() * clips).sum(-1) / (known * clips).sum(-1)
    return score, chance, ceiling


def _weighted_sum(x: Tensor, seeds: Tensor, clips: Tensor) -> Tensor:
    """Sum over seeds, outputs and requests of weight times weight times x, without a table for every draw."""
    total = torch.zeros(len(seeds), dtype=x.dtype)
    for s in range(x.shape[0]):
        total += seeds[:, s] * ((clips @ x[s]) * clips).sum(-1)
    return total


def _ratio(score: Tensor, chance: Tensor, ceiling: Tensor) -> Tensor:
    return torch.where(ceiling - chance > MIN_RANGE, (score - chance) / (ceiling - chance), math.nan)


def _resample(seeds: int, clips: int, draws: int, rng: torch.Generator) -> list[Float[Tensor, "draws n"]]:
    """Draw seeds, then clips, with replacement; return how often each was drawn."""
    drawn = [torch.randint(n, (draws, n), generator=rng) for n in (seeds, clips)]
    return [torch.zeros(x.shape).double().scatter_add_(1, x, torch.ones(x.shape).double()) for x in drawn]


def _interval(value: Tensor, drawn: Tensor) -> Interval:
    known = drawn[~drawn.isnan()]
    if len(known) == 0 or bool(value.isnan().any()):
        return Interval(math.nan, math.nan, math.nan)
    low, high = torch.quantile(known, torch.tensor([0.025, 0.975], dtype=known.dtype)).tolist()
    return Interval(float(value[0]), low, high)


def score_settings(
    settings: Sequence[ControlSetting],
    estimates: Estimates,
    *,
    ceiling: Sequence[Estimate],
    captions: Sequence[AttributeTargets] = (),
) -> dict[str, dict[str, AttributeResult]]:
    """Score every attribute that a setting requests, by setting and attribute.

    `ceiling` holds estimates of the reference renders through the codec, `captions` the targets of their captions, which
    give the ceiling of prompts without a reference.
    """
    results: dict[str, dict[str, AttributeResult]] = {}
    for setting in settings:
        results[setting.name] = {}
        for attribute, score in ATTRIBUTES.items():
            mask = _has_target(attribute, setting, estimates)
            if int(mask.sum()) < 2 or (attribute == "duration" and not setting.references):
                continue
            table = score_matrix(estimates[setting.name], setting.targets, score, others=MAX_OTHERS)
            if setting.references:
                reference = torch.tensor([score(e, targets) for e, targets in zip(ceiling, setting.targets, strict=True)])
            else:
                reached = torch.tensor([score(e, targets) for e, targets in zip(ceiling, captions, strict=True)])
                reference = reached.nanmean().expand(len(setting.targets))
            value = adherence(table[:, mask][:, :, mask], reference[mask], rng=_rng())
            control = CONTROL_OF.get(attribute)
            given = control if control in setting.controls else TEXT
            other = None if control is None else setting_without(setting, settings, given)
            effect = None if other is None else _effect(attribute, setting, estimates, other)
            results[setting.name][attribute] = AttributeResult(value, int(mask.sum()), effect)
    return results


def control_effects(
    settings: Sequence[ControlSetting], estimates: Estimates, results: Mapping[str, Mapping[str, AttributeResult]]
) -> dict[str, dict[str, Interval]]:
    """Change of A in the attributes of all other controls when a control is added, by control and attribute."""
    effects: dict[str, dict[str, Interval]] = {}
    for complete, control in [(s, control) for s in settings if s.name == "all" for control in sorted(s.controls)]:
        other = setting_without(complete, settings, control)
        if other is None:
            continue
        effects[control] = {}
        for attribute, result in results[complete.name].items():
            span = result.ceiling_minus_chance
            if CONTROL_OF.get(attribute) in other.controls and span > MIN_RANGE:
                gap = _effect(attribute, complete, estimates, other)
                effects[control][attribute] = Interval(gap.value / span, gap.low / span, gap.high / span)
    return effects


def _effect(attribute: str, setting: ControlSetting, estimates: Estimates, other: ControlSetting) -> Interval:
    """Score of a setting minus that of another with the same clips and seeds, on the targets of the first."""
    mask, score = _has_target(attribute, setting, estimates), ATTRIBUTES[attribute]
    own, without = (
        torch.tensor([[score(e, targets) for e, targets in zip(batch, setting.targets, strict=True)] for batch in batches])
        for batches in (estimates[setting.name], estimates[other.name])
    )
    return paired_difference(own[:, mask], without[:, mask], rng=_rng())


def _has_target(attribute: str, setting: ControlSetting, estimates: Estimates) -> Tensor:
    """Mask [n] of the requests that have a target for an attribute."""
    estimate = estimates[setting.name][0][0]
    return ~torch.tensor([ATTRIBUTES[attribute](estimate, targets) for targets in setting.targets]).isnan()


def _rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)
