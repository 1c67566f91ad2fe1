"""Systems that release 0.1 saved, in format 1, load and give what they gave then; made by tests/golden/make_format1.py."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import format1
import pytest
import torch
from format1 import CODECS, GENERATORS, PLACE, QUANTIZED
from safetensors.torch import load_file

from cadenza import System, load

MADE = json.loads((PLACE / "made.json").read_text())
HERE = format1.machine() == MADE["machine"]  # where floating point gives the same bits as when the goldens were made
TYPES: dict[str, str] = {"oobleck": "oobleck_vae"}  # in format 1 -> now
FIELDS: dict[tuple[str, str], str] = {  # (type of the part, "" where it has none; field in format 1) -> field now
    ("*", "absent"): "null_embedding",  # of every conditioner
    ("*", "width"): "output_dim",
    ("", "reads"): "prompt_patterns",
    ("codec_lm", "width"): "width",
    ("codec_lm", "mlp"): "mlp_ratio",
    ("codec_lm", "context"): "max_frames",
    ("codec_lm", "cross_positions"): "cross_attention_pos_emb_scale",
    ("clap", "reads"): "modalities",
    ("clap", "first"): "prefer",
    ("clap", "empty"): "empty_text",
    ("t5", "inside"): "subconfig",
    ("t5", "empty"): "empty_text",
    ("lut", "empty"): "empty_text",
    ("waveform", "given"): "input_kind",
    ("waveform", "frames"): "max_frames",
    ("source_mix", "given"): "input_kind",
    ("chroma", "short"): "pad_mode",
    ("chroma", "frames"): "max_frames",
    ("beats", "frames"): "max_frames",
    ("chords", "frames"): "max_frames",
    ("chords", "known"): "vocabulary",
    ("chords", "bar"): "bar_seconds",
    ("codes", "frames"): "max_frames",
    ("drums", "frames"): "max_frames",
    ("melody", "frames"): "max_frames",
    ("melody", "hide_octave"): "octave_dropout",
    ("style", "every"): "downsample",
    ("style", "used"): "eval_q",
    ("style", "lasting"): "train_seconds_range",
    ("sampling", "may_end"): "allow_eos",
}
VALUES: dict[tuple[str, Any], Any] = {  # (field in format 1, value in format 1) -> value now
    ("empty", "absent"): "null",
    ("empty", "read"): "encode",
}
KINDS = """beats category chords chroma clap codes drums encoded int lut melody number phoneme source_mix style t5 text
    waveform"""  # conditioners of release 0.1
OPEN = ("conditioners", "aliases")  # mappings whose keys are the user's


def renamed(data: Any, name: str = "") -> Any:
    """A spec as it was saved in format 1, in the words of now."""
    if isinstance(data, list):
        return [renamed(each) for each in data]
    if not isinstance(data, Mapping):
        return data
    if name in OPEN:
        return {key: renamed(value) for key, value in data.items()}
    kind = data.get("type", "sampling" if name == "sampling" else "")
    made = {}
    for key, value in data.items():
        conditioner = kind not in ("", "sampling", "codec_lm", "encodec", "oobleck", "stereo")
        now = FIELDS.get((kind, key)) or (FIELDS.get(("*", key)) if conditioner else None) or key
        if isinstance(value, str):
            made[now] = TYPES.get(value, value) if key == "type" else VALUES.get((key, value), value)
        else:
            made[now] = renamed(value, key)
    return made


def says(found: Any, expected: Any, where: str = "system") -> None:
    """Assert that all expected fields are there; later fields are ignored."""
    if isinstance(expected, Mapping):
        assert isinstance(found, Mapping), where
        for key, value in expected.items():
            assert key in found, f"{where}.{key}"
            says(found[key], value, f"{where}.{key}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), where
        for i, value in enumerate(expected):
            says(found[i], value, f"{where}.{i}")
    else:
        assert found == expected, where


@pytest.mark.parametrize("name", [*GENERATORS, *CODECS])
def test_every_field_of_the_spec_arrives(name: str) -> None:
    saved = json.loads((PLACE / name / "system.json").read_text())
    assert saved["format"] == 1
    expected = renamed({key: value for key, value in saved.items() if key != "format"})
    for part in expected["conditioners"].values():
        if str(part.get("model", "")).startswith("./"):
            part["model"] = str(PLACE / name / part["model"])  # copied next to the weights
    says(System.load(PLACE / name).spec.to_dict(), expected)


def test_the_goldens_hold_every_kind_of_part() -> None:
    specs = [json.loads((PLACE / name / "system.json").read_text()) for name in (*GENERATORS, *CODECS)]
    kinds = {part["type"] for spec in specs for part in spec["conditioners"].values()}
    assert kinds == set(KINDS.split())


@pytest.mark.parametrize("name", [*GENERATORS, *CODECS])
def test_weights_are_those_that_were_saved(name: str) -> None:
    assert format1.digest(System.load(PLACE / name).state_dict().values()) == MADE["weights"][name]


@pytest.mark.parametrize("name", [*GENERATORS, *CODECS])
def test_it_generates_encodes_and_decodes_as_then(name: str) -> None:
    found, expected = format1.answers(System.load(PLACE / name), name), load_file(PLACE / f"{name}.safetensors")
    if name in QUANTIZED and not HERE:  # numbers of 8 bits, of which a rounding elsewhere can change one
        names = {"encoded", "decoded"}
        found, expected = ({key: each[key] for key in names} for each in (found, expected))
        return format1.compare(found, expected, bits=False, atol=1e-2)
    return format1.compare(found, expected, bits=HERE)


@pytest.mark.parametrize("name", ["controls", "references", "int4", "vae", "chunks"])
def test_what_is_saved_again_is_the_same_system(name: str, tmp_path: Path) -> None:
    load(PLACE / name, device="cpu").save(tmp_path / "again")
    again = System.load(tmp_path / "again")
    found = format1.answers(again, name)
    expected = format1.answers(System.load(PLACE / name), name)
    assert found.keys() == expected.keys() and all(torch.equal(found[key], x) for key, x in expected.items())


def test_the_bundled_model_and_estimators_answer_as_then() -> None:
    system, expected = load("starter", device="cpu", dtype="float32"), load_file(PLACE / "starter.safetensors")
    for i, fields in enumerate(format1.starter_requests()):
        assert torch.equal(format1.starter_codes(system, fields), expected[str(i)]), fields
    found = format1.estimated(system, expected["1"])
    wanted = {key.removeprefix("estimate."): x for key, x in expected.items() if key.startswith("estimate.")}
    format1.compare(found, wanted, bits=HERE)
