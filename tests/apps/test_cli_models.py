"""`import`, `export`, `inspect` and `models` as a user meets them."""

import json
import pickle
import re
import sys
from pathlib import PurePath

import pytest
import soundfile
from foreign import audiocraft_folder, musicgen_folder
from tiny import tiny_system

from cadenza.apps.api import load
from cadenza.apps.cli import models as listing
from cadenza.apps.cli.main import main


@pytest.fixture
def cadenza(capsys, monkeypatch):
    """The program, run in this process; its status, what it printed and what it complained of."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["cadenza", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0), *capsys.readouterr()

    return run


def test_import_then_use_without_the_origin(cadenza, tmp_path):
    theirs = tmp_path / "theirs"
    musicgen_folder(theirs)
    (theirs / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
    status, out, err = cadenza("import", theirs, tmp_path / "ours")
    assert status == 0, err
    assert "licence of the weights: CC-BY-NC-4.0" in out and "ours: theirs" in out
    theirs.rename(tmp_path / "gone")
    wav = tmp_path / "a.wav"
    status, out, err = cadenza(
        "generate", "sad piano", "--model", tmp_path / "ours", "--seconds", 0.2, "--out", wav, "--seed", 1
    )
    assert status == 0, err
    assert "CC-BY-NC-4.0" in out and soundfile.info(wav).frames == 1600
    status, out, _ = cadenza("inspect", tmp_path / "ours")
    assert status == 0 and "licence of the weights: CC-BY-NC-4.0" in out and "layout of Cadenza" in out


def test_import_in_half_the_size(cadenza, tmp_path):
    audiocraft_folder(tmp_path / "theirs")
    assert cadenza("import", tmp_path / "theirs", tmp_path / "whole")[0] == 0
    assert cadenza("import", tmp_path / "theirs", tmp_path / "half", "--half")[0] == 0
    whole, half = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("whole", "half"))
    assert half < 0.6 * whole


def test_import_in_8_bits(cadenza, tmp_path):
    musicgen_folder(tmp_path / "theirs")
    assert cadenza("import", tmp_path / "theirs", tmp_path / "narrow", "--quantize", "int8")[0] == 0
    assert load(tmp_path / "narrow").quantization == "int8"
    wav = tmp_path / "a.wav"
    status, _, err = cadenza("generate", "sad", "--model", tmp_path / "narrow", "--seconds", 0.2, "--out", wav)
    assert status == 0 and soundfile.info(wav).frames == 1600, err
    status, _, err = cadenza("import", tmp_path / "theirs", tmp_path / "wrong", "--quantize", "int4")
    assert status == 2 and "int4 needs layers whose number of inputs" in err and not (tmp_path / "wrong").exists()


@pytest.mark.parametrize(("option", "attended"), [((), True), (("--mask-padding",), False), (("--attend-padding",), True)])
def test_import_chooses_what_becomes_of_padding(cadenza, tmp_path, option, attended):
    audiocraft_folder(tmp_path / "theirs")
    assert cadenza("import", tmp_path / "theirs", tmp_path / "ours", *option)[0] == 0
    assert json.loads((tmp_path / "ours/system.json").read_text())["generator"]["attend_padding"] is attended


def test_import_of_a_codec_has_no_padding_of_prompts(cadenza, tmp_path):
    audiocraft_folder(tmp_path / "theirs")
    (tmp_path / "theirs/state_dict.bin").unlink()
    status, _, err = cadenza("import", tmp_path / "theirs", tmp_path / "ours", "--mask-padding")
    assert status == 2 and "no prompts to pad" in err and not (tmp_path / "ours").exists()


def test_import_says_at_once_that_a_text_encoder_is_not_here(cadenza, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    audiocraft_folder(tmp_path / "theirs", conditioners__description__t5__name="t5-of-nobody")
    with pytest.warns(UserWarning, match="'prompt' cannot be used yet.*t5-of-nobody.*hf download"):
        status, out, _ = cadenza("import", tmp_path / "theirs", tmp_path / "ours")
    assert status == 0 and "licence of the weights" in out


def test_a_bare_pickle_is_refused_without_other_words(cadenza, tmp_path, recwarn):
    """torch would warn of the protocol and ask for an issue to be filed."""
    audiocraft_folder(tmp_path)
    (tmp_path / "state_dict.bin").write_bytes(pickle.dumps({"best_state": PurePath("x")}, protocol=4))
    status, _, err = cadenza("import", tmp_path, tmp_path / "ours")
    assert status == 2 and "could run its code" in err
    assert not [str(each.message) for each in recwarn if "pickle" in str(each.message)]


@pytest.mark.parametrize("channels", [0, -3])
def test_channels_that_cannot_be(cadenza, tmp_path, channels):
    musicgen_folder(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config["audio_encoder"], "audio_channels": channels}))
    status, _, err = cadenza("import", tmp_path, tmp_path / "ours")
    assert status == 2 and f"channels: Input should be greater than 0, got {channels}" in err, err


def test_export_and_back(cadenza, tmp_path):
    musicgen_folder(tmp_path / "theirs")
    assert cadenza("import", tmp_path / "theirs", tmp_path / "ours")[0] == 0
    status, out, err = cadenza("export", tmp_path / "ours", tmp_path / "again")
    assert status == 0, err
    assert "MusicgenForConditionalGeneration of transformers" in out and "licence: unknown" in out
    assert (tmp_path / "again/model.safetensors").exists()
    status, out, _ = cadenza("inspect", tmp_path / "again")
    assert status == 0 and "layout of transformers MusicGen" in out


def test_mistakes_are_one_message(cadenza, tmp_path):
    tiny_system().save(tmp_path / "tiny")
    for arguments, said in (
        (("export", tmp_path / "tiny", tmp_path / "out"), "cannot be a MusicGen of transformers"),
        (("import", tmp_path / "nothing", tmp_path / "out"), "is neither a folder nor a bundled model"),
        (("inspect", tmp_path), "holds no known model"),
        (("import", tmp_path / "tiny", tmp_path), "is not a saved system"),
    ):
        status, out, err = cadenza(*arguments)
        assert status == 2 and said in err and "Traceback" not in err, err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["theirs", "package", "ours"])
def test_inspect_reads_no_weights(cadenza, tmp_path, kind):
    """Weights that are damaged do not matter, as long as no command reads them."""
    folder = tmp_path / kind
    if kind == "package":
        audiocraft_folder(folder)
    else:
        musicgen_folder(folder)
    if kind == "ours":
        assert cadenza("import", folder, tmp_path / "imported")[0] == 0
        folder = tmp_path / "imported"
    if kind != "package":
        (folder / "model.safetensors").write_bytes(b"nothing")
    status, out, err = cadenza("inspect", folder)
    assert status == 0, err
    for line in (
        "codec: Encodec, 8000 Hz mono, 100 frames/s x 3",
        "control prompt: T5Conditioner (text) -> cross",
        "M parameters",
    ):
        assert line in out
    sizes = dict(re.findall(r"^(codec|conditioners|generator): ([\d.]+) M", out, re.M))
    # attention 4 * 16², to the text as many, feed-forward 2 * 16 * 24, three norms; tables, heads, last norm
    assert float(sizes["generator"]) == round((2 * (8 * 256 + 2 * 384 + 6 * 16) + 3 * 33 * 16 + 32) / 1e6, 2)


def test_models_lists_licences_sizes_and_what_runs(cadenza, monkeypatch):
    monkeypatch.setattr(listing, "_total_memory", lambda: (8 * 2**30, "this machine"))
    monkeypatch.setattr(listing, "_is_downloaded", lambda name: name == "facebook/encodec_24khz")
    status, out, err = cadenza("models")
    assert status == 0, err
    rows = {line.split()[0]: line for line in out.splitlines() if line and not line.startswith("memory")}
    assert "MIT" in rows["starter"] and "  runs  " in rows["starter"]
    assert "CC-BY-NC-4.0" in rows["facebook/musicgen-small"] and "586.9 M" in rows["facebook/musicgen-small"]
    assert "  runs  " in rows["facebook/musicgen-small"]
    assert "runs half" in rows["facebook/musicgen-medium"]  # 7.5 GiB and something to compute with
    assert "runs half" in rows["facebook/musicgen-large"] and "3.42 G" in rows["facebook/musicgen-large"]
    assert "(on this machine)" in rows["facebook/encodec_24khz"] and "(on this" not in rows["facebook/encodec_32khz"]
    assert "not for commercial use" in out
    monkeypatch.setattr(listing, "_total_memory", lambda: (2**30, "the GPU"))
    assert "too large" in cadenza("models")[1]


def test_models_in_a_folder(cadenza, tmp_path):
    tiny_system().save(tmp_path / "runs/tiny")
    (tmp_path / "runs/broken").mkdir()
    (tmp_path / "runs/broken/system.json").write_text("{}")
    (tmp_path / "runs/broken/model.safetensors").write_bytes(b"x")
    status, out, err = cadenza("models", tmp_path / "runs")
    assert status == 0, err
    parameters = sum(x.numel() for x in tiny_system().parameters()) / 1e6  # as `inspect` counts
    line = next(line for line in out.splitlines() if "runs/tiny" in line)
    assert f"{parameters:.1f} M" in line and "MIT" in line
    assert "damaged" in next(line for line in out.splitlines() if "runs/broken" in line)
    (tmp_path / "empty").mkdir()
    assert "holds no model" in cadenza("models", tmp_path / "empty")[1]
    assert "is not a folder" in cadenza("models", tmp_path / "nowhere")[2]


def test_the_machines_memory_is_known():
    memory, where = listing._total_memory()
    assert 2**27 < memory < 2**50 and where in ("this machine", "the GPU")
