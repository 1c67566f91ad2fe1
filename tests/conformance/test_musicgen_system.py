"""Whole imported systems, asked as a user asks them, give the codes and the audio of the libraries they come from."""

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
from cadenza.system.system import System

Kit = Callable[[str], Path]
GREEDY = {"temperature": 0}


def opened(folder: Path) -> tuple[System, list[dict[str, str]], dict[str, Tensor]]:
    """The system, the kit's three prompts as items, and what is expected."""
    system = cadenza.load(folder / "model", device="cpu")
    (name,) = system.spec.conditioners
    prompts = json.loads((folder / "case.json").read_text())["parameters"]["prompts"]
    return system, [{name: prompt} for prompt in prompts], load_file(folder / "expected.safetensors")


def frames(system: System, what: Any, want: Tensor, **fields: Any) -> Tensor:
    seconds = want.shape[-1] / system.codec.frame_format.frame_rate
    return system.generate_frames(what, seconds=seconds, sampling=GREEDY, **fields).data


@pytest.mark.parametrize("name", ["09a", "09b", "09d"])
def test_audiocrafts_codes(kit: Kit, name: str) -> None:
    """One by one, in a batch that attends to its padding, with guidance in two steps, without a text, and going on."""
    system, items, want = opened(kit(name))
    asked: dict[str, tuple[Any, dict[str, Any]]] = {
        "greedy_cfg3": (items[0], {}),
        "greedy_cfg1": (items[0], {"guidance": 1}),
        "greedy_batch_cfg3": (items, {}),
        "greedy_two_step": (items, {"two_step_cfg": True}),
        "greedy_null": (None, {}),
        "continuation": (items[1], {"continue_from": Codes(want["continuation.prompt_codes"])}),
    }
    for group, (what, fields) in asked.items():
        codes = want[f"{group}.codes"]
        assert torch.equal(frames(system, what, codes, **{"guidance": 3, **fields}), codes), group


def test_audiocrafts_long_clip(kit: Kit) -> None:
    system, items, want = opened(kit("09a"))
    codes = frames(system, items[0], want["long.codes"], guidance=3, stride=18)
    assert torch.equal(codes, want["long.codes"])
    tail = want["long.audio_tail"]
    torch.testing.assert_close(system.codec.decode(Codes(codes)).wave[..., -tail.shape[-1] :], tail, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", ["01", "02"])
def test_transformers_codes_and_audio(kit: Kit, name: str) -> None:
    """Its padding is masked; a continuation is asked for with the audio itself."""
    system, items, want = opened(kit(name))
    prompt = cadenza.Audio(want["continuation.prompt_audio"][None], system.spec.codec.sample_rate)
    asked: dict[str, tuple[Any, dict[str, Any]]] = {
        "greedy_gs1": (items[0], {"guidance": 1}),
        "greedy_gs3": (items[0], {"guidance": 3}),
        "greedy_batch_gs3": (items, {"guidance": 3, "two_step_cfg": True}),
        "greedy_uncond": (None, {}),
        "continuation": (items[1], {"guidance": 3, "continue_from": prompt}),
    }
    for group, (what, fields) in asked.items():
        codes = want[f"{group}.codes"]
        assert torch.equal(frames(system, what, codes, **fields), codes), group
        if f"{group}.audio" in want:
            seconds = codes.shape[-1] / system.codec.frame_format.frame_rate
            audio = system.generate(what, seconds=seconds, sampling=GREEDY, **fields)
            torch.testing.assert_close(audio.wave, want[f"{group}.audio"], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("include_prompt", [True, False])
def test_the_stream_of_a_stereo_system(kit: Kit, include_prompt: bool) -> None:
    """Interleaved codebooks, a codec that is not causal, continuing audio: chunk by chunk as at once."""
    system, items, want = opened(kit("02"))
    prompt = cadenza.Audio(want["continuation.prompt_audio"][None], system.spec.codec.sample_rate)
    fields = {"seconds": 1.5, "sampling": GREEDY, "continue_from": prompt, "include_prompt": include_prompt}
    chunks = list(system.stream(items[1], **fields))
    whole = system.generate(items[1], **fields)
    assert len(chunks) > 2 and whole.wave.shape[1] == 2
    torch.testing.assert_close(torch.cat([chunk.wave for chunk in chunks], -1), whole.wave, atol=1e-5, rtol=1e-4)
