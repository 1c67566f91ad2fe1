"""What prompts say of tempo and key, by the rules of the starter's own config."""

from pathlib import Path
from typing import Any

import pytest

from cadenza.conditioners.base import ConditionerSet
from cadenza.core.errors import SpecError
from cadenza.system.prompt_patterns import PromptPattern, extract_prompt_values
from cadenza.system.spec import SystemSpec
from cadenza.training.config import TrainingConfig

CONFIG = Path(__file__).parents[2] / "configs/starter.yaml"


@pytest.fixture(scope="module")
def starter() -> SystemSpec:
    return TrainingConfig.load(CONFIG).system


@pytest.fixture(scope="module")
def conditioners(starter: SystemSpec) -> ConditionerSet:
    return ConditionerSet({name: part.build() for name, part in starter.conditioners.items()})


@pytest.mark.parametrize(
    ("prompt", "values"),
    [
        ("slow solo piano in A minor, 80 bpm", {"tempo": 80, "key": "A minor"}),
        ("waltz, F sharp minor, 113BPM", {"tempo": 113, "key": "F sharp minor"}),
        ("at 92.5 beats per minute in G-flat major", {"tempo": 92.5, "key": "G-flat major"}),
        ("tempo 140, Bb-minor", {"tempo": 140, "key": "Bb-minor"}),
        ("a tempo of 70 bpm; key: E♭ Major", {"tempo": 70, "key": "E♭ Major"}),
        ("first 100 bpm, then 120 bpm", {"tempo": 120}),
        ("a minor delay in track 9 of 12", {}),
        ("E sharp major", {}),  # not a key the model knows
        ("slow piano", {}),
    ],
)
def test_prompts(starter: SystemSpec, conditioners: ConditionerSet, prompt: str, values: dict[str, Any]) -> None:
    assert extract_prompt_values({"prompt": prompt}, starter.prompt_patterns, conditioners) == {"prompt": prompt, **values}


def test_what_is_given_stays(starter: SystemSpec, conditioners: ConditionerSet) -> None:
    item = {"prompt": "80 bpm in C major", "tempo": 120}
    assert extract_prompt_values(item, starter.prompt_patterns, conditioners) == {**item, "key": "C major"}
    assert extract_prompt_values({"tempo": 90}, starter.prompt_patterns, conditioners) == {"tempo": 90}


@pytest.mark.parametrize(
    ("pattern", "match"), [(r"\d+ bpm", "needs one group"), (r"(\d+) (bpm)", "has 2"), (r"(\d+", "not a regular expression")]
)
def test_a_pattern_has_one_group(pattern: str, match: str) -> None:
    with pytest.raises(SpecError, match=match):
        PromptPattern.parse({"of": "prompt", "to": "tempo", "pattern": pattern})


def test_names_must_lead_somewhere(starter: SystemSpec) -> None:
    wrong = starter.to_dict() | {"prompt_patterns": [{"of": "prompt", "to": "tmpo", "pattern": "(.)"}]}
    with pytest.raises(SpecError, match="prompt_patterns names 'tmpo', which is not a conditioner. Did you mean 'tempo'"):
        SystemSpec.parse(wrong)
