"""The memory and time that a run prints beforehand."""

import sys

import pytest
from tiny import tiny_system

from cadenza.apps.cli.main import main
from cadenza.core.memory import process_rss


@pytest.fixture
def cadenza(capsys, monkeypatch):
    """The program, run in this process; its status, what it printed and what it complained of."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cadenza", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), *capsys.readouterr()

    return run


@pytest.fixture
def model(tmp_path, monkeypatch):
    monkeypatch.setenv("CADENZA_CACHE", "off")
    tiny_system().save(tmp_path / "model")
    return tmp_path / "model"


def test_inspect_plans(cadenza, model):
    status, out, err = cadenza("inspect", model, "--seconds", 3, "--batch", 2)
    assert status == 0, err
    memory, time = out.splitlines()[-2:]
    assert memory.startswith("memory: ") and "at the peak, while" in memory
    for part in ("program", "keys and values", "generator weights", "codec weights", "packed copies"):
        assert part in memory, part
    assert time == "time: unknown, as no such run was recorded on this machine"


def test_inspect_alone_plans_nothing(cadenza, model):
    status, out, _ = cadenza("inspect", model)
    assert status == 0 and "memory:" not in out and "time:" not in out


def test_inspect_names_what_would_fit(cadenza, model):
    room = process_rss() // 10**6 + 700  # MB: what this program takes grows with every test
    status, _, err = cadenza("inspect", model, "--seconds", 60, "--batch", 900, "--memory", f"{room}MB")
    assert status == 2 and "too little memory" in err and "available" in err
    assert "what would fit: " in err and "instead of 900" in err


def test_inspect_chooses_the_dtype_but_not_against_the_user(cadenza, model):
    status, out, _ = cadenza("inspect", model, "--seconds", 3, "--dtype", "bfloat16")
    assert status == 0 and "packed copies" not in out  # which only float32 has
    status, out, _ = cadenza("inspect", model, "--seconds", 3, "--half")
    assert status == 0 and "packed copies" not in out


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--dtype", "float8"), "not a dtype to compute with. Available: float32, bfloat16"),
        (("--quantize", "int2"), "Choose from: int8, int4"),
        (("--memory", "much"), "not an amount of memory"),
        (("--batch", "0"), "greater than or equal to 1"),
        (("--seconds", "-1"), "must be a number of seconds above 0"),
    ],
)
def test_mistakes(cadenza, model, options, words):
    status, _, err = cadenza("inspect", model, "--seconds", 3, *options)
    assert status == 2 and words in err.replace("\n", " ")


def test_a_codec_alone_has_nothing_to_plan(cadenza, tmp_path):
    from tiny import TINY

    from cadenza.system.spec import SystemSpec
    from cadenza.system.system import System

    System(SystemSpec.parse({"codec": TINY["codec"]})).save(tmp_path / "codec")
    status, _, err = cadenza("inspect", tmp_path / "codec", "--seconds", 3)
    assert status == 2 and "codec alone" in err


def test_generate_refuses_before_it_reads_a_model(cadenza, model, monkeypatch, tmp_path):
    monkeypatch.setenv("CADENZA_MEMORY", "2MB")
    monkeypatch.setattr("cadenza.system.store._read_weights", None)
    status, _, err = cadenza("generate", "piano", "--model", model, "--out", tmp_path / "a.wav")
    assert status == 2 and "too little memory" in err and not (tmp_path / "a.wav").exists()


def test_generate_prints_the_time_of_earlier_runs(cadenza, model, tmp_path, monkeypatch):
    monkeypatch.setenv("CADENZA_CACHE", str(tmp_path / "cache"))
    arguments = ("generate", "piano", "--model", model, "--seconds", 0.2, "--out", tmp_path / "a.wav")
    status, out, err = cadenza(*arguments)
    assert status == 0, err
    assert out.startswith("memory: ") and "\ntime: unknown" in out and (tmp_path / "a.wav").exists()
    status, out, err = cadenza(*arguments)
    assert status == 0, err
    assert "\ntime: about " in out and "x real time), without loading, from 1 earlier run\n" in out
    status, out, err = cadenza(*arguments)
    assert "from 2 earlier runs\n" in out
    status, out, err = cadenza("inspect", model, "--seconds", 0.2, "--batch", 1)
    assert "time: about " in out and "from 3 earlier runs\n" in out
