"""MusicGen with a melody says here what it says in transformers and in AudioCraft: prefix, logits, codes, sound."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

import cadenza
from cadenza.core.types import Codes
from cadenza.dsp.audio import Audio
from cadenza.nn.patterns import build_sequence, revert_logits
from cadenza.system.system import System

Kit = Callable[[str], Path]
LOGITS = {"atol": 2e-4, "rtol": 1e-3}
VALUES = {"atol": 1e-4, "rtol": 1e-3}
GREEDY = {"temperature": 0}


def opened(folder: Path) -> tuple[System, list[str], dict[str, Tensor]]:
    prompts = json.loads((folder / "case.json").read_text())["parameters"]["prompts"]
    return cadenza.load(folder / "model", device="cpu"), prompts, load_file(folder / "expected.safetensors")


def forced(system: System, items: list[Any], codes: Tensor) -> tuple[Tensor, Tensor, Any]:
    """Teacher-forced logits [b k s v], the sequence of codes that they are of, and the prefix before it."""
    spec: Any = system.spec.generator
    pattern = spec.pattern.pattern(codes.shape[1], codes.shape[2])
    sequence, _ = build_sequence(pattern, codes, system.codec.frame_format.cardinality)
    fused = system.fuse(system.encode_conditions(system.prepare(items)), frames=codes.shape[2])
    assert system.generator is not None
    logits = system.generator(sequence, fused, pattern.frame_at_step.expand(len(codes), -1, -1)).transpose(1, 2)
    return logits, sequence, fused.prepend


def made(system: System, items: Any, want: Tensor, **fields: Any) -> Tensor:
    codes = system.generate_frames(
        items, seconds=want.shape[-1] / system.codec.frame_format.frame_rate, sampling=GREEDY, **fields
    )
    assert isinstance(codes, Codes)
    return codes.ids


def test_transformers(kit: Kit) -> None:
    system, prompts, want = opened(kit("03"))
    melody = Audio(want["melody.waveform"][None], 32000)
    other = Audio(want["melody2.waveform"][None], 32000)
    chroma = system.conditioners["melody"]
    for name, sound in (("melody", melody), ("melody2", other)):
        found = chroma.encode(chroma.prepare([sound])).tensors["x"][:, : want[f"{name}.input_features"].shape[1]]
        assert torch.equal(found, want[f"{name}.input_features"])
    for group, texts in (("single", prompts[:1]), ("batch", prompts)):
        sung = [{"prompt": text, "melody": melody} for text in texts]
        for items, key in ((sung, "tf_logits_melody"), ([{"prompt": text} for text in texts], "tf_logits")):
            logits, sequence, prefix = forced(system, items, want[f"{group}.tf_codes"])
            assert torch.equal(sequence.flatten(0, 1), want[f"{group}.tf_decoder_input_ids"])
            torch.testing.assert_close(logits.flatten(0, 1), want[f"{group}.{key}"][:, 2:], **LOGITS)
            if items is sung:
                torch.testing.assert_close(prefix.x, want[f"{group}.prefix"], **VALUES)
    one = {"prompt": prompts[0], "melody": melody}
    for group, items, guidance in (
        ("greedy_melody_gs1", one, 1.0),
        ("greedy_text_gs1", prompts[0], 1.0),
        ("greedy_melody_gs3", one, 3.0),
        ("greedy_text_gs3", prompts[0], 3.0),
        ("greedy_batch_gs3", [{"prompt": text, "melody": melody} for text in prompts], 3.0),
    ):
        codes = want[f"{group}.codes"]
        assert torch.equal(made(system, items, codes, guidance=guidance), codes), group
        if f"{group}.audio" in want:
            torch.testing.assert_close(system.codec.decode(Codes(codes)).wave, want[f"{group}.audio"], **VALUES)


def test_audiocraft(kit: Kit) -> None:
    """The case uses whole mixes: they are passed as the stems that a separator would return."""
    system, prompts, want = opened(kit("09c"))
    first, second = ({"vocals": Audio(want[f"melody{i}.waveform"][None], 32000)} for i in (0, 1))
    items = [{"prompt": text} for text in prompts]
    items[0]["melody"], items[2]["melody"] = first, second
    for group, given in (
        ("single", items[:1]),
        ("batch", items),
        ("with_empty", [items[1], {"melody": second}]),
    ):
        conditions = system.encode_conditions(system.prepare(given))
        fused = system.fuse(conditions, frames=want[f"{group}.codes"].shape[-1])
        melodies = want[f"{group}.cond.self_wav"]
        torch.testing.assert_close(fused.prepend.x[:, : melodies.shape[1]], melodies, msg=group, **VALUES)
        assert torch.equal(fused.prepend.mask[:, :157], want[f"{group}.cond_mask.self_wav"].bool())
        torch.testing.assert_close(fused.prepend.x[:, 157:], want[f"{group}.cond.description"], **VALUES)
        logits, sequence, _ = forced(system, given, want[f"{group}.codes"])
        assert torch.equal(sequence, want[f"{group}.sequence"])
        torch.testing.assert_close(logits, want[f"{group}.sequence_logits"], **LOGITS)
        spec: Any = system.spec.generator
        pattern = spec.pattern.pattern(*want[f"{group}.codes"].shape[1:])
        valid, _ = revert_logits(pattern, logits[:, :, : pattern.valid_steps], fill=0)
        torch.testing.assert_close(valid, want[f"{group}.train_logits"], **LOGITS)
        terms = system.generator.losses(Codes(want[f"{group}.codes"]), fused, torch.Generator())
        rows = torch.stack([terms[f"ce_{k}"] for k in range(4)])
        torch.testing.assert_close(rows, want[f"{group}.ce_per_codebook"], **LOGITS)
    for group, given, fields in (
        ("greedy_cfg3", items[:1], {}),
        ("greedy_cfg1", items[:1], {"guidance": 1.0}),
        ("greedy_batch_cfg3", items, {}),
        ("greedy_two_step", items, {"two_step_cfg": True}),
        ("greedy_null", None, {}),
        ("continuation", {**items[1], "melody": first}, {"continue_from": Codes(want["continuation.prompt_codes"])}),
    ):
        codes = want[f"{group}.codes"]
        assert torch.equal(made(system, given, codes, **{"guidance": 3.0, **fields}), codes), group
    audio = want["greedy_cfg3.audio"]
    torch.testing.assert_close(system.codec.decode(Codes(want["greedy_cfg3.codes"][..., :16])).wave, audio, **VALUES)


def test_saved_models_say_the_same_without_their_origin(kit: Kit, tmp_path: Path) -> None:
    for name in ("03", "09c"):
        system, prompts, want = opened(kit(name))
        wave = want["melody.waveform" if name == "03" else "melody0.waveform"]
        item = {"prompt": prompts[1], "melody": {"vocals": Audio(wave[None], 32000)}}
        system.save(tmp_path / name)
        again = cadenza.load(tmp_path / name, device="cpu")
        assert str(kit(name)) not in (tmp_path / name / "system.json").read_text()
        frames = torch.empty(1, 4, 12)
        assert torch.equal(made(again, item, frames), made(system, item, frames))
        assert not torch.equal(made(again, prompts[1], frames), made(system, item, frames))
