"""The category conditioner: matching, aliases, what it refuses."""

from typing import Any

import pytest
import torch

from cadenza.conditioners.category import CategoryConditioner, CategorySpec
from cadenza.core.errors import RequestError, SpecError

FIELDS = {
    "type": "category",
    "output_dim": 4,
    "values": ["A minor", "A# minor", "C major"],
    "aliases": {"Bb minor": "A# minor"},
}


def category(**fields: object) -> CategoryConditioner:
    return CategorySpec.parse({**FIELDS, **fields}).build()


def test_case_spaces_and_hyphens_do_not_count() -> None:
    rows = category().prepare(["A minor", " a  MINOR", "aminor", "a-minor", "Bb minor", "a# minor", "c major"]).tensors["row"]
    assert rows.tolist() == [0, 0, 0, 0, 1, 1, 2]


def test_a_sign_is_no_hyphen() -> None:
    rows = category(values=["-1", "1"], aliases={}).prepare(["1", "-1"]).tensors["row"]
    assert rows.tolist() == [1, 0]


def test_each_value_has_its_own_vector() -> None:
    part = category()
    x = part(part.prepare(["C major", "A minor", "bb minor"])).embeddings[:, 0]
    assert torch.equal(x, part.table.weight[[2, 0, 1]])


@pytest.mark.parametrize("value", ["C mayor", "", "D major", 3, ["A minor"]])
def test_refuses_what_it_does_not_know(value: Any) -> None:
    with pytest.raises(RequestError, match="no value called"):
        category().prepare([value])


def test_names_the_nearest_value() -> None:
    with pytest.raises(RequestError, match=r"no value called 'C mayor'. Did you mean 'C major'\?"):
        category().prepare(["C mayor"])
    with pytest.raises(RequestError, match="Choose from: A minor, A# minor, C major, Bb minor"):
        category().prepare(["xyz"])


@pytest.mark.parametrize(
    ("fields", "mistake"),
    [
        ({"values": []}, "at least 1"),
        ({"values": ["a", "A "], "aliases": {}}, "the same word"),
        ({"aliases": {"c MAJOR": "A minor"}}, "the same word"),
        ({"aliases": {"Gb minor": "F# minor"}}, "aliases.Gb minor is 'F# minor', which is not in"),
    ],
)
def test_refuses_lists_that_are_ambiguous(fields: dict[str, object], mistake: str) -> None:
    with pytest.raises(SpecError, match=mistake):
        category(**fields)


def test_vectors_begin_as_large_as_told() -> None:
    values = [str(i) for i in range(300)]
    for std in (1.0, 0.15):
        table = category(values=values, aliases={}, output_dim=64, std=std).table.weight
        assert float(table.std()) == pytest.approx(std, rel=0.05)


def test_unknown_words_share_a_vector_on_demand() -> None:
    part = category(unknown="learned")
    assert part.table.weight.shape[0] == 4
    x = part(part.prepare(["C mayor", "C major", "", "Bb minor"])).embeddings[:, 0]
    assert torch.equal(x, part.table.weight[[0, 3, 0, 2]])
    with pytest.raises(RequestError, match="no value called 3"):
        part.prepare([3])


def test_words_may_count_to_the_letter() -> None:
    part = category(values=["Rock", "rock"], aliases={"ROCK": "rock"}, exact=True, unknown="learned")
    assert part.prepare(["rock", "Rock", "ROCK", "rock "]).tensors["row"].tolist() == [2, 1, 2, 0]
