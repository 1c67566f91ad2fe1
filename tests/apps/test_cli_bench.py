"""`cadenza bench` on a tiny model: what it prints and writes, and wrong options."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_system

from cadenza.apps.bench import BenchJob, bench_system
from cadenza.apps.cli.main import main
from cadenza.core.errors import BenchmarkError
from cadenza.system.spec import SystemSpec
from cadenza.system.system import System


@pytest.fixture
def cadenza(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(*arguments: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cadenza", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), *capsys.readouterr()

    return run


def test_a_model_is_timed_and_written(cadenza: Any, tmp_path: Path) -> None:
    system = tiny_system()
    system.save(tmp_path / "model")
    options = ("--seconds", 0.5, "--variants", "float32,bfloat16", "--repeats", 2, "--threads", 1, "--out", tmp_path / "a.json")
    status, out, err = cadenza("bench", tmp_path / "model", *options)
    assert status == 0, err
    assert "float32: " in out and "x real time" in out and "bfloat16, run 2" in out
    report = json.loads((tmp_path / "a.json").read_text())["results"]["float32"]
    frames = round(0.5 * system.codec.frame_format.frame_rate)
    assert report["steps"] == frames + system.codec.frame_format.channels - 1  # the delay pattern
    fastest = max(report["steps"] / run["parts"]["lm"] for run in report["runs"])
    assert 0 < report["steps_per_second"] <= fastest and len(report["runs"]) == 2
    assert report["realtime_factor"] > 0 and report["first_audio_seconds"] > 0 and report["peak_memory_bytes"] > 2**20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--variants", "int9"), "'int9' is not a variant. Did you mean 'int8'?"),
        (("--seconds", 0), "--seconds must be above 0"),
    ],
)
def test_wrong_options_are_one_message(cadenza: Any, options: tuple[Any, ...], message: str) -> None:
    status, _, err = cadenza("bench", "starter", *options)
    assert status == 2 and message in err and "Traceback" not in err


def test_a_codec_alone_is_refused() -> None:
    with pytest.raises(BenchmarkError, match="a codec alone"):
        bench_system(System(SystemSpec.parse({"codec": tiny_system().spec.codec.to_dict()})), BenchJob(1.0))
