"""`cadenza generate`: prompt files, audio prompts, output names, tags."""

import json
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
import typer
from tiny import tiny_system

from cadenza.apps.api import load
from cadenza.apps.cli.main import main
from cadenza.apps.cli.parsing import parse_value
from cadenza.dsp.audio import load_audio
from cadenza.system.system import System


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    tiny_system().save(folder)
    return folder


@pytest.fixture
def generate(model, tmp_path, capsys, monkeypatch):
    """`generate(...)` gives status, what was printed, and the complaint; it runs in `tmp_path`."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        line = ["cadenza", "generate", *arguments, "--model", model]
        monkeypatch.setattr(sys, "argv", list(map(str, line)))
        with pytest.raises(SystemExit) as end, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            main()
        return int(end.value.code or 0), *capsys.readouterr()

    return run


def tone(path: Path, seconds: float = 0.3) -> Path:
    soundfile.write(path, 0.3 * np.sin(np.arange(round(8000 * seconds)) * 0.2), 8000)
    return path


def test_a_file_of_prompts(generate, tmp_path):
    (tmp_path / "p.txt").write_text("one\n\n  two at 90 bpm  \n")
    status, said, _ = generate("--prompts", "p.txt", "--seconds", 0.1, "--seed", 5, "--out", "{index}-{prompt}-{seed}.wav")
    assert status == 0 and "tempo 90" in said
    assert sorted(path.name for path in tmp_path.glob("*.wav")) == ["1-one-5.wav", "2-two-at-90-bpm-5.wav"]


def test_a_file_of_items_is_the_same_as_its_options(generate, tmp_path, monkeypatch):
    requests = []
    whole = System.generate
    monkeypatch.setattr(
        System, "generate", lambda self, request, **how: requests.append(request) or whole(self, request, **how)
    )
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "one", "tempo": 80}) + "\n" + json.dumps("two"))
    generate("--prompts", "p.jsonl", "--seconds", 0.1)
    generate("one", "--set", "tempo=80", "--seconds", 0.1)
    items = [[*request.items] for request in requests]
    assert items == [[{"prompt": "one", "tempo": 80}, {"prompt": "two"}], [{"prompt": "one", "tempo": 80.0}]]


def test_an_audio_file_is_gone_on_from(generate, tmp_path, model):
    """The clip begins with the file as the codec reconstructs it, also for --continue-from."""
    tone(tmp_path / "hum.wav", 0.16)
    assert generate("hum.wav", "--seconds", 0.32, "--seed", 1, "--out", "a.wav")[0] == 0
    system = tiny_system()
    heard = system.codec.decode(system.codec.encode(load_audio(tmp_path / "hum.wav"))).wave[0, 0].numpy()
    made = soundfile.read(tmp_path / "a.wav", dtype="float32")[0]
    loud = np.abs(made[:1000]).max() / np.abs(heard[:1000]).max()  # a wav is turned down where the clip is over full scale
    assert len(made) == 2560 and np.allclose(made[:1000], heard[:1000] * loud, atol=2e-3)
    generate("hum.wav", "--seconds", 0.32, "--seed", 1, "--out", "b.wav", "--only-new")
    assert len(soundfile.read(tmp_path / "b.wav")[0]) == 1280
    generate("slow", "--continue-from", "hum.wav", "--seconds", 0.32, "--seed", 1, "--out", "c.wav")
    with_text = soundfile.read(tmp_path / "c.wav", dtype="float32")[0]
    assert len(with_text) == 2560 and not np.array_equal(with_text, made)


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3"])
def test_a_file_says_how_it_was_made(generate, tmp_path, name):
    tone(tmp_path / "x.wav")
    generate("a slow tune", "--seconds", 0.2, "--seed", 7, "--out", name)
    with soundfile.SoundFile(tmp_path / name) as file:
        said = file.copy_metadata()
    assert said["title"] == "a slow tune"
    if name != "a.mp3":  # libsndfile writes the title, the artist and little else there
        assert "model tiny; seed 7; weights under MIT" in said["comment"]


def test_mistakes_name_the_mend(generate, tmp_path):
    (tmp_path / "notes.md").write_text("slow\n")
    (tmp_path / "empty.txt").write_text("\n")
    (tmp_path / "bad.jsonl").write_text('{"prompt": "a"}\n{"prompt": \n')
    tone(tmp_path / "long.wav", 3.0)
    cases = {
        (): "nothing to generate",
        ("notes.md",): "use --prompts notes.md",
        ("--prompts", "empty.txt"): "no line with a prompt",
        ("--prompts", "nowhere.txt"): "nowhere.txt: cannot be read",
        ("--prompts", "bad.jsonl"): "bad.jsonl, line 2",
        ("a", "b", "--out", "{prompt}{sed}.wav"): "unknown field {sed}; there are {index}, {seed}, {prompt}",
        ("a", "--variations", "2", "--out", "{prompt}.wav"): "2 clips would share 1 names",
        ("long.wav", "--seconds", "1"): "continue_from of clip 1 lasts",
        ("x", "--loudness", "3"): "loudness",
        ("hum.wav",): "hum.wav: no such file to continue",
        ("--prompts", "all.json"): "a line of its own",
        ("x", "--set", "prompt=y"): "'prompt' has a value in clip 1 already",
        ("x", "--set", "tempo=80", "--set", "tempo=90"): "'tempo' is set twice",
        ("x", "--out", "gone/x.wav"): "folder 'gone' not found; create it first",
        ("x", "--variations", "0"): "--variations",
    }
    for arguments, complaint in cases.items():
        status, _, said = generate(*arguments)
        assert status == 2 and complaint in said, (arguments, said)
    assert not list(tmp_path.glob("out*"))


def test_mistakes_are_said_before_a_model_is_read(generate, monkeypatch):
    monkeypatch.setattr(System, "from_saved", lambda *_, **__: pytest.fail("a large model would have been read"))
    for option in ("--seconds", "--guidance", "--loudness"):
        status, _, said = generate("x", option, "nan")
        assert status == 2 and option.removeprefix("--") in said


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3"])
def test_without_a_prompt(generate, tmp_path, name):
    """An empty word and an item of nothing are both music without a prompt, of which the file has no title."""
    assert generate("", "--seconds", 0.2, "--seed", 7, "--out", name)[0] == 0
    (tmp_path / "p.jsonl").write_text("{}\n")
    assert generate("--prompts", "p.jsonl", "--seconds", 0.2, "--seed", 7, "--out", f"items-{name}")[0] == 0
    assert np.array_equal(soundfile.read(tmp_path / name)[0], soundfile.read(tmp_path / f"items-{name}")[0])


def test_in_half_the_memory(generate, monkeypatch):
    made = []
    whole = System.generate
    monkeypatch.setattr(System, "generate", lambda self, items, **how: made.append(self) or whole(self, items, **how))
    assert generate("slow", "--seconds", 0.1, "--half")[0] == 0
    assert {x.dtype for x in made[0].generator.parameters()} == {torch.bfloat16}


@pytest.fixture
def asked_for(generate, monkeypatch):
    """The items of a call of `cadenza generate`, of which nothing is generated."""

    def run(*arguments: object, controls: dict[str, str]) -> list[dict]:
        requests: list[list[dict]] = []

        class Stop(Exception):
            pass

        def stop(request, **_):
            requests.append([*request.items])
            raise Stop

        parts = {name: SimpleNamespace(widget=widget) for name, widget in controls.items()}
        ids = SimpleNamespace(input_ids=lambda: ["prompt", *controls])
        system = SimpleNamespace(
            spec=SimpleNamespace(conditioners=parts), conditioners=ids, card=SimpleNamespace(name="m", license="MIT"),
            device=SimpleNamespace(type="gpu"), quantization=None, generate=stop,
        )  # fmt: skip
        monkeypatch.setattr("cadenza.apps.api.load", lambda *_, **__: system)
        monkeypatch.setattr(sys, "argv", list(map(str, ["cadenza", "generate", *arguments])))
        with pytest.raises(Stop):
            main()
        return requests[0]

    return run


CONTROLS = {
    "tempo": "number", "key": "choice", "chords": "chords", "melody": "melody", "drums": "drums", "hum": "audio",
    "mood": "text", "stems": "stems",
}  # fmt: skip


def test_every_control_has_an_option(asked_for, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tone(tmp_path / "hum.wav")
    options = ["--melody", "hum.wav", "--chords", "Am F C G", "--tempo", "92", "--key", "A minor", "--drums", "[0, 0.5]"]
    more = ["--condition", "mood=dark", "--set", "hum=hum.wav", "--set", 'stems={"bass": "hum.wav"}']
    [item] = asked_for("slow", *options, *more, controls=CONTROLS)
    assert item == {
        "prompt": "slow", "melody": "hum.wav", "chords": "Am F C G", "tempo": 92.0, "key": "A minor", "drums": [0, 0.5],
        "mood": "dark", "hum": "hum.wav", "stems": {"bass": "hum.wav"},
    }  # fmt: skip


def test_a_value_may_change_over_time(asked_for):
    [item] = asked_for(
        "0-8: piano; 8-end: strings, loud", "--tempo", "0-4:90; 4-8.5: 120", "--chords", "0-2: Am; 2-4: F/A",
        "--melody", "[[0, 0.5, 60], [0.5, 1, 62]]", "--set", "mood=at 8-10: dark", controls=CONTROLS,
    )  # fmt: skip
    assert item["prompt"] == [(0, 8, "piano"), (8, None, "strings, loud")] and item["tempo"] == [(0, 4, 90), (4, 8.5, 120)]
    assert item["chords"] == [(0, 2, "Am"), (2, 4, "F/A")] and item["melody"] == [[0, 0.5, 60], [0.5, 1, 62]]
    assert item["mood"] == "at 8-10: dark", "other texts stay as they are"


def test_a_control_that_is_not_there_is_said_with_those_that_are(generate):
    cases = {
        ("x", "--chords", "Am F"): "no control 'chords'. Choose from: prompt, tempo",
        ("x", "--set", "tempoo=9"): "Did you mean 'tempo'",
        ("x", "--tempo", "fast"): "'fast' is not a number",
        ("x", "--tempo", "0-4: 90; 4-8: quick"): "'quick' is not a number",
        ("x", "--tempo", "90", "--set", "tempo=91"): "'tempo' is set twice",
        ("x", "--tempo", "[1, 2"): "is not valid JSON",
        ("x", "--tempo", " "): "is empty",
    }
    for arguments, complaint in cases.items():
        status, _, said = generate(*arguments)
        assert status == 2 and complaint in said, (arguments, said)


def test_a_file_that_is_not_there_is_said():
    with pytest.raises(typer.BadParameter, match="no such file"):
        parse_value("nowhere.wav", "melody", "--melody")


def test_guidance_is_a_number_or_all_that_can_be_said_of_it(generate, monkeypatch):
    asked = []
    whole = System.generate
    monkeypatch.setattr(System, "generate", lambda self, request, **how: asked.append(request) or whole(self, request, **how))
    for said in (
        ["--guidance", "2"],
        ["--negative", "noise"],
        ["--guidance", "2", "--negative", "noise"],
        ["--guidance", '{"id_scales": {"tempo": 2}, "rescale": 0.5}', "--negative", "noise"],
        ["--guidance", '{"weights": {"all": 2}}', "--negative", "0-1: noise; 1-end: drums"],
    ):
        status, _, complaint = generate("one at 90 bpm", "--seconds", 0.1, "--seed", 1, *said)
        assert (status, complaint) == (0, ""), said
    negative = {"prompt": "noise"}
    scale = [request.guidance for request in asked]
    assert [one.scale for one in scale] == [2, None, 2, None, None]
    assert [one.negative for one in scale[:4]] == [(), (negative,), (negative,), (negative,)]
    assert scale[3].id_scales == {"tempo": 2} and scale[3].rescale == 0.5 and scale[4].weights == {"all": 2}
    assert scale[4].negative == ({"prompt": [(0.0, 1.0, "noise"), (1.0, None, "drums")]},)


@pytest.mark.parametrize(
    ("said", "says"),
    [
        (["--guidance", "strong"], "'strong' is not a number"),
        (["--guidance", "nan"], "must be a finite number"),
        (["--guidance", '{"scale": 3'], "is not valid JSON"),
        (["--guidance", '{"scael": 3}'], "scael"),
        (["--guidance", '{"weights": {"mood": 3}}'], "no condition called 'mood'"),
        (["--guidance", '{"negative": {"mood": 3}}'], "no condition called 'mood'"),
        (["--negative", " "], "is empty"),
        (["--negative", "a", "--guidance", '{"negative": "b"}'], "leave one out"),
    ],
)
def test_what_is_wrong_with_guidance_is_said(generate, said, says):
    status, _, complaint = generate("one", "--seconds", 0.1, *said)
    assert status == 2 and says in complaint and "Traceback" not in complaint


def test_what_a_prompt_that_changes_says_is_written_as_it_was(generate):
    status, said, _ = generate("0-8: one at 90 bpm; 8-16: two; 16-end: three at 120 bpm", "--seconds", 0.1, "--seed", 1)
    assert status == 0 and "read in the prompt: tempo 0-8: 90; 16-end: 120\n" in said


def test_the_device_is_said_with_its_reason(generate) -> None:
    status, said, _ = generate("low", "--seconds", 0.1, "--seed", 1, "--device", "cpu", "--half")
    assert status == 0 and "on cpu, bfloat16: requested device" in said
    status, _, complaint = generate("low", "--seconds", 0.1, "--device", "gpu")
    assert status == 2 and "'gpu'" in complaint


def test_with_quantised_weights(generate, model):
    status, said, err = generate("slow", "--quantize", "int8", "--seconds", 0.3, "--seed", 1, "--out", "a.wav")
    assert status == 0 and "int8 weights" in said, err
    heard, made = load_audio("a.wav").wave, load(model, quantize="int8").generate("slow", seconds=0.3, seed=1).wave
    torch.testing.assert_close(heard, made[0].clamp(-1, 1)[None].expand_as(heard), atol=1e-3, rtol=0)
    status, _, err = generate("slow", "--quantize", "int3", "--seconds", 0.3)
    assert status == 2 and "quantisation 'int3' is not known. Choose from: int8, int4" in err


def test_what_is_slow_says_what_would_be_faster(generate, monkeypatch):
    whole = System.generate

    def slow(self, request, **fields):
        clock = time.perf_counter
        monkeypatch.setattr(time, "perf_counter", lambda: clock() + 60)
        return whole(self, request, **fields)

    monkeypatch.setattr(System, "generate", slow)
    assert "--quantize int8" in generate("slow", "--seconds", 2)[2]
    assert "--quantize" not in generate("slow", "--seconds", 2, "--quantize", "int8")[2]
