"""AudioCraft's sets of conditions as items; its data carriers are stood in for by tuples and classes of the same fields."""

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from cadenza.core.errors import DataError
from cadenza.dsp.audio import Audio
from cadenza.importers.audiocraft_items import item


class WavCondition(NamedTuple):
    """The fields of AudioCraft's tuple of that name."""

    wav: Tensor
    length: Tensor
    sample_rate: list[int]
    path: list[str | None] = []
    seek_time: list[float | None] = []


class JointEmbedCondition(NamedTuple):
    """Likewise."""

    wav: Tensor
    text: list[str | None]
    length: Tensor
    sample_rate: list[int]


class SymbolicCondition(NamedTuple):
    """Likewise."""

    frame_chords: Tensor | None = None
    melody: Tensor | None = None


@dataclass
class ConditioningAttributes:
    """Likewise."""

    text: dict[str, str | None] = field(default_factory=dict)
    wav: dict[str, Any] = field(default_factory=dict)
    joint_embed: dict[str, Any] = field(default_factory=dict)
    symbolic: dict[str, Any] = field(default_factory=dict)


def wav(samples: int, length: int) -> WavCondition:
    return WavCondition(torch.ones(1, 1, samples), torch.tensor([length]), [32000])


def test_texts_and_sounds_take_our_names_and_nulls_are_absent() -> None:
    given = ConditioningAttributes(
        text={"description": "happy rock", "genre": None, "mood": "", "key": "C"}, wav={"self_wav": wav(100, 80)}
    )
    found = item(given)
    assert set(found) == {"prompt", "key", "melody"} and found["prompt"] == "happy rock"
    assert isinstance(found["melody"], Audio)
    assert (found["melody"].sample_rate, found["melody"].wave.shape) == (32000, (1, 1, 80))
    null = ConditioningAttributes(text={"description": None}, wav={"self_wav": wav(1, 0)})
    assert item(null) == {}


def test_flat_dictionaries_and_segments_are_the_same() -> None:
    given = ConditioningAttributes(text={"description": "a", "title": "b"})

    class Segment:
        def to_condition_attributes(self) -> ConditioningAttributes:
            return given

    assert item(Segment()) == item(given) == item({"text.description": "a", "text.title": "b", "wav.self_wav": wav(1, 0)})
    assert item({"text": {"description": "a"}}) == {"prompt": "a"}


def test_a_joint_condition_is_its_text_its_sound_or_both() -> None:
    def joint(text: str | None, length: int) -> Any:
        value = JointEmbedCondition(torch.ones(1, 1, max(length, 1)), [text], torch.tensor([length]), [48000])
        return item(ConditioningAttributes(joint_embed={"description": value})).get("prompt")

    assert joint("rock", 0) == "rock" and joint(None, 0) is None
    assert isinstance(joint("", 5), Audio)
    both = joint("rock", 5)
    assert both["text"] == "rock" and both["audio"].sample_rate == 48000


def test_chords_become_spans_of_names() -> None:
    numbers = torch.tensor([0, 0, 2, 2, 2, 3, 1])
    given = {"symbolic": {"chords": SymbolicCondition(frame_chords=numbers), "melody": SymbolicCondition(melody=torch.eye(5))}}
    found = item(given, chords=["N", "C", "Am"], rate=10.0)
    assert found["chords"] == [(0.0, 0.2, "N"), (0.2, 0.5, "Am"), (0.6, 0.7, "C")]  # 3 is the null
    assert torch.equal(found["melody"], torch.eye(5))
    silent = {
        "symbolic": {"chords": SymbolicCondition(torch.full((4,), 3)), "melody": SymbolicCondition(None, torch.zeros(5, 4))}
    }
    assert item(silent, chords=["N", "C", "Am"]) == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (3, "not a int"),
        ({"text.description": "a", "texts.title": "b"}, "'texts.title' is no condition"),
        ({"description": "a"}, "keys are like text.description"),
        ({"text": {"description": "a", "prompt": "b"}}, "two conditions would be called 'prompt'"),
        ({"wav": {"self_wav": WavCondition(torch.ones(2, 1, 5), torch.tensor([5, 5]), [1, 1])}}, "one by one"),
        ({"symbolic": {"chords": SymbolicCondition(torch.tensor([1]))}}, "give their names"),
    ],
)
def test_what_cannot_be_an_item_is_named(given: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        item(given)
