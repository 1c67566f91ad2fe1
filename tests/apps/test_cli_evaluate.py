"""`cadenza evaluate`: which weights are evaluated."""

import sys
from pathlib import Path

import pytest
import torch
from tiny import TINY

from cadenza.apps.cli.main import main
from cadenza.evaluation import report
from cadenza.system.spec import SystemSpec
from cadenza.system.system import System


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A tiny system of a width that int4 can have, in a folder."""
    torch.manual_seed(0)
    System(SystemSpec.parse({**TINY, "generator": {**TINY["generator"], "width": 32}})).save(tmp_path / "model")
    return tmp_path / "model"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["cadenza", "evaluate", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


@pytest.mark.parametrize("kind", [None, "int8", "int4"])
def test_a_model_is_evaluated_with_the_weights_that_are_asked_for(
    kind: str | None, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str | None] = []
    monkeypatch.setattr(report, "evaluate", lambda system, *_, **__: seen.append(system.quantization))
    assert run(monkeypatch, model, "--data", "held_out", *(["--quantize", kind] if kind else [])) == 0
    assert seen == [kind]


def test_other_weights_are_refused(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, model, "--data", "held_out", "--quantize", "int3") == 2
    said = capsys.readouterr().err
    assert "int3" in said and "int8, int4" in said and "Traceback" not in said
