"""Models of transformers and AudioCraft read texts, write codes and sound here as in their own libraries."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import cadenza
from cadenza.core.types import Codes
from cadenza.dsp.audio import Audio
from cadenza.nn.patterns import build_sequence
from cadenza.system.system import System

Kit = Callable[[str], Path]
LOGITS = {"atol": 2e-4, "rtol": 1e-3}
AUDIO = {"atol": 1e-4, "rtol": 1e-3}
GREEDY = {"temperature": 0}


def opened(folder: Path) -> tuple[System, list[str], dict[str, Tensor]]:
    """The model of a case, its prompts, and what its library computed."""
    prompts = json.loads((folder / "case.json").read_text())["parameters"]["prompts"]
    return cadenza.load(folder / "model", device="cpu"), prompts, load_file(folder / "expected.safetensors")


def items(system: System, group: str, prompts: list[str], lengths: Tensor) -> list[Any]:
    """The texts of a group: one, all, or some and none; known by the number of their tokens."""
    texts = {1: prompts[:1], 3: prompts}.get(len(lengths), [prompts[1], None])
    return [{} if text is None else {"prompt": text} for text in texts]


def logits(system: System, given: list[Any], codes: Tensor) -> tuple[Tensor, Tensor]:
    """Teacher-forced logits [b k s v] of the whole sequence of codes, and that sequence."""
    conditions = system.encode_conditions(system.prepare(given))
    spec: Any = system.spec.generator
    pattern = spec.pattern.pattern(codes.shape[1], codes.shape[2])
    sequence, _ = build_sequence(pattern, codes, system.codec.frame_format.cardinality)
    fused = system.fuse(conditions, frames=codes.shape[2])
    assert system.generator is not None
    return system.generator(sequence, fused, pattern.frame_at_step.expand(len(codes), -1, -1)).transpose(1, 2), sequence


def made(system: System, texts: Any, frames: int, **fields: Any) -> Tensor:
    codes = system.generate_frames(texts, seconds=frames / system.codec.frame_format.frame_rate, sampling=GREEDY, **fields)
    assert isinstance(codes, Codes)
    return codes.ids


@pytest.mark.parametrize("name", ["01", "02"])
def test_transformers_musicgen(kit: Kit, name: str) -> None:
    system, prompts, want = opened(kit(name))
    for group, texts in (("single", prompts[:1]), ("batch", prompts)):
        given = [{"prompt": text} for text in texts]
        condition = system.encode_conditions(system.prepare(given))["prompt"]
        torch.testing.assert_close(condition.embeddings, want[f"{group}.text_projected"], **AUDIO)
        assert torch.equal(condition.mask, want[f"{group}.attention_mask"].bool())
        found, sequence = logits(system, given, want[f"{group}.tf_codes"])
        assert torch.equal(sequence.flatten(0, 1), want[f"{group}.tf_decoder_input_ids"])
        torch.testing.assert_close(found.flatten(0, 1), want[f"{group}.tf_logits"], **LOGITS)
    for group, texts, guidance in (
        ("greedy_gs1", prompts[:1], 1.0),
        ("greedy_gs3", prompts[:1], 3.0),
        ("greedy_batch_gs3", prompts, 3.0),
        ("greedy_uncond", None, 1.0),
    ):
        codes = want[f"{group}.codes"]
        assert torch.equal(made(system, texts, codes.shape[-1], guidance=guidance), codes), group
        if f"{group}.audio" in want:
            torch.testing.assert_close(system.codec.decode(Codes(codes)).wave, want[f"{group}.audio"], **AUDIO)
    whole = want["continuation.codes"]
    prompt = Audio(want["continuation.input_values"], system.spec.codec.sample_rate)
    assert torch.equal(system.codec.encode(prompt).ids, want["continuation.prompt_codes"])
    assert torch.equal(made(system, prompts[1], whole.shape[-1], guidance=3.0, continue_from=prompt), whole)
    mono = system.codec if name == "01" else system.codec.codec
    torch.testing.assert_close(mono.decode(Codes(want["codec.codes"][0])).wave, want["codec.decoded"], **AUDIO)


@pytest.mark.parametrize("name", ["09a", "09b", "09d"])
def test_audiocraft(kit: Kit, name: str) -> None:
    system, prompts, want = opened(kit(name))
    for group in ("single", "batch", "with_empty"):
        given = items(system, group, prompts, want[f"{group}.text_mask"])
        if group == "with_empty" and not want["with_empty.text_mask"][0].any():
            given = given[::-1]
        condition = system.encode_conditions(system.prepare(given))["prompt"]
        torch.testing.assert_close(condition.embeddings, want[f"{group}.cond.description"], **AUDIO)
        found, sequence = logits(system, given, want[f"{group}.codes"])
        assert torch.equal(sequence, want[f"{group}.sequence"])
        torch.testing.assert_close(found, want[f"{group}.sequence_logits"], **LOGITS)
    for group, texts, fields in (
        ("greedy_cfg3", prompts[:1], {"guidance": 3.0}),
        ("greedy_cfg1", prompts[:1], {"guidance": 1.0}),
        ("greedy_batch_cfg3", prompts, {"guidance": 3.0}),
        ("greedy_two_step", prompts, {"guidance": 3.0, "two_step_cfg": True}),
        ("greedy_null", None, {"guidance": 3.0}),
    ):
        codes = want[f"{group}.codes"]
        assert torch.equal(made(system, texts, codes.shape[-1], **fields), codes), group
    audio = want["greedy_cfg3.audio"]
    torch.testing.assert_close(system.codec.decode(Codes(want["greedy_cfg3.codes"][..., :16])).wave, audio, **AUDIO)
    whole = want["continuation.codes"]
    beginning = Codes(want["continuation.prompt_codes"])
    assert torch.equal(made(system, prompts[1], whole.shape[-1], continue_from=beginning), whole)
    for length in [key.split(".")[1] for key in want if key.startswith("codec.") and key.endswith(".waveform")]:
        wave = Audio(want[f"codec.{length}.waveform"], system.spec.codec.sample_rate)
        codes = system.codec.encode(wave).ids
        assert torch.equal(codes, want[f"codec.{length}.codes"])
        torch.testing.assert_close(system.codec.decode(Codes(codes)).wave, want[f"codec.{length}.decoded"], **AUDIO)


def test_windows_are_as_long_as_the_clips_of_training(kit: Kit) -> None:
    """With such windows `test_musicgen_lm` goes beyond them."""
    folder = kit("09a")
    window = json.loads((folder / "case.json").read_text())["tensors"]["long.codes"]["what"]
    system, _, _ = opened(folder)
    assert f"max_duration {system.spec.generator.max_frames // 50}," in window
    assert system.spec.defaults.seconds == system.spec.generator.max_frames / 50


@pytest.mark.parametrize("name", ["04a", "04b", "04c"])
def test_a_codec_alone(kit: Kit, name: str) -> None:
    folder = kit(name)
    system, want = cadenza.load(folder / "model", device="cpu"), load_file(folder / "expected.safetensors")
    assert system.generator is None
    most = max(int(key.split(".bw")[1].split(".")[0]) for key in want if ".bw" in key)
    for length in {key.split(".")[0] for key in want if key.endswith(".waveform")}:
        ids = want[f"{length}.bw{most}.codes"]
        codes = system.codec.encode(Audio(want[f"{length}.waveform"], system.spec.codec.sample_rate))
        row = torch.cat(list(ids), -1)  # theirs lists chunks and pads the last, ours has them in a row
        assert torch.equal(codes.ids, row[..., : codes.ids.shape[-1]]), length
        assert not row[..., codes.ids.shape[-1] :].any()
        wave = want[f"{length}.waveform"]
        decoded = system.codec.decode(codes).wave
        torch.testing.assert_close(decoded, want[f"{length}.bw{most}.decoded"][..., : wave.shape[-1]], **AUDIO)


def test_saved_models_say_the_same_without_their_origin(kit: Kit, tmp_path: Path) -> None:
    for name in ("02", "09d"):
        system, prompts, _ = opened(kit(name))
        system.save(tmp_path / name)
        again = cadenza.load(tmp_path / name, device="cpu")
        assert str(kit(name)) not in (tmp_path / name / "system.json").read_text()
        assert torch.equal(made(again, prompts[1], 12, guidance=3.0), made(system, prompts[1], 12, guidance=3.0))
