"""Specs: frozen, closed, round trips, and every mistake explained with its place."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cadenza.conditioners.base import ConditionerSpec
from cadenza.conditioners.number import NumberSpec
from cadenza.core.errors import CadenzaError, SpecError
from cadenza.core.spec import RegisteredSpec, Spec, did_you_mean


class Inner(Spec):
    depth: int = 2


class Outer(Spec):
    name: str
    inner: Inner = Inner()
    parts: dict[str, ConditionerSpec] = {}


def mistakes(data: Any) -> list[str]:
    with pytest.raises(SpecError) as caught:
        Outer.parse(data, source="a.yaml")
    return str(caught.value).splitlines()


def test_specs_are_frozen_and_equal_by_value() -> None:
    spec = Outer(name="x")
    with pytest.raises(ValidationError, match="frozen"):
        spec.name = "y"  # type: ignore[misc]
    assert spec == Outer.parse({"name": "x", "inner": {"depth": 2}}) != Outer(name="y")


def test_all_mistakes_come_at_once_each_with_its_place() -> None:
    lines = mistakes(
        {"inner": {"depth": "deep", "dept": 3}, "parts": {"tempo": {"type": "number", "output_dim": 4, "min": 2, "max": 1}}}
    )
    assert lines[0] == "a.yaml: 4 mistakes"
    assert "  name: Field required" in lines
    assert "  inner.dept: unknown field. Did you mean 'depth'?" in lines
    assert any(line.startswith("  inner.depth: ") and line.endswith("got 'deep'") for line in lines)
    assert any(line.startswith("  parts.tempo") and "min (2) must be below max (1)" in line for line in lines)


def test_an_unknown_field_of_a_part_names_the_nearest() -> None:
    [_, line] = mistakes({"name": "x", "parts": {"tempo": {"type": "number", "output_dim": 4, "min": 1, "max": 2, "band": 3}}})
    assert "unknown field. Did you mean 'bands'?" in line


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"type": "nubmer"}, "'nubmer' is not a conditioner. Did you mean 'number'?"),
        ({"type": "../evil"}, "'../evil' is not a conditioner"),
        ({"type": "base"}, "'base' is not a conditioner"),
        ({"output_dim": 4}, "'type' is missing. Choose from:"),
    ],
)
def test_types_are_names_of_files_and_nothing_else(part: dict[str, Any], message: str) -> None:
    assert message in "\n".join(mistakes({"name": "x", "parts": {"it": part}}))


def test_yaml_and_json_give_the_same(tmp_path: Path) -> None:
    spec = Outer(name="é", parts={"tempo": NumberSpec(output_dim=4, min=1, max=2)})
    (tmp_path / "a.json").write_text(spec.to_json())
    (tmp_path / "a.yaml").write_text("name: é\nparts:\n  tempo: {type: number, output_dim: 4, min: 1, max: 2}\n")
    assert Outer.load(tmp_path / "a.json") == Outer.load(tmp_path / "a.yaml") == spec
    assert json.loads(spec.to_json())["parts"]["tempo"]["type"] == "number", "fields of the member are written too"


@pytest.mark.parametrize("text", [b"\xff\xfe", b"a: [", b"a: b: c"])
def test_unreadable_files_are_named(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "a.yaml").write_bytes(text)
    with pytest.raises(SpecError, match="a.yaml: not readable"):
        Outer.load(tmp_path / "a.yaml")
    with pytest.raises(SpecError, match="b.yaml: not readable"):
        Outer.load(tmp_path / "b.yaml")


def test_yaml_runs_no_code(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(f"name: !!python/object/apply:os.mkdir ['{tmp_path / 'made'}']\n")
    with pytest.raises(SpecError):
        Outer.load(tmp_path / "a.yaml")
    assert not (tmp_path / "made").exists()


def test_members_are_found_without_importing_them() -> None:
    code = (
        "import sys; from cadenza.conditioners.base import ConditionerSpec as C; names = C.registered_names();"
        "assert 'text' in names and 'base' not in names; assert 'cadenza.conditioners.text' not in sys.modules;"
        "C.lookup('number');"
        "assert 'cadenza.conditioners.number' in sys.modules and 'cadenza.conditioners.text' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_name_is_filed_once() -> None:
    with pytest.raises(SpecError, match="'number' is defined twice"):
        type("OtherSpec", (ConditionerSpec,), {"__module__": "elsewhere", "__annotations__": {"type": str}, "type": "number"})
    assert ConditionerSpec.lookup("number") is NumberSpec


def test_families_do_not_share_members() -> None:
    class OneSpec(RegisteredSpec):
        family = "cadenza.codecs"

    assert OneSpec.registry is not ConditionerSpec.registry


def test_near() -> None:
    assert did_you_mean("delay", ["delay", "parallel"]) == " Did you mean 'delay'?"
    assert did_you_mean("x", ["delay", "parallel"]) == " Choose from: delay, parallel."


def test_errors_share_one_base() -> None:
    """Programs can catch every error that a user can fix."""
    from cadenza.core import errors  # noqa: PLC0415

    named = [value for value in vars(errors).values() if isinstance(value, type)]
    assert len(named) >= 6 and all(issubclass(error, CadenzaError) for error in named)
