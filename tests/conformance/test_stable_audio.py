"""stable-audio-tools' conditioners, built of their JSON: the same vectors, masks, and inputs of a diffusion model."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cadenza.conditioners.base import ConditionerSet
from cadenza.core.checkpoint import strip_prefix
from cadenza.core.types import Condition, FusedConditions
from cadenza.importers.stable_audio import ConditioningConfig, load_conditioning
from cadenza.importers.stable_audio_weights import convert_conditioner_weights
from cadenza.system.fusion import fuse
from cadenza.system.spec import FusionSpec

Kit = Callable[[str], Path]
TOLERANCE = {"atol": 1e-4, "rtol": 1e-3}
CLOSE = {"atol": 1e-5, "rtol": 1e-4}  # of case 14
pytestmark = pytest.mark.filterwarnings("ignore:.*is outside the range", "ignore:a text has")


@dataclass
class Case:
    """A config with its weights, and what the library made of some metadata."""

    conditioning: ConditioningConfig
    parts: ConditionerSet
    expected: dict[str, Tensor]
    parameters: dict[str, Any]

    @torch.no_grad()
    def run(self, metadata: list[dict[str, Any]]) -> dict[str, Condition]:
        items = [self.conditioning.item(each) for each in metadata]
        return self.parts(self.parts.encode(self.parts.prepare(items)))


def loaded(folder: Path) -> Case:
    model = folder / "model"
    whole = (model / "model_config.json").exists()
    conditioning = load_conditioning(model / ("model_config.json" if whole else "conditioning.json"))
    parts = ConditionerSet({name: spec.build() for name, spec in conditioning.conditioners.items()}).eval()
    state = load_file(model / ("model.safetensors" if whole else "conditioners.safetensors"))
    theirs = strip_prefix(state, "conditioner.conditioners." if whole else "conditioners.")
    codec = strip_prefix(state, "pretransform.")
    parts.load_state_dict(convert_conditioner_weights(conditioning, parts, theirs, source=str(model), codec=codec))
    case = json.loads((folder / "case.json").read_text())
    return Case(conditioning, parts, load_file(folder / "expected.safetensors"), case["parameters"])


@pytest.mark.parametrize("case", ["13a", "13b", "13c", "13d"])
def test_conditions_of_a_model(kit: Kit, case: str) -> None:
    it = loaded(kit(case))
    for name, key in (("cond", "conditioning"), ("neg", "negative_conditioning")):
        made = it.run(it.parameters[key])
        assert {f"{name}.{id}" for id in made} <= set(it.expected)
        for id, condition in made.items():
            torch.testing.assert_close(condition.embeddings, it.expected[f"{name}.{id}"], **TOLERANCE)
            assert torch.equal(condition.mask, it.expected[f"{name}.{id}.mask"].bool())
    assert it.conditioning.fusion is not None
    inputs = given(it.expected, fuse(it.run(it.parameters["conditioning"]), it.conditioning.fusion, frames=40))
    assert inputs
    for name, (ours, theirs) in inputs.items():
        torch.testing.assert_close(ours, theirs, **TOLERANCE, msg=name)


def given(expected: dict[str, Tensor], fused: FusedConditions) -> dict[str, tuple[Tensor, Tensor]]:
    """Compare what the wrapper passes to the diffusion model with ours; the inputs of inpainting are not of conditioners."""
    pairs: dict[str, Tensor | None] = {"global_cond": fused.global_vector}
    if fused.cross is not None:
        pairs |= {"cross_attn_cond": fused.cross.x, "cross_attn_mask": fused.cross.mask.float()}
    if fused.prepend is not None:
        pairs |= {"prepend_cond": fused.prepend.x, "prepend_cond_mask": fused.prepend.mask.float()}
    found = {name: (x, expected[f"inputs.{name}"]) for name, x in pairs.items() if x is not None}
    left = {name.removeprefix("inputs.") for name in expected if name.startswith("inputs.")} - set(found)
    assert left <= {"input_concat_cond"}, left
    return found


@pytest.fixture
def single(kit: Kit) -> Case:
    return loaded(kit("14"))


@pytest.mark.parametrize("id", ["bpm", "seconds_a", "seconds_b", "genre", "words", "words_pos"])
def test_single_conditioners(single: Case, id: str) -> None:
    made = single.run([{id: value} for value in single.parameters[id]])[id]
    assert made.present.all()
    torch.testing.assert_close(made.embeddings, single.expected[f"{id}.out"], **CLOSE)
    assert torch.equal(made.mask, single.expected[f"{id}.mask"].bool())
    if f"{id}.input_ids" in single.expected:
        ids = single.parts[id].prepare(single.parameters[id]).tensors["ids"]  # type: ignore[operator]
        assert torch.equal(ids, single.expected[f"{id}.input_ids"])


def test_a_pretransform(single: Case) -> None:
    """Theirs are [channels, frames], ours [frames, channels]."""
    made = single.run([{"audio": single.expected[f"audio.in{i}"]} for i in range(3)])["audio"]
    torch.testing.assert_close(made.embeddings.transpose(1, 2), single.expected["audio.out"], **CLOSE)
    assert torch.equal(made.mask, single.expected["audio.mask"].bool())


def test_a_mix_of_sources(single: Case) -> None:
    """The last item has no source at all and gets the learned null, in every frame."""
    stems: list[dict[str, Tensor]] = [{}, {}, {}]
    for name, x in single.expected.items():
        if name.startswith("stems.in"):
            _, place, source = name.split(".")
            stems[int(place.removeprefix("in"))][source] = x
    made = single.run([{"stems": each} for each in stems])
    expected = single.expected["stems.out"]
    fused = fuse(made, FusionSpec.parse({"concat": ["stems"]}), frames=expected.shape[-1])
    assert fused.concat is not None and made["stems"].present.tolist() == [True, True, False]
    torch.testing.assert_close(fused.concat.transpose(1, 2), expected, **CLOSE)


def test_default_keys_and_wrapped_values(single: Case) -> None:
    seconds, genre = single.parameters["seconds_a"], single.parameters["genre"]
    made = single.run([{"seconds_a": a, "genre": [b]} for a, b in zip(seconds, genre, strict=True)])
    torch.testing.assert_close(made["seconds_b"].embeddings, single.expected["multi.seconds_b"], **CLOSE)
    torch.testing.assert_close(made["genre"].embeddings, single.expected["multi.genre"], **CLOSE)
