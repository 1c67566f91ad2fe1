"""Exports load in transformers without missing or unexpected weights, and give equal results there."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from foreign import audiocraft_folder, musicgen_folder
from tiny import tiny_system

import cadenza
from cadenza.core.errors import CheckpointError
from cadenza.core.types import Codes
from cadenza.importers import export as module
from cadenza.importers.export import export
from cadenza.system.spec import SystemSpec
from cadenza.system.system import System

STEREO = {"decoder__num_codebooks": 6, "decoder__audio_channels": 2}
EQUAL = {"text__d_model": 16, "text__feed_forward_proj": "gated-gelu"}


def load_in_transformers(folder: Path) -> Any:
    """Return the model and the processor that transformers loads from a folder."""
    from transformers import AutoProcessor, MusicgenForConditionalGeneration

    model, report = cast(Any, MusicgenForConditionalGeneration.from_pretrained(folder, output_loading_info=True))
    assert not any(report.values()), report
    return model.eval(), AutoProcessor.from_pretrained(folder)


@pytest.mark.parametrize("changes", [{}, STEREO, EQUAL], ids=["mono", "stereo", "no projection"])
@pytest.mark.parametrize("sharded", [False, True])
def test_transformers_gives_equal_audio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: Any, sharded: bool) -> None:
    if sharded:
        monkeypatch.setattr(module, "SHARD_BYTES", 20_000)
    musicgen_folder(tmp_path / "theirs", **changes)
    system = cadenza.load(tmp_path / "theirs", device="cpu")
    system.save(tmp_path / "ours")
    export(cadenza.load(tmp_path / "ours", device="cpu"), tmp_path / "out")
    assert bool(list((tmp_path / "out").glob("model-*"))) == sharded
    model, processor = load_in_transformers(tmp_path / "out")
    inputs = processor(text=["sad piano", "drums"], padding=True, return_tensors="pt")
    rows = system.codec.frame_format.channels
    frames = 12 - rows // system.spec.codec.channels
    with torch.no_grad():
        wave = model.generate(**inputs, do_sample=False, max_new_tokens=11)
    assert model.generation_config.guidance_scale == 3.0
    ours = system.generate(["sad piano", "drums"], seconds=frames / 100, sampling={"temperature": 0})
    torch.testing.assert_close(ours.wave, wave, atol=1e-4, rtol=1e-3)
    assert model.generation_config.max_length == 43 and model.generation_config.top_k == 50


def test_export_and_import_round_trip(tmp_path: Path) -> None:
    musicgen_folder(tmp_path / "a")
    first = cadenza.load(tmp_path / "a", device="cpu")
    export(first, tmp_path / "b")
    again = cadenza.load(tmp_path / "b", device="cpu")
    assert again.spec.to_dict() | {"conditioners": 0} == first.spec.to_dict() | {"conditioners": 0}
    theirs = again.state_dict()
    for name, x in first.state_dict().items():
        torch.testing.assert_close(theirs[name], x, msg=name)


def test_audiocraft_model_exports_to_transformers(tmp_path: Path) -> None:
    audiocraft_folder(tmp_path / "a")
    system = cadenza.load(tmp_path / "a", device="cpu")
    notes = export(system, tmp_path / "b")
    assert any("masks the padding" in line for line in notes)
    model, processor = load_in_transformers(tmp_path / "b")
    with torch.no_grad():
        wave = model.generate(**processor(text=["sad piano"], return_tensors="pt"), do_sample=False, max_new_tokens=11)
    ours = system.generate("sad piano", seconds=0.09, sampling={"temperature": 0})
    torch.testing.assert_close(ours.wave, wave, atol=1e-4, rtol=1e-3)


def test_a_codec_alone(tmp_path: Path) -> None:
    from transformers import EncodecModel

    whole = tiny_system().codec
    codec = System(SystemSpec.parse({"codec": whole.spec.to_dict() | {"lstm_layers": 1, "bandwidths": []}}))
    export(codec, tmp_path / "out")
    model, report = cast(Any, EncodecModel.from_pretrained(tmp_path / "out", output_loading_info=True))
    assert not any(report.values()), report
    codes = torch.randint(16, (1, 2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wave = model.decode(codes[None], [None]).audio_values
    torch.testing.assert_close(codec.codec.decode(Codes(codes)).wave, wave, atol=1e-4, rtol=1e-3)


def test_unsupported_systems_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError) as error:
        export(tiny_system(), tmp_path / "out")
    for word in ("generator.positions: 'rotary'", "conditioners: must be one t5", "prompt, tempo, key", "fusion"):
        assert word in str(error.value)
    with pytest.raises(CheckpointError, match="no LSTM"):
        export(System(SystemSpec.parse({"codec": tiny_system().spec.codec.to_dict()})), tmp_path / "out")
    assert not list(tmp_path.iterdir()), "a refused export leaves nothing"


@pytest.mark.parametrize(
    ("section", "value", "message"),
    [
        ("generator", {"bias": True}, "generator.bias"),
        ("generator", {"norm_eps": 1e-6}, "generator.norm_eps: 1e-06"),
        ("generator", {"pattern": {"type": "parallel"}}, r"generator.pattern: must be a delay of \(0, 1, 2\)"),
        ("prompt", {"null_embedding": "learned"}, "conditioners.prompt.null_embedding: 'learned'"),
        ("prompt", {"normalize_text": True}, "conditioners.prompt.normalize_text"),
        ("fusion", {"cross": [], "prepend": ["prompt"]}, "fusion: only `cross`"),
    ],
)
def test_unsupported_settings_are_named(tmp_path: Path, section: str, value: Any, message: str) -> None:
    musicgen_folder(tmp_path / "a")
    data = cadenza.load(tmp_path / "a", device="cpu").spec.to_dict()
    (data["conditioners"]["prompt"] if section == "prompt" else data[section]).update(value)
    with pytest.raises(CheckpointError, match=message):
        export(System(SystemSpec.parse(data)), tmp_path / "out")


def test_a_folder_with_files_is_not_changed(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(CheckpointError, match="not empty"):
        export(tiny_system(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
