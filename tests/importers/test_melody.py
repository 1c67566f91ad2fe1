"""MusicGen Melody in geometries that the conformance kit lacks, compared with transformers; the export loads there."""

from pathlib import Path
from typing import Any, cast

import pytest
import torch
from foreign import audiocraft_folder, audiocraft_lm, change, melody_folder, save_package
from torch import Tensor

import cadenza
from cadenza.core.errors import CheckpointError
from cadenza.dsp.audio import Audio
from cadenza.importers.export import export
from cadenza.nn.patterns import build_sequence
from cadenza.system.spec import SystemSpec
from cadenza.system.system import System

STEREO = {"decoder__num_codebooks": 6, "decoder__audio_channels": 2, "text__d_model": 16, "whole__chroma_length": 70}
NO_BRIDGE = {"decoder__hidden_size": 12, "decoder__num_attention_heads": 3, "text__d_model": 8, "decoder__num_hidden_layers": 1}
FINE = {"whole__num_chroma": 24}


def melody_audio(samples: int) -> Audio:
    return Audio(0.3 * torch.randn(1, 1, samples, generator=torch.Generator().manual_seed(samples)), 8000)


def inputs(system: System, items: list[Any]) -> dict[str, Tensor]:
    """Return the inputs of transformers' model for items that all have a melody, or none."""
    prepared = system.prepare(items)
    text, melody = prepared["prompt"].tensors, system.conditioners["melody"].encode(prepared["melody"])
    arguments = {"input_ids": text["ids"], "attention_mask": text["mask"].long()}
    return arguments | ({"input_features": melody.tensors["x"]} if prepared["melody"].present.all() else {})


@pytest.mark.parametrize("changes", [STEREO, NO_BRIDGE, FINE], ids=["stereo", "no projection", "24 pitch classes"])
def test_logits_audio_and_export_equal_transformers(tmp_path: Path, changes: dict[str, Any]) -> None:
    from transformers import MusicgenMelodyForConditionalGeneration

    extractor = {"num_chroma": 24} if changes is FINE else {}
    model = melody_folder(tmp_path / "theirs", extractor_changes=extractor, **changes)
    system = cadenza.load(tmp_path / "theirs", device="cpu")
    notes = export(system, tmp_path / "out")
    other, report = cast(
        Any, MusicgenMelodyForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    )
    assert not any(report.values()) and not any("note" in line for line in notes), (report, notes)
    again = cadenza.load(tmp_path / "out", device="cpu").spec
    assert again.conditioners["melody"] == system.spec.conditioners["melody"] and again.generator == system.spec.generator
    spec: Any = system.spec.generator
    texts = [{"prompt": "sad piano"}, {"prompt": "drums"}]
    with_melody = [{**item, "melody": melody_audio(n)} for item, n in zip(texts, (3000, 9000), strict=True)]
    codes = torch.randint(16, (2, system.codec.frame_format.channels, 5), generator=torch.Generator().manual_seed(1))
    pattern = spec.pattern.pattern(*codes.shape[1:])
    sequence, _ = build_sequence(pattern, codes, 16)
    for items in (with_melody, texts):
        with torch.no_grad():
            out = model(**inputs(system, items), decoder_input_ids=sequence.flatten(0, 1)).logits[:, -sequence.shape[-1] :]
        fused = system.fuse(system.encode_conditions(system.prepare(items)), frames=5)
        logits = system.generator(sequence, fused, pattern.frame_at_step.expand(2, -1, -1)).transpose(1, 2)  # type: ignore[misc]
        torch.testing.assert_close(logits, out.unflatten(0, (2, -1)), atol=2e-4, rtol=1e-3)
    frames = 12 - system.codec.frame_format.channels // system.spec.codec.channels
    for theirs in (model, other.eval()):
        with torch.no_grad():
            wave = theirs.generate(**inputs(system, with_melody), do_sample=False, max_new_tokens=11, guidance_scale=3.0)
        ours = system.generate(with_melody, seconds=frames / 100, sampling={"temperature": 0}, guidance=3.0)
        torch.testing.assert_close(ours.wave, wave, atol=1e-4, rtol=1e-3)


def test_chroma_spec(tmp_path: Path) -> None:
    """The spec follows the processor config of either release of transformers, else that library's defaults."""
    melody_folder(tmp_path)
    spec: Any = cadenza.load(tmp_path, device="cpu").spec.conditioners["melody"]
    assert (spec.sample_rate, spec.window, spec.hop, spec.seconds, spec.max_frames) == (8000, 512, 128, 1, 9)
    assert spec.stems is None and spec.null_embedding == "silence" and spec.pad_to == "longest"
    change(tmp_path / "processor_config.json", feature_extractor__padding_side="left", feature_extractor__num_chroma=24)
    with pytest.raises(CheckpointError, match="(?s)padding_side: 'left'.*num_chroma: 24 is not the num_chroma of the model"):
        cadenza.load(tmp_path, device="cpu")
    (tmp_path / "processor_config.json").unlink()
    (tmp_path / "preprocessor_config.json").write_text('{"n_fft": 1024, "sampling_rate": 16000}')
    spec = cadenza.load(tmp_path, device="cpu").spec.conditioners["melody"]
    assert (spec.sample_rate, spec.window, spec.hop, spec.seconds) == (16000, 1024, 4096, 30)
    (tmp_path / "preprocessor_config.json").unlink()
    spec = cadenza.load(tmp_path, device="cpu").spec.conditioners["melody"]
    assert (spec.sample_rate, spec.window, spec.hop, spec.seconds) == (32000, 16384, 4096, 30)


def test_audiocraft_package_equals_transformers(tmp_path: Path) -> None:
    """Separated stems as input give the audio of transformers."""
    model = audiocraft_folder(tmp_path / "a", melody=True)
    system = cadenza.load(tmp_path / "a", device="cpu")
    melody: Any = system.spec.conditioners["melody"]
    assert (melody.window, melody.hop, melody.max_frames, melody.stems) == (512, 128, 126, ("vocals", "other"))
    assert [route.id for route in system.spec.fusion.prepend] == ["melody", "prompt"]
    model.half().float()
    model.config.chroma_length = 126
    items = [{"prompt": "sad piano", "melody": {"vocals": melody_audio(3000), "drums": melody_audio(200)}}]
    with torch.no_grad():
        wave = model.generate(**inputs(system, items), do_sample=False, max_new_tokens=11, guidance_scale=3.0)
    ours = system.generate(items, seconds=0.09, sampling={"temperature": 0}, guidance=3.0)
    torch.testing.assert_close(ours.wave, wave, atol=1e-3, rtol=1e-2)
    notes = export(system, tmp_path / "b")
    assert any("vocals+other" in line for line in notes) and any("cuts a melody to 2 s" in line for line in notes)

    content = torch.load(tmp_path / "a/state_dict.bin", weights_only=True)
    state = {**audiocraft_lm(model), "condition_provider.conditioners.self_wav.chroma.spec.window": torch.ones(512)}
    save_package(tmp_path / "a/state_dict.bin", state, content["xp.cfg"])
    with pytest.raises(CheckpointError, match="chroma.spec.window is not the Hann window of 512"):
        cadenza.load(tmp_path / "a", device="cpu")


@pytest.mark.parametrize(
    ("section", "value", "message"),
    [
        ("melody", {"null_embedding": "learned"}, "conditioners.melody.null_embedding: 'learned'; transformers uses silence"),
        ("melody", {"max_frames": None}, "conditioners.melody.max_frames: must be given"),
        ("melody", {"one_hot": False}, "conditioners.melody.one_hot"),
        ("fusion", {"prepend": ["prompt", "melody"]}, r"fusion.prepend: must be the chroma and then the t5, not \['prompt'"),
        ("fusion", {"prepend": ["prompt"], "cross": ["melody"]}, "fusion: only `prepend`"),
    ],
)
def test_unsupported_settings_are_named(tmp_path: Path, section: str, value: Any, message: str) -> None:
    melody_folder(tmp_path / "a")
    data = cadenza.load(tmp_path / "a", device="cpu").spec.to_dict()
    (data["conditioners"]["melody"] if section == "melody" else data[section]).update(value)
    with pytest.raises(CheckpointError, match=message):
        export(System(SystemSpec.parse(data)), tmp_path / "out")
