"""AudioCraft's fuser as fusion; the conformance kit's fuser cases test the numbers."""

import pytest

from cadenza.core.errors import CheckpointError
from cadenza.importers.audiocraft_conditioners import convert_fuser
from cadenza.importers.base import ConfigReader
from cadenza.system.spec import FusionSpec

NAMES = {"description": "prompt", "genre": "genre", "self_wav": "melody"}
STEPS = {"align": "steps", "resize": "nearest"}


@pytest.mark.parametrize(
    ("fuser", "expected"),
    [
        ({"cross": ["genre", "description"], "prepend": ["self_wav"]}, {"cross": ["prompt", "genre"], "prepend": ["melody"]}),
        ({"prepend": ["self_wav", "description"], "ignore": ["genre"]}, {"prepend": ["melody", "prompt"], "ignore": ["genre"]}),
        (
            {"sum": ["genre"], "prepend": None, "cross": ["description"], "input_interpolate": ["self_wav"]},
            {"cross": ["prompt"], "add": [{"id": "genre", **STEPS}, {"id": "melody", **STEPS}]},
        ),
        ({"sum": ["genre"], "cross": ["genre", "description", "self_wav"]}, {"cross": ["prompt", "genre", "melody"]}),
    ],
)
def test_methods_become_slots(fuser: dict, expected: dict) -> None:
    section = ConfigReader(fuser, source="fuser")
    fusion, scale = convert_fuser(section, NAMES)
    section.raise_errors()
    assert FusionSpec.parse(fusion) == FusionSpec.parse(expected) and scale == 0


@pytest.mark.parametrize(("fields", "scale"), [({}, 0.0), ({"cross_attention_pos_emb_scale": 0.5}, 0.0)])
def test_scale_of_positions(fields: dict, scale: float) -> None:
    base = {"cross": list(NAMES), **fields}
    assert convert_fuser(ConfigReader(base, source="fuser"), NAMES)[1] == scale
    expected = fields.get("cross_attention_pos_emb_scale", 1.0)
    assert convert_fuser(ConfigReader({**base, "cross_attention_pos_emb": True}, source="fuser"), NAMES)[1] == expected


@pytest.mark.parametrize(
    ("fuser", "message"),
    [
        ({"cross": ["description", "genre", "self_wav", "text"]}, "names 'text', which is not a conditioner"),
        ({"cross": ["description", "genre"]}, "self_wav: is a condition without a fusion method"),
        ({"cross": list(NAMES), "crossed": []}, "crossed"),
    ],
)
def test_unsupported_settings_are_named(fuser: dict, message: str) -> None:
    section = ConfigReader(fuser, source="fuser")
    convert_fuser(section, NAMES)
    with pytest.raises(CheckpointError, match=message):
        section.raise_errors()
