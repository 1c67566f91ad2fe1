"""Own effects and effects of controls on one another, on estimates of known adherence."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cadenza.core.errors import RequestError
from cadenza.data.manifest import ManifestClip
from cadenza.dsp.audio import Audio
from cadenza.evaluation.adherence import control_effects, score_settings
from cadenza.evaluation.estimators import Estimate
from cadenza.evaluation.settings import EvaluationSet, Reference, setting_without, settings
from cadenza.evaluation.targets import AttributeTargets

FAMILIES = ("piano", "strings")
CONTROLS = ["prompt", "tempo", "key", "chords", "melody"]
KEYS = ("C major", "A minor", "F# major", "D minor", "Bb major", "G minor")
CHORDS = ("C:maj", "A:min7", "F#:maj", "D:min", "Bb:7", "G:min", "E:maj", "Db:maj7")
SECONDS = 8.0


def truth(i: int) -> dict[str, Any]:
    chance = random.Random(i)
    tempo, key = float(chance.randrange(60, 160)), chance.choice(KEYS)
    notes = [[k + chance.random() / 2, k + 1.0, chance.randrange(60, 84), 90, "melody"] for k in range(8)]
    return {
        "seconds": SECONDS, "tempo": tempo, "key": key, "families": ["piano"], "lead_family": "piano",
        "instruments": [{"role": "melody", "name": "piano", "family": "piano"}],
        "prompt": [f"piano number {i}, {tempo:.0f} bpm"], "prompt_mentions": [["players", "bpm"]],
        "chords": [[2 * k, 2 * k + 2, chance.choice(CHORDS)] for k in range(4)],
        "beats": np.arange(0, SECONDS - 0.1, 60 / tempo).tolist(), "notes": [*notes, [0.3, 0.9, 40, 90, "bass"]],
    }  # fmt: skip


@pytest.fixture
def asking(tmp_path: Path) -> EvaluationSet:
    Audio(torch.sin(torch.arange(8000 * 8) * 0.3)[None, None], 8000).save(tmp_path / "a.wav")
    clip = ManifestClip("a", tmp_path / "a.wav", SECONDS, 8000, 1, {})
    return EvaluationSet([Reference(clip, truth(i)) for i in range(12)], FAMILIES, CONTROLS, 30.0, extracts_prompt_values=True)


def estimate(wishes: dict[str, list[AttributeTargets]], i: int, obeyed: set[str]) -> Estimate:
    """Estimate of a clip that follows some controls and otherwise equals another clip."""
    found: dict[str, Any] = {"families": torch.ones(2), "lead": 0, "seconds": SECONDS, "chroma": torch.zeros(100).long()}
    for control in CONTROLS[1:]:
        j = i if control in obeyed else (i + 5) % 12
        wish = wishes[control][j]
        if control == "tempo":
            found |= {"tempo": wish.tempo, "beats": torch.tensor(wish.beats)}
        elif control == "key":
            found["key"] = wish.key
        elif control == "chords":
            assert wish.chords is not None
            found["chords"] = torch.tensor(wish.chords.at((np.arange(100) + 0.5) * 0.08))
        else:
            found |= {"melody": torch.tensor(wish.melody), "onsets": torch.tensor(wish.onsets)}
    return Estimate(**found)


def each(asking: EvaluationSet) -> dict[str, list[AttributeTargets]]:
    """Targets of each control alone."""
    return {control: asking.setting(control, [control]).targets for control in CONTROLS[1:]}


def heard(asking: EvaluationSet, asked: list, spoils: dict[str, str]) -> dict[str, list[list[Estimate]]]:
    """Estimates of a system that follows its controls, except those that another one spoils."""
    made, wishes = {}, each(asking)
    for setting in asked:
        obeyed = {name for name in setting.controls if spoils.get(name) not in setting.controls}
        made[setting.name] = [[estimate(wishes, i, obeyed) for i in range(12)]]
    return made


@pytest.fixture
def table(asking: EvaluationSet):
    asked = [one for one in settings(asking) if one.references]
    made = heard(asking, asked, {"key": "melody"})
    ceiling = [estimate(each(asking), i, set(CONTROLS)) for i in range(12)]
    found = score_settings(asked, made, ceiling=ceiling, captions=[wish for _, wish in asking.captions])
    return asked, made, found, control_effects(asked, made, found)


def test_followed_controls_have_adherence_one_alone_and_together(table):
    _, _, found, _ = table
    shown = {"tempo": ("tempo", "beat"), "chords": ("chords", "chord IoU"), "melody": ("melody", "onset")}
    for control, attributes in shown.items():
        for setting in (control, "all"):
            for attribute in attributes:
                one = found[setting][attribute]
                assert one.adherence.value.value == pytest.approx(1, abs=0.03), (setting, attribute)
        assert set(found[control]) <= {*attributes, "chroma", "duration"}, "what is not asked is not scored"
    assert found["key"]["key"].adherence.value.value == pytest.approx(1)
    assert found["all"]["key"].adherence.value.value < 0.35, "the melody spoils it"


def test_an_own_effect_is_with_the_control_minus_without(table):
    asked, made, found, _ = table
    by_name = {setting.name: setting for setting in asked}
    for setting, without in (("chords", "nothing"), ("all", "all-but-chords")):
        other = setting_without(by_name[setting], asked, "chords")
        assert other is not None and other.name == without
        wishes = by_name[setting].targets
        share = [np.mean([int(c) == int(t) for c, t in zip(made[without][0][i].chords, w.chords.at(MIDDLES), strict=True)])
                 for i, w in enumerate(wishes)]  # fmt: skip
        effect = found[setting]["chords"].effect
        assert effect is not None and effect.value == pytest.approx(1 - np.mean(share), abs=1e-6)
    assert found["nothing"]["duration"].effect is None


MIDDLES = (np.arange(100) + 0.5) * 0.08


def test_a_control_that_spoils_another_is_measured(table):
    _, _, found, changed = table
    assert set(changed) == set(CONTROLS)
    lost = changed["melody"]["key"]
    assert lost.high < -0.5 and lost.value == pytest.approx(
        (found["all"]["key"].adherence.score.value - 1) / found["all"]["key"].ceiling_minus_chance
    )
    for control, row in changed.items():
        for attribute, change in row.items():
            assert (control, attribute) == ("melody", "key") or change.value == pytest.approx(0, abs=1e-6), (control, attribute)
    assert "melody" not in changed["melody"] and "beat" not in changed["tempo"]


def test_values_have_the_form_of_the_conditioners_and_only_where_given(asking):
    asked = {setting.name: setting for setting in settings(asking)}
    item = asked["all"].items[0]
    assert set(item) == set(CONTROLS) and item["melody"][0] == tuple(truth(0)["notes"][0][:3])
    assert len(item["melody"]) == 8, "the bass is not the melody"
    assert item["chords"][1] == (2, 4, truth(0)["chords"][1][2])
    assert set(asked["all-but-melody"].items[0]) == set(CONTROLS) - {"melody"} and set(asked["melody"].items[0]) == {"melody"}
    assert asked["text"].extracts_values
    assert not asked["all-but-tempo"].extracts_values, "a control left out is not extracted from the text either"


def test_groups_and_names_of_settings(asking):
    names = [setting.name for setting in settings(asking, ["alone"])]
    assert names == ["nothing", "text", "tempo", "key", "chords", "melody"]
    assert [setting.name for setting in settings(asking, ["melody", "all"])] == ["melody", "all"]
    assert len(settings(asking, ["together"])) == 6
    with pytest.raises(RequestError, match="Did you mean 'melody'"):
        settings(asking, ["melodie"])


def test_a_clip_longer_than_the_model_is_truncated(asking):
    short = EvaluationSet(asking.references, FAMILIES, CONTROLS, 4.0)
    wish = short.setting("all", CONTROLS).targets[0]
    assert wish.seconds == 4.0 and len(wish.melody) == 50 and wish.chords.bounds[-1] == 4.0
    assert wish.beats.max() < 4 and len(wish.onsets) == 4
