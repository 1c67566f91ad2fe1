"""Slots of the codec language model: decoding step by step, position in time, initial effect."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from cadenza.core.types import FrameFormat, FusedConditions, GuidanceBranch, InterpolatedCondition, MaskedSequence
from cadenza.generators.base import GenerationInputs
from cadenza.generators.codec_lm import CodecLM, CodecLMSpec, decode_block, init_state, prefill
from cadenza.nn.patterns import CoarseFirst, Delay, MusicLM, Unroll
from cadenza.samplers.tokens import TokenSampling

GRID = FrameFormat("codes", 50.0, 3, 11)
SIZE = {"width": 32, "depth": 2, "heads": 2, "mlp_ratio": 2, "max_frames": 200, "end_of_sequence": False}
WIDTHS: Any = {"cross": 5, "prepend": 8, "add": 32, "concat": 3, "global": 6}
FRAMES = 19


def model(widths: Any = WIDTHS, **fields: Any) -> CodecLM:
    torch.manual_seed(0)
    generator = CodecLMSpec(**{**SIZE, **fields}).build(GRID, widths).eval()
    with torch.no_grad():
        for parameter in generator.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
    return generator


def everything() -> FusedConditions:
    """Return conditions in every slot; one item has no tokens to attend to in frames 4 to 6."""
    torch.manual_seed(1)
    masks = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0]]).bool()
    weight = torch.rand(2, 4, FRAMES)
    weight[0, :, 4:7] = 0
    weight[1, 0, ::2] = 0
    cross = MaskedSequence(torch.randn(2, 4, 5), masks, weight.log())
    curves = (
        InterpolatedCondition(torch.randn(2, 7, 32), torch.tensor([7, 3]), "linear"),
        InterpolatedCondition(torch.randn(2, 1, 32), torch.tensor([1, 1]), "nearest"),
    )
    prepend = MaskedSequence(torch.randn(2, 4, 8), masks)
    return FusedConditions(cross, prepend, torch.randn(2, FRAMES, 32), torch.randn(2, FRAMES, 3), torch.randn(2, 6), curves)


def read(generator: CodecLM, ids: Tensor, fused: FusedConditions) -> tuple[Tensor, Tensor, Tensor]:
    """Return a sequence, the logits of each step from one pass, and the mask of its codes."""
    layout = generator.spec.pattern.pattern(3, FRAMES)
    inside = (layout.frame_at_step >= 0) & (layout.frame_at_step < FRAMES)
    padded = torch.nn.functional.pad(ids, (0, 1), value=11)
    sequence = padded.gather(2, layout.frame_at_step.where(inside, FRAMES).expand(len(ids), -1, -1))
    return sequence, generator(sequence, fused, layout.frame_at_step.expand(len(ids), -1, -1)), inside


@pytest.mark.parametrize("positions", ["rotary", "sinusoidal"])
@pytest.mark.parametrize("pattern", [Delay(), Unroll(), CoarseFirst(), MusicLM(group_by=1)], ids=repr)
def test_steps_equal_one_pass(pattern: Any, positions: str) -> None:
    generator = model(pattern=pattern, positions=positions, max_frames=FRAMES, cross_attention_pos_emb_scale=0.5)
    fused = everything()
    null = FusedConditions(global_vector=torch.randn(2, 6), add=torch.zeros(2, FRAMES, 32), concat=torch.zeros(2, FRAMES, 3))
    plan = GenerationInputs(torch.tensor([FRAMES] * 2), [0, 1], TokenSampling(temperature=0))
    out = generator.generate([GuidanceBranch(2.0, fused), GuidanceBranch(-1.0, null)], plan).data
    sequence, given, inside = read(generator, out, fused)
    predicted = (2 * given - read(generator, out, null)[1]).argmax(-1).transpose(1, 2)[:, :, :-1]
    assert torch.equal(predicted[:, inside[:, 1:]], sequence[:, :, 1:][:, inside[:, 1:]])


@pytest.mark.parametrize("kind", ["int8", "int4"])
@pytest.mark.parametrize(
    "more", [{"positions": "sinusoidal"}, {"positions": "rotary", "bias": True, "cross_attention_pos_emb_scale": 0.5}]
)
def test_quantised_steps_equal_one_pass(kind: Any, more: dict[str, Any]) -> None:
    """Keys and values of 8 bits may change the code, but not to a much less likely one."""
    generator = model(max_frames=FRAMES, **more)
    before, fused = read(generator, torch.zeros(2, 3, FRAMES, dtype=torch.long), everything())[1], everything()
    generator.quantize(kind)
    after = read(generator, torch.zeros(2, 3, FRAMES, dtype=torch.long), fused)[1]
    assert 0 < (after - before).norm() < {"int8": 0.03, "int4": 0.3}[kind] * before.norm()
    null = FusedConditions(global_vector=torch.randn(2, 6), add=torch.zeros(2, FRAMES, 32), concat=torch.zeros(2, FRAMES, 3))
    for two_step in (False, True):
        plan = GenerationInputs(torch.tensor([FRAMES] * 2), [0, 1], TokenSampling(temperature=0), two_step_cfg=two_step)
        out = generator.generate([GuidanceBranch(2.0, fused), GuidanceBranch(-1.0, null)], plan).data
        sequence, given, inside = read(generator, out, fused)
        logits = (2 * given - read(generator, out, null)[1]).transpose(1, 2)[:, :, :-1]
        taken = logits.gather(-1, sequence[:, :, 1:, None].clamp(max=10))[..., 0]
        short = (logits.amax(-1) - taken)[:, inside[:, 1:]]
        assert (short < 0.05 * logits.std()).all()
        assert (short == 0).float().mean() > 0.97


def test_quantised_weights_are_dequantised_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = model(max_frames=FRAMES)
    generator.quantize("int8")
    plan = GenerationInputs(torch.tensor([FRAMES] * 2), [0, 1], TokenSampling(temperature=0))
    monkeypatch.setattr(
        "cadenza.nn.weight_quantization.cpu_kernel_unavailable_reason",
        lambda: "numba is not installed; pip install -e '.[fast]'",
    )
    with pytest.warns(UserWarning, match=r"int8 weights are dequantised to float32.*numba is not installed; pip install"):
        out = generator.generate([GuidanceBranch(1.0, everything())], plan).data
    sequence, given, inside = read(generator, out, everything())
    predicted = given.argmax(-1).transpose(1, 2)[:, :, :-1]
    assert torch.equal(predicted[:, inside[:, 1:]], sequence[:, :, 1:][:, inside[:, 1:]])


@pytest.mark.parametrize("slot", ["concat", "global_vector"])
def test_a_new_slot_changes_nothing_before_training(slot: str) -> None:
    """`global` starts at zero; `concat` starts near zero for its own part, so that it gets a gradient."""
    name = "global" if slot == "global_vector" else slot
    torch.manual_seed(0)
    plain = CodecLMSpec(**SIZE).build(GRID, {})
    told = CodecLMSpec(**SIZE).build(GRID, {name: WIDTHS[name]})
    extra = told.state_dict().keys() - plain.state_dict().keys()
    assert extra == (
        {"input_projections.concat.weight"} if slot == "concat" else {f"transformer.blocks.{i}.adaln.weight" for i in (0, 1)}
    )
    assert not plain.state_dict().keys() - told.state_dict().keys()
    told.load_state_dict({**told.state_dict(), **plain.state_dict()})
    ids = torch.randint(11, (2, 3, FRAMES))
    before = read(plain, ids, FusedConditions())[1]
    given = getattr(everything(), slot) if slot == "global_vector" else torch.zeros_like(everything().concat).requires_grad_()
    after = read(told, ids, FusedConditions(**{slot: given}))[1]
    torch.testing.assert_close(after, before)
    if slot == "concat":
        after.square().sum().backward()
        assert given.grad.any(), "zeros on both sides would stay so"


@pytest.mark.parametrize("slot", ["add", "concat"])
def test_frames_enter_where_they_are_predicted(slot: str) -> None:
    generator, ids = model(), torch.randint(11, (2, 3, FRAMES))
    fused = everything()
    before = read(generator, ids, fused)[1]
    for frame in (0, 7, 18):
        changed = getattr(fused, slot).clone()
        changed[:, frame] += 1
        after = read(generator, ids, replace(fused, **{slot: changed}))[1]
        assert (after != before).flatten(2).any(-1)[0].nonzero()[0, 0] == frame


def test_a_global_vector_reaches_every_block_and_step() -> None:
    generator, ids = model(), torch.randint(11, (2, 3, FRAMES))
    fused = everything()
    before = read(generator, ids, fused)[1]
    for block in (0, 1):
        with torch.no_grad():
            style: Any = generator.transformer.blocks[block].adaln
            kept = style.weight.clone()
            style.weight.zero_()
        other = read(generator, ids, fused)[1]
        assert ((other - before).abs().flatten(2).amax(-1) > 1e-3).all()
        with torch.no_grad():
            style.weight.copy_(kept)


def test_curves_are_interpolated_over_the_steps_of_each_item() -> None:
    """Compare with torch's interpolation for each item, from its first step to its last."""
    generator, curve = model({"add": 32}), everything().interpolated[0]  # type: ignore[index]
    seen: list[Tensor] = []
    generator.transformer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    layout = generator.spec.pattern.pattern(3, FRAMES).frame_at_step.expand(2, -1, -1).clone()
    layout[1] = layout[1].where(layout[1] < 11, -1)  # the second item has 11 frames
    sequence = torch.randint(11, layout.shape)
    generator(sequence, FusedConditions(interpolated=(curve,)), layout)
    generator(sequence, FusedConditions(), layout)
    for i, (n, steps) in enumerate(((7, FRAMES + 3), (3, 11 + 3))):
        want = interpolate(curve.x[i : i + 1, :n].mT, size=steps, mode="linear").mT[0]
        torch.testing.assert_close((seen[0] - seen[1])[i, :steps], want, atol=1e-5, rtol=1e-4)


def test_tokens_affect_only_frames_where_they_have_weight() -> None:
    generator, ids = model({"cross": 5}), torch.randint(11, (2, 3, FRAMES))
    mask = torch.ones(2, 2, dtype=torch.bool)
    x, bias = torch.randn(2, 2, 5), torch.zeros(2, 2, FRAMES)
    bias[:, 0, 9:] = -torch.inf
    bias[:, 1, :9] = -torch.inf
    timed = read(generator, ids, FusedConditions(MaskedSequence(x, mask, bias)))[1]
    first = read(generator, ids, FusedConditions(MaskedSequence(x[:, :1], mask[:, :1])))[1]
    torch.testing.assert_close(timed[:, :9], first[:, :9], atol=1e-5, rtol=1e-4)  # the output of step t predicts frame t
    assert (timed[:, 9:] - first[:, 9:]).abs().flatten(2).amax(-1).min() > 1e-3
    silent = read(generator, ids, FusedConditions(MaskedSequence(x, mask, torch.full((2, 2, FRAMES), -torch.inf))))[1]
    torch.testing.assert_close(silent, read(generator, ids, FusedConditions())[1])
    weak = read(generator, ids, FusedConditions(MaskedSequence(x, mask, bias.clamp(min=-30))))[1]
    torch.testing.assert_close(weak, timed, atol=1e-4, rtol=1e-3)


def test_positions_in_cross_skip_padding() -> None:
    generator, ids = model({"cross": 5}, cross_attention_pos_emb_scale=2.0), torch.randint(11, (1, 3, FRAMES))
    x = torch.randn(1, 3, 5)
    alone = read(generator, ids, FusedConditions(MaskedSequence(x, torch.ones(1, 3, dtype=torch.bool))))[1]
    gaps = MaskedSequence(x.new_full((1, 6, 5), 9.0), torch.tensor([[False, True, False, True, True, False]]))
    gaps.x[:, [1, 3, 4]] = x
    torch.testing.assert_close(read(generator, ids, FusedConditions(gaps))[1], alone, atol=1e-5, rtol=1e-4)
    turned = read(generator, ids, FusedConditions(MaskedSequence(x.flip(1), torch.ones(1, 3, dtype=torch.bool))))[1]
    assert (turned - alone).abs().max() > 1e-2  # order matters now


def test_a_block_needs_no_host_synchronisation() -> None:
    """Run every slot, a guidance schedule and rescaling on the meta device, where reading a value raises."""
    generator, fused = model(), everything()
    strength = torch.rand(2, FRAMES)
    plan = GenerationInputs(torch.tensor([FRAMES, 11]), [0, 1], TokenSampling(), guidance_schedule=strength, rescale=0.5)
    branches = [GuidanceBranch(3.0, fused, 1.0), GuidanceBranch(-2.0, FusedConditions(global_vector=fused.global_vector))]
    patterns = [generator.pattern(frames) for frames in (FRAMES, 11)]
    state, first = init_state(generator, branches, plan, patterns)
    shell, ghost = model().to("meta"), _to_meta(state)
    prefill(shell, ghost, first)
    decode_block(shell, ghost, first, first + 8)
    assert ghost.buffer.sequence.is_meta
    with pytest.raises((RuntimeError, NotImplementedError)):
        ghost.buffer.lengths.tolist()


def _to_meta(x: Any) -> Any:
    """Return a state with all its tensors on the meta device."""
    if isinstance(x, Tensor):
        return x.to("meta")
    if isinstance(x, tuple) and hasattr(x, "_fields"):
        return type(x)(*map(_to_meta, x))
    if isinstance(x, list):
        return [_to_meta(value) for value in x]
    if hasattr(x, "__dataclass_fields__"):
        return type(x)(**{name: _to_meta(value) for name, value in vars(x).items()})
    return x
