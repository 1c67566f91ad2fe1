"""The codec language model with AudioCraft's and transformers' weights gives their logits and their codes."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cadenza.core.types import Codes, FrameFormat, FusedConditions, GuidanceBranch, KnownFrames, MaskedSequence, Slot
from cadenza.generators.base import GenerationInputs
from cadenza.generators.codec_lm import CodecLM, CodecLMSpec
from cadenza.nn.patterns import Delay, build_sequence, revert_logits
from cadenza.samplers.tokens import TokenSampling
from cadenza.system import windows

Kit = Callable[[str], Path]
TOLERANCE = {"atol": 2e-4, "rtol": 1e-3}


def from_audiocraft(state: Mapping[str, Tensor], rows: int) -> dict[str, Tensor]:
    """The layout of reference 6.4, native: fused q | k | v, one table and one head a codebook."""
    names = {"self_attn.in_proj_weight": "attention.qkv.weight", "self_attn.out_proj": "attention.out"}
    names |= {"cross_attention.out_proj": "cross.out", "linear1": "up", "linear2": "down", "layers.": "blocks."}
    names |= {"out_norm": "transformer.norm"}
    ours: dict[str, Tensor] = {}
    for key, value in state.items():
        if key.endswith("cross_attention.in_proj_weight"):
            block = key.replace("layers.", "blocks.").removesuffix("cross_attention.in_proj_weight")
            ours[f"{block}cross.q.weight"], ours[f"{block}cross.kv.weight"] = value.float().tensor_split([value.shape[1]])
        elif key.startswith(("transformer.", "out_norm.")):
            for old, new in names.items():
                key = key.replace(old, new)  # noqa: PLW2901
            ours[key] = value.float()
    ours["embedding.weight"] = torch.cat([state[f"emb.{k}.weight"] for k in range(rows)]).float()
    ours["head.weight"] = torch.cat([state[f"linears.{k}.weight"] for k in range(rows)]).float()
    return ours


def loaded(folder: Path, *, slot: Slot, context: int = 30) -> tuple[CodecLM, dict[str, Any], dict[str, Tensor]]:
    case = json.loads((folder / "case.json").read_text())["parameters"]
    package = torch.load(folder / "model" / "state_dict.bin", weights_only=True)
    state, rows = package["best_state"], case["codebooks"]
    hidden = state["transformer.layers.0.linear1.weight"].shape[0]
    spec = CodecLMSpec(
        width=case["dim"],
        depth=case["layers"],
        heads=case["heads"],
        mlp_ratio=hidden / case["dim"],
        pattern=Delay(delays=tuple(case["delays"])),
        positions="sinusoidal",
        end_of_sequence=False,
        attend_padding=True,
        max_frames=context * case["frame_rate"],
    )
    generator = spec.build(FrameFormat("codes", case["frame_rate"], rows, case["card"]), {slot: case["dim"]})
    generator.load_state_dict(from_audiocraft(state, rows))
    return generator.eval(), case, load_file(folder / "expected.safetensors")


def told(slot: Slot, x: Tensor) -> FusedConditions:
    tokens = MaskedSequence(x, torch.ones(x.shape[:2], dtype=torch.bool))
    return FusedConditions(cross=tokens) if slot == "cross" else FusedConditions(prepend=tokens)


CASES: list[tuple[str, Slot]] = [("09a", "cross"), ("09b", "cross"), ("09d", "prepend")]


@pytest.mark.parametrize(("name", "slot"), CASES)
@pytest.mark.parametrize("group", ["single", "batch", "with_empty"])
def test_audiocrafts_logits_and_loss(kit: Kit, name: str, slot: Slot, group: str) -> None:
    generator, case, want = loaded(kit(name), slot=slot)
    codes, fused = want[f"{group}.codes"], told(slot, want[f"{group}.cond.description"])
    pattern = Delay(delays=tuple(case["delays"])).pattern(case["codebooks"], codes.shape[-1])
    sequence, _ = build_sequence(pattern, codes, case["card"])
    assert torch.equal(sequence, want[f"{group}.sequence"])
    logits = generator(sequence, fused, pattern.frame_at_step.expand(len(codes), -1, -1)).transpose(1, 2)
    torch.testing.assert_close(logits, want[f"{group}.sequence_logits"], **TOLERANCE)
    valid, mask = revert_logits(pattern, logits[:, :, : pattern.valid_steps], fill=0)
    torch.testing.assert_close(valid, want[f"{group}.train_logits"], **TOLERANCE)
    assert torch.equal(mask.expand_as(want[f"{group}.train_mask"]), want[f"{group}.train_mask"].bool())
    terms = generator.losses(Codes(codes), fused, torch.Generator())
    rows = torch.stack([terms[f"ce_{k}"] for k in range(case["codebooks"])])
    torch.testing.assert_close(rows, want[f"{group}.ce_per_codebook"], **TOLERANCE)


@pytest.mark.parametrize(("name", "slot"), CASES)
def test_audiocrafts_greedy_codes(kit: Kit, name: str, slot: Slot) -> None:
    generator, _, want = loaded(kit(name), slot=slot)

    def run(cond: Tensor, scale: float, frames: int, known: KnownFrames | None = None, null: Tensor | None = None) -> Tensor:
        batch = len(cond)
        plan = GenerationInputs(
            torch.full((batch,), frames), [0] * batch, TokenSampling(temperature=0), known, two_step_cfg=null is not None
        )
        nothing = told(slot, torch.zeros_like(cond) if null is None else null)
        out = generator.generate([GuidanceBranch(scale, told(slot, cond)), GuidanceBranch(1 - scale, nothing)], plan)
        assert isinstance(out, Codes)
        return out.ids

    single, batch = want["single.cond.description"], want["batch.cond.description"]
    for group, cond, scale in (
        ("greedy_cfg3", single, 3.0),
        ("greedy_cfg1", single, 1.0),
        ("greedy_batch_cfg3", batch, 3.0),
        ("greedy_null", torch.zeros_like(single[:, :1]), 3.0),
    ):
        assert torch.equal(run(cond, scale, want[f"{group}.codes"].shape[-1]), want[f"{group}.codes"]), group
    whole = want["greedy_two_step.codes"]  # the texts that are not there make a batch of their own
    assert torch.equal(run(batch, 3.0, whole.shape[-1], null=want["null.cond.description"]), whole)
    prompt, whole = want["continuation.prompt_codes"], want["continuation.codes"]
    known = KnownFrames(Codes(prompt), torch.ones(1, prompt.shape[-1], dtype=torch.bool))
    # Prompt number 1 of the batch, alone: the rows that are not its padding.
    cond = batch[1:2, : int(want["batch.text_mask"][1].sum())]
    assert torch.equal(run(cond, 3.0, whole.shape[-1], known), whole)


def test_audiocrafts_long_codes(kit: Kit) -> None:
    """25 seconds of a model that makes 20, the second window 18 seconds after the first."""
    generator, case, want = loaded(kit("09a"), slot="cross", context=20)
    whole, cond = want["long.codes"], want["single.cond.description"]
    plan = GenerationInputs(torch.tensor([whole.shape[-1]]), [0], TokenSampling(temperature=0))
    branches = [GuidanceBranch(3.0, told("cross", cond)), GuidanceBranch(-2.0, told("cross", torch.zeros_like(cond)))]
    chunks = list(windows.generate_windows(generator, branches, plan, stride=18 * case["frame_rate"]))
    assert len(chunks) > 70 and torch.equal(Codes.cat(chunks).ids, whole)  # type: ignore[arg-type]


def from_transformers(state: Mapping[str, Tensor], rows: int, depth: int) -> dict[str, Tensor]:
    """The layout of reference 6.4, Hugging Face's side."""
    stem = "decoder.model.decoder."
    ours = {f"transformer.norm.{end}": state[f"{stem}layer_norm.{end}"] for end in ("weight", "bias")}
    for i in range(depth):
        old, new = f"{stem}layers.{i}.", f"transformer.blocks.{i}."
        q, k, v = (state[f"{old}self_attn.{x}_proj.weight"] for x in "qkv")
        ours[f"{new}attention.qkv.weight"] = torch.cat([q, k, v])
        ours[f"{new}attention.out.weight"] = state[f"{old}self_attn.out_proj.weight"]
        ours[f"{new}cross.q.weight"] = state[f"{old}encoder_attn.q_proj.weight"]
        ours[f"{new}cross.kv.weight"] = torch.cat([state[f"{old}encoder_attn.{x}_proj.weight"] for x in "kv"])
        ours[f"{new}cross.out.weight"] = state[f"{old}encoder_attn.out_proj.weight"]
        ours[f"{new}up.weight"], ours[f"{new}down.weight"] = state[f"{old}fc1.weight"], state[f"{old}fc2.weight"]
        for theirs, mine in (
            ("self_attn_layer_norm", "norm1"),
            ("encoder_attn_layer_norm", "norm_cross"),
            ("final_layer_norm", "norm2"),
        ):
            for end in ("weight", "bias"):
                ours[f"{new}{mine}.{end}"] = state[f"{old}{theirs}.{end}"]
    ours["embedding.weight"] = torch.cat([state[f"{stem}embed_tokens.{k}.weight"] for k in range(rows)])
    ours["head.weight"] = torch.cat([state[f"decoder.lm_heads.{k}.weight"] for k in range(rows)])
    return ours


@pytest.mark.parametrize("name", ["01", "02"])
def test_transformers_logits_and_codes_with_masked_padding(kit: Kit, name: str) -> None:
    folder = kit(name)
    config = json.loads((folder / "model" / "config.json").read_text())["decoder"]
    want, rows = load_file(folder / "expected.safetensors"), config["num_codebooks"]
    delays = tuple(range(rows)) if config["audio_channels"] == 1 else tuple(k // 2 for k in range(rows))
    spec = CodecLMSpec(
        width=config["hidden_size"],
        depth=config["num_hidden_layers"],
        heads=config["num_attention_heads"],
        mlp_ratio=config["ffn_dim"] / config["hidden_size"],
        pattern=Delay(delays=delays),
        positions="sinusoidal",
        end_of_sequence=False,
    )
    generator = spec.build(FrameFormat("codes", 50.0, rows, config["vocab_size"]), {"cross": config["hidden_size"]}).eval()
    state = load_file(folder / "model" / "model.safetensors")
    generator.load_state_dict(from_transformers(state, rows, config["num_hidden_layers"]))
    for group in ("single", "batch"):
        inputs = want[f"{group}.tf_decoder_input_ids"].unflatten(0, (-1, rows))
        tokens = MaskedSequence(want[f"{group}.text_projected"], want[f"{group}.attention_mask"].bool())
        frame = torch.zeros_like(inputs)
        logits = generator(inputs, FusedConditions(cross=tokens), frame).transpose(1, 2).flatten(0, 1)
        torch.testing.assert_close(logits, want[f"{group}.tf_logits"], **TOLERANCE)
        if group == "single":
            null = MaskedSequence(tokens.x, torch.zeros_like(tokens.mask))
            logits = generator(inputs, FusedConditions(cross=null), frame).transpose(1, 2).flatten(0, 1)
            torch.testing.assert_close(logits, want["single.tf_logits_null"], **TOLERANCE)
            assert torch.equal(logits, generator(inputs, FusedConditions(), frame).transpose(1, 2).flatten(0, 1))
    single, batch = (
        MaskedSequence(want[f"{x}.text_projected"], want[f"{x}.attention_mask"].bool()) for x in ("single", "batch")
    )
    second = MaskedSequence(batch.x[1:2], batch.mask[1:2])  # padded, which changes nothing here
    for group, told, scale in (
        ("greedy_gs1", FusedConditions(single), 1.0),
        ("greedy_gs3", FusedConditions(single), 3.0),
        ("greedy_batch_gs3", FusedConditions(batch), 3.0),
        ("greedy_uncond", FusedConditions(), 1.0),
        ("continuation", FusedConditions(second), 3.0),
    ):
        whole, prompt = want[f"{group}.codes"], want.get(f"{group}.prompt_codes")
        known = None if prompt is None else KnownFrames(Codes(prompt), torch.ones(1, prompt.shape[-1], dtype=torch.bool))
        plan = GenerationInputs(
            torch.full((len(whole),), whole.shape[-1]), [0] * len(whole), TokenSampling(temperature=0), known
        )
        for two_step in (False, True):
            out = generator.generate(
                [GuidanceBranch(scale, told), GuidanceBranch(1 - scale, FusedConditions())],
                replace(plan, two_step_cfg=two_step),
            )
            assert isinstance(out, Codes) and torch.equal(out.ids, whole), group
