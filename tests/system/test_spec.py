"""SystemSpec: parts that do not fit are named, all at once, with the fix."""

import copy
from typing import Any

import pytest

from cadenza.core.errors import SpecError
from cadenza.system.spec import SystemSpec

TINY = {
    "codec": {"type": "encodec", "sample_rate": 8000, "strides": [2, 4], "codebooks": 2, "bins": 16, "filters": 4},
    "conditioners": {
        "prompt": {"type": "text", "output_dim": 16, "dim": 16, "depth": 1, "heads": 2, "vocabulary": 300},
        "tempo": {"type": "number", "output_dim": 16, "min": 40, "max": 200},
        "key": {"type": "category", "output_dim": 16, "values": ["C major", "A minor"]},
    },
    "fusion": {"cross": ["prompt", "tempo"], "prepend": ["key"]},
    "generator": {"type": "codec_lm", "width": 16, "depth": 2, "heads": 2, "max_frames": 64},
}


def changed(**changes):
    """TINY with dotted paths replaced."""
    tree = copy.deepcopy(TINY)
    for path, value in changes.items():
        *way, last = path.split("__")
        node = tree
        for step in way:
            node = node[step]
        node[last] = value
    return tree


def test_round_trip():
    spec = SystemSpec.parse(TINY)
    assert SystemSpec.parse(spec.to_dict()) == spec
    assert spec.fusion.slot_ids() == [("cross", "prompt"), ("cross", "tempo"), ("prepend", "key")]
    assert spec.slot_dims() == {"cross": 16, "prepend": 16}


def test_a_codec_alone_is_a_system():
    spec = SystemSpec.parse({"codec": TINY["codec"]})
    assert spec.generator is None and spec.codec.hop_length == 8


@pytest.mark.parametrize(
    "tree, words",
    [
        (changed(fusion__cross=["prompt", "tempoo"]), ["fusion.cross names 'tempoo'", "Did you mean 'tempo'"]),
        (changed(fusion__cross=["prompt"]), ["conditioners.tempo goes to no slot", "fusion.ignore"]),
        (changed(fusion__ignore=["key"]), ["fusion.ignore names 'key', which fusion.prepend uses"]),
        (
            changed(fusion__add=[{"id": "key", "align": "steps", "resize": "cut"}]),
            ["'key'", "needs `resize: nearest` or `linear`"],
        ),
        (
            changed(fusion__cross=["prompt", {"id": "tempo", "align": "steps"}]),
            ["'tempo' has `align: steps`, which only add supports"],
        ),
        (changed(fusion__add=["prompt"]), ["fusion.add: 'prompt' gives tokens", "cross, prepend"]),
        (changed(conditioners__tempo__output_dim=8), ["fusion.cross: widths must be equal", "'tempo': 8"]),
        (changed(codec__binz=3), ["codec.binz: unknown field. Did you mean 'bins'"]),
        (changed(conditioners__prompt__type="txt"), ["'txt' is not a conditioner", "Did you mean 'text'"]),
        (changed(fusion__cross=["prompt", "prompt", "tempo"]), ["named twice in one slot: prompt"]),
        (changed(generator__depth=0, codec__codebooks=0), ["2 mistakes", "generator.depth", "codec.codebooks"]),
        (changed(format=99), ["format 99 is not known to this release"]),
        (changed(defaults={"sampling": {"temprature": 1}}), ["defaults.sampling", "Did you mean 'temperature'"]),
        (changed(fusion__prepend=[{"id": "key", "resize": "linear"}]), ["'key' has `resize`"]),
    ],
)
def test_misfits_are_explained(tree, words):
    with pytest.raises(SpecError) as error:
        SystemSpec.parse(tree, source="my.yaml")
    for word in ["my.yaml", *words]:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("field", "what"), [({"normalize": True}, "a loudness scale"), ({"chunk_seconds": 1.0}, "overlapping chunks")]
)
def test_a_generator_needs_frames_that_it_can_make(field: dict[str, Any], what: str) -> None:
    codec = {"type": "encodec", "sample_rate": 8000, "strides": [4, 4], "codebooks": 2, "bins": 16, "causal": False, **field}
    assert SystemSpec.parse({"codec": codec}).generator is None
    for wrapped in (codec, {"type": "stereo", "codec": codec}):
        with pytest.raises(SpecError, match=what):
            SystemSpec.parse(
                {"codec": wrapped, "generator": {"type": "codec_lm", "width": 16, "depth": 1, "heads": 2, "max_frames": 50}}
            )


def test_a_slot_that_the_generator_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = type(SystemSpec.parse(TINY).generator)
    monkeypatch.setattr(generator, "slots", frozenset({"cross", "prepend"}))
    monkeypatch.setattr(generator, "alignments", frozenset({"frames"}))
    with pytest.raises(SpecError, match=r"fusion.global: generator 'codec_lm' has no such slot; it has: cross, prepend"):
        SystemSpec.parse(changed(fusion__global=["key"]))
    with pytest.raises(SpecError, match="'key' has `align: steps`, but generator 'codec_lm' aligns to frames only"):
        SystemSpec.parse(changed(fusion__add=[{"id": "key", "align": "steps"}]))


def test_a_frame_rate_that_differs_from_the_codec_is_named() -> None:
    beats = {"type": "beats", "output_dim": 16, "frame_rate": 50, "max_frames": 100}
    tree = {**TINY, "conditioners": {**TINY["conditioners"], "beats": beats}, "fusion": {**TINY["fusion"], "add": ["beats"]}}
    with pytest.warns(UserWarning, match=r"conditioners.beats.frame_rate is 50 Hz, .* 1000 .* set frame_rate: 1000"):
        SystemSpec.parse(tree)
