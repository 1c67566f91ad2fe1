"""Requests: every form means the same, and mistakes are explained."""

import math

import pytest

from cadenza.core.errors import RequestError
from cadenza.system.request import Request


@pytest.mark.parametrize("form", ["slow piano", {"prompt": "slow piano"}, ["slow piano"], [{"prompt": "slow piano"}]])
def test_forms(form):
    assert Request.from_input(form, seconds=3, seed=5) == Request(items=({"prompt": "slow piano"},), seconds=3, seed=5)


def test_one_value_or_one_each():
    request = Request.from_input(["a", "b"], seconds=[1, 2], seed=7)
    assert [(c.item["prompt"], c.seconds, c.seed) for c in request.expand()] == [("a", 1, 7), ("b", 2, 7)]
    with pytest.raises(RequestError, match="seconds has 3 values for 2 items"):
        Request.from_input(["a", "b"], seconds=[1, 2, 3])


def test_variations_count_up_from_the_seed():
    clips = Request.from_input(["a", "b"], seed=[10, 20], variations=2).expand()
    assert [(c.item["prompt"], c.seed) for c in clips] == [("a", 10), ("a", 11), ("b", 20), ("b", 21)]


@pytest.mark.parametrize("seconds", [0, -1, math.nan, math.inf])
def test_seconds_must_be_a_length(seconds):
    with pytest.raises(RequestError, match="seconds"):
        Request.from_input("a", seconds=seconds)


@pytest.mark.parametrize("empty", ["", "   ", {"prompt": ""}])
def test_an_empty_prompt_is_named(empty):
    with pytest.raises(RequestError, match="'prompt' is empty"):
        Request.from_input(empty)


def test_a_misspelt_field_is_named_with_the_nearest():
    with pytest.raises(RequestError, match="guidence: unknown field. Did you mean 'guidance'"):
        Request.from_input("a", guidence=2)


def test_an_item_of_another_kind():
    with pytest.raises(RequestError, match="not int"):
        Request.from_input([3])
    with pytest.raises(RequestError):
        Request.from_input([])


def test_a_request_may_be_changed_on_the_way():
    assert Request.from_input(Request.from_input("a", seed=3, seconds=2), seed=4) == Request.from_input("a", seed=4, seconds=2)
