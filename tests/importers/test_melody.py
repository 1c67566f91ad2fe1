"""MusicGen with a melody in other geometries than the kit's: transformers computes what ours must, and loads our export."""

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


def sung(samples: int) -> Audio:
    return Audio(0.3 * torch.randn(1, 1, samples, generator=torch.Generator().manual_seed(samples)), 8000)


def inputs(system: System, items: list[Any]) -> dict[str, Tensor]:
    """What transformers' model is given for items that all have a melody, or none."""
    prepared = system.prepare(items)
    text, melody = prepared["prompt"].tensors, system.conditioners["melody"].encode(prepared["melody"])
    given = {"input_ids": text["ids"], "attention_mask": text["mask"].long()}
    return given | ({"input_features": melody.tensors["chroma"]} if prepared["melody"].present.all() else {})


@pytest.mark.parametrize("changes", [STEREO, NO_BRIDGE, FINE], ids=["stereo", "no projection", "24 pitch classes"])
def test_logits_and_sound_are_theirs_and_our_export_is_loaded(tmp_path: Path, changes: dict[str, Any]) -> None:
    from transformers import MusicgenMelodyForConditionalGeneration

    heard = {"num_chroma": 24} if changes is FINE else {}
    model = melody_folder(tmp_path / "theirs", heard=heard, **changes)
    system = cadenza.load(tmp_path / "theirs", device="cpu")
    said = export(system, tmp_path / "out")
    other, report = cast(
        Any, MusicgenMelodyForConditionalGeneration.from_pretrained(tmp_path / "out", output_loading_info=True)
    )
    assert not any(report.values()) and not any("note" in line for line in said), (report, said)
    again = cadenza.load(tmp_path / "out", device="cpu").spec
    assert again.conditioners["melody"] == system.spec.conditioners["melody"] and again.generator == system.spec.generator
    spec: Any = system.spec.generator
    texts = [{"prompt": "sad piano"}, {"prompt": "drums"}]
    many = [{**item, "melody": sung(n)} for item, n in zip(texts, (3000, 9000), strict=True)]
    codes = torch.randint(16, (2, system.codec.frame_format.channels, 5), generator=torch.Generator().manual_seed(1))
    pattern = spec.pattern.pattern(*codes.shape[1:])
    sequence, _ = build_sequence(pattern, codes, 16)
    for items in (many, texts):
        with torch.no_grad():
            out = model(**inputs(system, items), decoder_input_ids=sequence.flatten(0, 1)).logits[:, -sequence.shape[-1] :]
        fused = system.fuse(system.encode_conditions(system.prepare(items)), frames=5)
        logits = system.generator(sequence, fused, pattern.frame_at_step.expand(2, -1, -1)).transpose(1, 2)  # type: ignore[misc]
        torch.testing.assert_close(logits, out.unflatten(0, (2, -1)), atol=2e-4, rtol=1e-3)
    frames = 12 - system.codec.frame_format.channels // system.spec.codec.channels
    for theirs in (model, other.eval()):
        with torch.no_grad():
            wave = theirs.generate(**inputs(system, many), do_sample=False, max_new_tokens=11, guidance_scale=3.0)
        made = system.generate(many, seconds=frames / 100, sampling={"temperature": 0}, guidance=3.0)
        torch.testing.assert_close(made.wave, wave, atol=1e-4, rtol=1e-3)


def test_what_is_heard_of_a_melody(tmp_path: Path) -> None:
    """As its processor says, in the file of either release; where there is none, as that library does by default."""
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


def test_audiocrafts_package_is_the_same_model(tmp_path: Path) -> None:
    """The stems that it would hear, given as such, make the codes that transformers makes of them."""
    model = audiocraft_folder(tmp_path / "a", melody=True)
    system = cadenza.load(tmp_path / "a", device="cpu")
    melody: Any = system.spec.conditioners["melody"]
    assert (melody.window, melody.hop, melody.max_frames, melody.stems) == (512, 128, 126, ("vocals", "other"))
    assert [route.id for route in system.spec.fusion.prepend] == ["melody", "prompt"]
    model.half().float()
    model.config.chroma_length = 126
    items = [{"prompt": "sad piano", "melody": {"vocals": sung(3000), "drums": sung(200)}}]
    with torch.no_grad():
        wave = model.generate(**inputs(system, items), do_sample=False, max_new_tokens=11, guidance_scale=3.0)
    made = system.generate(items, seconds=0.09, sampling={"temperature": 0}, guidance=3.0)
    torch.testing.assert_close(made.wave, wave, atol=1e-3, rtol=1e-2)
    said = export(system, tmp_path / "b")
    assert any("vocals+other" in line for line in said) and any("cuts a melody to 2 s" in line for line in said)

    held = torch.load(tmp_path / "a/state_dict.bin", weights_only=True)
    state = {**audiocraft_lm(model), "condition_provider.conditioners.self_wav.chroma.spec.window": torch.ones(512)}
    save_package(tmp_path / "a/state_dict.bin", state, held["xp.cfg"])
    with pytest.raises(CheckpointError, match="chroma.spec.window is not the Hann window of 512"):
        cadenza.load(tmp_path / "a", device="cpu")


@pytest.mark.parametrize(
    ("where", "value", "said"),
    [
        ("melody", {"null_embedding": "learned"}, "conditioners.melody.null_embedding: 'learned'; transformers uses silence"),
        ("melody", {"max_frames": None}, "conditioners.melody.max_frames: must be given"),
        ("melody", {"one_hot": False}, "conditioners.melody.one_hot"),
        ("fusion", {"prepend": ["prompt", "melody"]}, r"fusion.prepend: must be the chroma and then the t5, not \['prompt'"),
        ("fusion", {"prepend": ["prompt"], "cross": ["melody"]}, "fusion: only `prepend`"),
    ],
)
def test_each_that_has_no_place(tmp_path: Path, where: str, value: Any, said: str) -> None:
    melody_folder(tmp_path / "a")
    data = cadenza.load(tmp_path / "a", device="cpu").spec.to_dict()
    (data["conditioners"]["melody"] if where == "melody" else data[where]).update(value)
    with pytest.raises(CheckpointError, match=said):
        export(System(SystemSpec.parse(data)), tmp_path / "out")
