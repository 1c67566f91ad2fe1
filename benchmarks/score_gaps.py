"""Comparison: what another system scores above a first one on the same requests and seeds."""

from collections.abc import Mapping, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from cadenza.evaluation.adherence import AttributeResult, Estimates, Interval, paired_difference
from cadenza.evaluation.settings import ControlSetting
from cadenza.evaluation.targets import ATTRIBUTES

Gaps = dict[str, dict[str, Float[Tensor, "seeds n"]]]  # by setting and attribute


def score_gaps(
    asked: Sequence[ControlSetting], first: Estimates, other: Estimates, found: Mapping[str, Mapping[str, AttributeResult]]
) -> Gaps:
    """By how much each clip of `other` scores above that of `first`, as a part of the first's A, which `found` holds.

    NaN where a request says nothing of an attribute.
    """
    gaps: Gaps = {}
    for setting in asked:
        for attribute, measured in found[setting.name].items():
            own, others = (_scored(attribute, setting, heard[setting.name]) for heard in (first, other))
            gaps.setdefault(setting.name, {})[attribute] = (others - own) / measured.ceiling_minus_chance
    return gaps


def mean_gaps(found: Gaps) -> dict[str, dict[str, Interval]]:
    """The mean gap in each attribute of each setting, with bounds."""
    return {name: {attribute: _mean(gap) for attribute, gap in row.items()} for name, row in found.items()}


def overall_gap(found: Gaps, settings: Sequence[ControlSetting]) -> Interval:
    """The mean over clips of a clip's mean gap over all that it is asked in, in the settings that ask for references."""
    rows = [gap for setting in settings if setting.references for gap in found[setting.name].values()]
    return _mean(torch.stack(rows).nanmean(0))


def _scored(attribute: str, setting: ControlSetting, heard: Sequence[Sequence[object]]) -> Float[Tensor, "seeds n"]:
    met = ATTRIBUTES[attribute]
    return torch.tensor([[met(e, wish) for e, wish in zip(clips, setting.targets, strict=True)] for clips in heard])  # type: ignore[arg-type]


def _mean(gap: Float[Tensor, "seeds n"]) -> Interval:
    known = gap[:, ~gap.isnan().any(0)]
    return paired_difference(known, torch.zeros_like(known), rng=torch.Generator().manual_seed(0))
