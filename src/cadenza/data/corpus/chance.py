"""Draws from a numpy generator that use its uniforms only, so that numpy's versions agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import TypeVar

import numpy as np

T = TypeVar("T")


class Stream(IntEnum):
    """The independent random streams of one clip."""

    COMPOSE = 0
    CAPTIONS = 1
    ROOM = 2


def stream(seed: int, index: int, purpose: Stream) -> np.random.Generator:
    """The random generator of one purpose of clip `index` in a corpus with this seed."""
    return np.random.default_rng([seed, index, int(purpose)])


def pick(rng: np.random.Generator, items: Sequence[T]) -> T:
    """One of the items, all equally likely."""
    return items[int(rng.random() * len(items))]


def weighted(rng: np.random.Generator, weights: Mapping[T, float]) -> T:
    """One of the keys, with probability proportional to its weight."""
    point = rng.random() * sum(weights.values())
    for item, weight in weights.items():
        point -= weight
        if point < 0:
            return item
    return list(weights)[-1]


def between(rng: np.random.Generator, low: float, high: float) -> float:
    """A number drawn evenly from low to high."""
    return low + (high - low) * rng.random()


def flip(rng: np.random.Generator, probability: float) -> bool:
    """True with the given probability."""
    return bool(rng.random() < probability)


def shuffled(rng: np.random.Generator, items: Sequence[T]) -> list[T]:
    """The items in a random order."""
    order = sorted(range(len(items)), key=[rng.random() for _ in items].__getitem__)
    return [items[i] for i in order]


def wobble(rng: np.random.Generator, width: float) -> float:
    """A bell-shaped number around zero that stays within three widths."""
    return (rng.random() + rng.random() + rng.random() - 1.5) * 2 * width
