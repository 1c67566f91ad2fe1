"""The codec language model: end of sequence, positions, decoding without host synchronisation, bad requests."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cadenza.core.errors import RequestError, SpecError
from cadenza.core.types import Codes, FrameFormat, FusedConditions, GuidanceBranch, KnownFrames, MaskedSequence
from cadenza.generators.base import GenerationInputs, GeneratorSpec
from cadenza.generators.codec_lm import CodecLM, CodecLMSpec, decode_block, init_state, prefill
from cadenza.nn.patterns import CoarseFirst, Delay, MusicLM, Parallel, Unroll, build_sequence, revert_logits
from cadenza.samplers.guidance import nonzero_branches
from cadenza.samplers.tokens import TokenSampling

GRID = FrameFormat("codes", 50.0, 3, 11)
SIZE = {"width": 32, "depth": 2, "heads": 2, "mlp_ratio": 2, "max_frames": 200}
DRAWN = TokenSampling()
GREEDY = TokenSampling(temperature=0)


def model(widths: Any = None, *, frame_format: FrameFormat = GRID, **fields: Any) -> CodecLM:
    generator = CodecLMSpec(**{**SIZE, **fields}).build(frame_format, widths or {}).eval()
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in generator.parameters():
            if parameter.dim() > 1:
                parameter.copy_(1.5 * torch.randn(parameter.shape, generator=rng) / parameter.shape[-1] ** 0.5)
    return generator


def plan(frames: Sequence[int], sampling: TokenSampling = DRAWN, known: KnownFrames | None = None) -> GenerationInputs:
    return GenerationInputs(torch.tensor(frames), list(range(len(frames))), sampling, known)


def codes(batch: int, frames: int, **more: Any) -> Codes:
    rng = torch.Generator().manual_seed(4)
    return Codes(torch.randint(11, (batch, 3, frames), generator=rng), **more)


def ce(generator: CodecLM, target: Codes, fused: FusedConditions | None = None) -> dict[str, Tensor]:
    return generator.losses(target, fused or FusedConditions(), torch.Generator())


def clips(
    generator: CodecLM, the_plan: GenerationInputs, branches: list[GuidanceBranch] | None = None
) -> list[list[list[int]]]:
    return [clip.ids[0].tolist() for clip in generator.generate(branches or [GuidanceBranch(1.0, FusedConditions())], the_plan)]


def ends_at(generator: CodecLM, frame: int) -> None:
    """Make the model end at `frame` for any input."""
    logits = generator.split_codebooks

    def ending(x: Tensor) -> Tensor:
        y = logits(x)
        y[:, 0, -1] = 1e4 if ending.step == frame else -1e4  # type: ignore[attr-defined]
        ending.step += 1  # type: ignore[attr-defined]
        return y

    ending.step = 0  # type: ignore[attr-defined]
    generator.split_codebooks = ending  # type: ignore[method-assign]


PATTERNS = [
    Delay(),
    Parallel(),
    Delay(delays=(0, 0, 2)),
    Delay(delays=(2, 0, 1), empty_initial=2),
    Delay(flatten_first=2),
    Unroll(),
    Unroll(flattening=(0, 1, 1), delays=(0, 2, 2)),
    CoarseFirst(delays=(0, 1)),
    MusicLM(group_by=1),
]


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
@pytest.mark.parametrize("positions", ["rotary", "sinusoidal"])
def test_generation_agrees_with_the_teacher_forced_model(pattern: Any, positions: str) -> None:
    """Check that greedy codes of two branches are the arg max of one pass over the sequence."""
    widths = {"cross": 5, "prepend": 8, "add": 32}
    generator = model(widths, pattern=pattern, positions=positions, end_of_sequence=False, max_frames=19)
    tokens = [MaskedSequence(torch.randn(2, 4, w), torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0]]).bool()) for w in (5, 8)]
    fused = FusedConditions(tokens[0], tokens[1], torch.randn(2, 19, 32))
    null = FusedConditions(add=torch.zeros(2, 19, 32))
    out = generator.generate([GuidanceBranch(2.0, fused), GuidanceBranch(-1.0, null)], plan([19, 19], GREEDY)).ids  # type: ignore[union-attr]
    layout = pattern.pattern(3, 19)
    inside = (layout.frame_at_step >= 0) & (layout.frame_at_step < 19)
    padded = torch.nn.functional.pad(out, (0, 1), value=11)
    sequence = padded.gather(2, layout.frame_at_step.where(inside, 19).expand(2, -1, -1))
    frame = layout.frame_at_step.expand(2, -1, -1)
    logits = 2 * generator(sequence, fused, frame) - generator(sequence, null, frame)
    predicted = logits.argmax(-1).transpose(1, 2)[:, :, :-1]
    assert torch.equal(predicted[:, inside[:, 1:]], sequence[:, :, 1:][:, inside[:, 1:]])


@pytest.mark.parametrize("pattern", PATTERNS, ids=repr)
def test_loss_is_the_cross_entropy_of_every_code(pattern: Any) -> None:
    """Check whole clips in every pattern, with the logits reverted to frames."""
    generator, target = model(pattern=pattern, end_of_sequence=False, max_frames=19), codes(2, 19, ended=torch.ones(2) > 0)
    layout = pattern.pattern(3, 19)
    sequence, _ = build_sequence(layout, target.ids, 11)
    logits, mask = revert_logits(
        layout, generator(sequence, FusedConditions(), layout.frame_at_step.expand(2, -1, -1)).transpose(1, 2)
    )
    assert mask.all()
    each = torch.nn.functional.cross_entropy(logits.flatten(0, 2), target.ids.flatten(), reduction="none").view(2, 3, 19)
    terms = ce(generator, target)
    for row in range(3):
        torch.testing.assert_close(terms[f"ce_{row}"], each[:, row].mean().detach(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("pattern", [CoarseFirst(), MusicLM(group_by=1)], ids=repr)
def test_fixed_length_patterns_reject_other_lengths(pattern: Any) -> None:
    generator = model(pattern=pattern, end_of_sequence=False)
    assert generator.spec.fixed_length and not model().spec.fixed_length
    with pytest.raises(RequestError, match=f"'{pattern.type}' depends on the length.*exactly 200 frames, not .19."):
        list(generator.stream([GuidanceBranch(1.0, FusedConditions())], plan([19])))
    with pytest.raises(RequestError, match=r"exactly 200 frames \(generator.max_frames\), but got 19"):
        ce(generator, codes(1, 19))
    assert ce(generator, codes(1, 19, ended=torch.tensor([True])))["loss"].isfinite()  # a short piece is as long as it is


@pytest.mark.parametrize("padding", [True, False])
def test_two_step_cfg_equals_one_batch_for_equal_lengths(padding: bool) -> None:
    generator = model({"cross": 5, "prepend": 8}, attend_padding=padding, positions="sinusoidal")
    rows = lambda n, w: MaskedSequence(torch.randn(2, n, w), torch.arange(n) < torch.tensor([[n], [1]]))  # noqa: E731
    given, same = FusedConditions(rows(4, 5), rows(3, 8)), FusedConditions(rows(4, 5), rows(3, 8))
    wider = FusedConditions(rows(4, 5), rows(6, 8))

    def run(null: FusedConditions, two_step: bool) -> Tensor:
        the_plan = replace(plan([30, 30], TokenSampling(allow_eos=False)), two_step_cfg=two_step)
        return generator.generate([GuidanceBranch(3.0, given), GuidanceBranch(-2.0, null)], the_plan).data

    assert torch.equal(run(same, True), run(same, False))
    assert torch.equal(run(wider, True), run(wider, False)) != padding  # padding that takes part is another model


def test_two_step_cfg_runs_one_branch_at_a_time() -> None:
    generator, rows = model(), []
    generator.transformer.blocks[0].norm1.register_forward_hook(lambda _, args, __: rows.append(len(args[0])))  # type: ignore[union-attr]
    branches = [GuidanceBranch(3.0, FusedConditions()), GuidanceBranch(-2.0, FusedConditions())]
    for two_step, widest, passes in ((False, 4, 20), (True, 2, 40)):
        rows.clear()
        generator.generate(branches, replace(plan([18, 18], TokenSampling(allow_eos=False)), two_step_cfg=two_step))
        assert max(rows) == widest and len(rows) == passes


def test_noise_depends_on_absolute_frames() -> None:
    """Check with a model that ignores its input, started at frame 0 or later."""
    generator = model()
    with torch.no_grad():
        generator.embedding.weight.copy_(generator.embedding.weight[:1].expand_as(generator.embedding.weight))
    whole = generator.generate([GuidanceBranch(1.0, FusedConditions())], plan([90], TokenSampling(allow_eos=False))).data
    later = replace(plan([20], TokenSampling(allow_eos=False)), start_frame=70)
    assert not torch.equal(whole[..., :20], whole[..., 70:])
    assert torch.equal(generator.generate([GuidanceBranch(1.0, FusedConditions())], later).data, whole[..., 70:])


def test_codes_depend_only_on_earlier_steps() -> None:
    generator, target = model(), codes(1, 12)
    layout = Delay().pattern(3, 12).frame_at_step[None]
    sequence = torch.nn.functional.pad(target.ids, (0, 1), value=11).gather(2, layout.where((layout >= 0) & (layout < 12), 12))
    whole = generator(sequence, FusedConditions(), layout)
    for step in (1, 6, 11):
        changed = sequence.clone()
        changed[:, :, step:] = 0
        other = generator(changed, FusedConditions(), layout)
        assert torch.equal(other[:, :step], whole[:, :step])
        assert not torch.allclose(other[:, step:], whole[:, step:])


def test_add_enters_where_codebook_0_of_its_frame_is_predicted() -> None:
    generator = model({"add": 32})
    layout = Delay().pattern(3, 12).frame_at_step[None]
    sequence = torch.randint(11, (1, 3, layout.shape[2]))
    before = generator(sequence, FusedConditions(add=torch.zeros(1, 12, 32)), layout)
    for frame in (0, 5, 11):
        add = torch.zeros(1, 12, 32)
        add[:, frame] = 1
        after = generator(sequence, FusedConditions(add=add), layout)
        changed = (after != before).any(-1).any(-1)[0].nonzero()[:, 0]
        assert changed[0] == frame  # the output at step t is the prediction of step t + 1, which holds frame t of codebook 0


def test_loss_is_the_mean_over_counted_codes() -> None:
    """Compare with a loop; a crop counts the codes before its first missing one."""
    generator = model()
    target = codes(3, 9, lengths=torch.tensor([9, 6, 4]), ended=torch.tensor([True, False, True]))
    terms = ce(generator, target)
    sums = [[], [], []]
    for i, length in enumerate([9, 6, 4]):
        ids = target.ids[i, :, :length].tolist()
        steps = [[11, 11, 11]] + [
            [ids[k][step - 1 - k] if 0 <= step - 1 - k < length else 11 for k in range(3)] for step in range(1, length + 4)
        ]
        frame = torch.full((1, 3, len(steps)), -1)
        logits = generator(torch.tensor(steps).T[None], FusedConditions(), frame)[0].log_softmax(-1)
        for step in range(1, len(steps)):
            for k in range(3):
                frame_of = step - 1 - k
                if 0 <= frame_of < length and (target.ended[i] or step <= length):  # type: ignore[index]
                    sums[k].append(-logits[step - 1, k, ids[k][frame_of]])
                if target.ended[i] and k == 0 and frame_of == length:  # type: ignore[index]
                    sums[k].append(-logits[step - 1, k, 11])
    means = [torch.stack(values).mean() for values in sums]
    for k in range(3):
        torch.testing.assert_close(terms[f"ce_{k}"], means[k].detach(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(terms["loss"], torch.stack(means).mean(), atol=1e-4, rtol=1e-4)


def test_initial_loss_is_that_of_a_uniform_distribution() -> None:
    torch.manual_seed(0)
    generator = CodecLMSpec(**SIZE).build(GRID, {})
    terms = ce(generator, codes(4, 30))
    assert abs(terms["ce_0"].item() - math.log(12)) < 0.1 and abs(terms["ce_2"].item() - math.log(11)) < 0.1


def test_only_ended_clips_train_the_end() -> None:
    def push(ended: bool | None) -> float:
        generator = model()
        flag = None if ended is None else torch.tensor([ended])
        ce(generator, codes(1, 9, ended=flag))["loss"].backward()
        assert generator.head.weight.grad is not None
        return float(generator.head.weight.grad[-1].norm())

    assert push(None) == push(False) != push(True)


@pytest.mark.parametrize("frame", [1, 7, 15, 16, 18])
def test_delayed_codebooks_are_finished_after_the_end(frame: int) -> None:
    free, ending = model(), model()
    ends_at(ending, frame)
    sampling = TokenSampling(allow_eos=True)
    out = ending.generate([GuidanceBranch(1.0, FusedConditions())], plan([19], sampling))
    assert out.lengths.tolist() == [frame] and out.ids.shape[-1] == frame  # type: ignore[union-attr]
    want = free.generate([GuidanceBranch(1.0, FusedConditions())], plan([19], TokenSampling(allow_eos=False)))
    assert torch.equal(out.ids[:, 0], want.ids[:, 0, :frame])  # type: ignore[union-attr]
    assert torch.equal(out.ids[:, :, : frame - 2], want.ids[:, :, : max(frame - 2, 0)])  # type: ignore[union-attr]
    cut = clips(free, plan([frame], TokenSampling(allow_eos=False)))
    assert out.ids[0].tolist() == cut[0]  # an end is the same as having asked for so many frames


def test_no_end_where_it_is_not_allowed() -> None:
    for frame, sampling in ((0, TokenSampling()), (7, TokenSampling(allow_eos=False))):
        generator = model()
        ends_at(generator, frame)
        out = generator.generate([GuidanceBranch(1.0, FusedConditions())], plan([12], sampling))
        assert int(out.lengths) != frame
    generator = model()
    ends_at(generator, 0)  # the first step after the known frames but one
    known = KnownFrames(codes(1, 12), torch.arange(12)[None] < 8)
    assert int(generator.generate([GuidanceBranch(1.0, FusedConditions())], plan([12], DRAWN, known)).lengths) == 8


def test_learned_ends_are_generated() -> None:
    """Train on clips of three lengths given by a condition, and check the generated lengths."""
    torch.manual_seed(0)
    generator = CodecLMSpec(**{**SIZE, "width": 48}).build(GRID, {"prepend": 3})
    lengths = torch.tensor([3, 6, 10])
    fused = FusedConditions(prepend=MaskedSequence(torch.eye(3)[:, None] * 3, torch.ones(3, 1, dtype=torch.bool)))
    target = codes(3, 10, lengths=lengths, ended=torch.ones(3, dtype=torch.bool))
    optimiser = torch.optim.Adam(generator.parameters(), 3e-3)
    for _ in range(150):
        optimiser.zero_grad()
        ce(generator, target, fused)["loss"].backward()
        optimiser.step()
    out = generator.generate([GuidanceBranch(1.0, fused)], plan([20, 20, 20], GREEDY))
    assert out.lengths.tolist() == [3, 6, 10]
    for i, clip in enumerate(out):
        assert torch.equal(clip.ids[0], target.ids[i, :, : int(lengths[i])])  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "fields", [{}, {"positions": "sinusoidal", "pattern": Parallel()}, {"depth": 3, "heads": 4, "bias": True}]
)
def test_items_alone_equal_items_in_a_batch(fields: dict[str, Any]) -> None:
    generator = model({"cross": 4}, **fields)
    lengths = [40, 3, 17, 33, 40, 1]
    tokens = MaskedSequence(torch.randn(6, 5, 4), torch.arange(5) < torch.tensor([5, 0, 1, 3, 2, 5])[:, None])
    branches = [GuidanceBranch(3.0, FusedConditions(cross=tokens)), GuidanceBranch(-2.0, FusedConditions())]
    together = clips(generator, plan(lengths), branches)
    for i, length in enumerate(lengths):
        own = MaskedSequence(tokens.x[i : i + 1], tokens.mask[i : i + 1])
        alone = GenerationInputs(torch.tensor([length]), [i], TokenSampling())
        assert (
            clips(generator, alone, [GuidanceBranch(3.0, FusedConditions(cross=own)), GuidanceBranch(-2.0, FusedConditions())])[
                0
            ]
            == together[i]
        )


def test_a_block_needs_no_host_synchronisation() -> None:
    """Run a block with prefix and prompt on the meta device, where reading a value raises."""
    generator = model({"cross": 5, "prepend": 8, "add": 32})
    tokens = [MaskedSequence(torch.randn(2, 4, w), torch.ones(2, 4, dtype=torch.bool)) for w in (5, 8)]
    fused = FusedConditions(tokens[0], tokens[1], torch.randn(2, 40, 32))
    known = KnownFrames(codes(2, 40), torch.arange(40)[None] < torch.tensor([[3], [5]]))
    patterns = [generator.pattern(40)] * 2
    for sampling, two_step in ((TokenSampling(top_p=0.9), False), (TokenSampling(temperature=0), True)):
        branches = nonzero_branches([GuidanceBranch(3.0, fused), GuidanceBranch(-2.0, FusedConditions())])
        state, first = init_state(
            generator, branches, replace(plan([40, 40], sampling, known), two_step_cfg=two_step), patterns
        )
        shell = model({"cross": 5, "prepend": 8, "add": 32}).to("meta")
        ghost = _to_meta(state)
        prefill(shell, ghost, first)
        decode_block(shell, ghost, first, first + 16)
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


def test_stream_yields_frames_as_soon_as_they_are_complete() -> None:
    generator = model(end_of_sequence=False)
    sizes = [chunk.ids.shape[-1] for chunk in generator.stream([GuidanceBranch(1.0, FusedConditions())], plan([100]))]  # type: ignore[union-attr]
    assert sizes == [14, 16, 16, 16, 16, 16, 6]  # a block of 16 steps holds 16 frames less the delay


def test_training_and_generation_work_in_bfloat16() -> None:
    generator = model({"cross": 5, "prepend": 8}).to(torch.bfloat16)
    tokens = [MaskedSequence(torch.randn(2, 4, w).bfloat16(), torch.ones(2, 4, dtype=torch.bool)) for w in (5, 8)]
    fused = FusedConditions(*tokens)
    assert ce(generator, codes(2, 20), fused)["loss"].isfinite()
    out = generator.generate(
        [GuidanceBranch(2.0, fused), GuidanceBranch(-1.0, FusedConditions())], plan([20, 20], TokenSampling(allow_eos=False))
    )
    assert out.lengths.tolist() == [20, 20]
    generator = model({"cross": 5, "prepend": 8}).train()
    fused = FusedConditions(*[MaskedSequence(t.x.float(), t.mask) for t in tokens])
    with torch.autocast("cpu", torch.bfloat16):
        loss = ce(generator, codes(2, 20), fused)["loss"]
    loss.backward()
    assert loss.isfinite() and loss.dtype == torch.float32


@pytest.mark.parametrize(
    ("the_plan", "message"),
    [
        (plan([0]), "between 1 and 200"),
        (plan([201]), "between 1 and 200"),
        (GenerationInputs(torch.tensor([5, 5]), [1], TokenSampling()), "1 seeds are given for 2 items"),
        (plan([9], known=KnownFrames(codes(1, 9), torch.tensor([[False] + [True] * 8]))), "must be its first ones"),
        (plan([4], known=KnownFrames(codes(1, 9), torch.ones(1, 9, dtype=torch.bool))), "9] frames are known, but only"),
        (
            plan([9], known=KnownFrames(Codes(torch.full((1, 3, 9), 11)), torch.ones(1, 9, dtype=torch.bool))),
            "between 0 and 10",
        ),
        (
            plan([9], known=KnownFrames(Codes(torch.zeros(1, 4, 9, dtype=torch.long)), torch.ones(1, 9, dtype=torch.bool))),
            "need",
        ),
    ],
)
def test_invalid_inputs_are_rejected(the_plan: GenerationInputs, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        list(model().stream([GuidanceBranch(1.0, FusedConditions())], the_plan))


def test_all_frames_known_needs_no_step() -> None:
    value = codes(2, 9)
    out = model().generate(
        [GuidanceBranch(1.0, FusedConditions())], plan([9, 9], known=KnownFrames(value, torch.ones(2, 9, dtype=torch.bool)))
    )
    assert torch.equal(out.ids, value.ids)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"heads": 3}, "heads: 3 heads do not divide"),
        ({"pattern": {"type": "musiclm"}}, "set it to false"),
        ({"pattern": {"type": "delays"}}, "pattern"),
        ({"pattern": {"type": "delay", "delay": [1]}}, "Did you mean 'delays'"),
        ({"depth": 0}, "depth"),
        ({"dropout": 1.0}, "dropout"),
        ({"layers": 3}, "layers"),
    ],
)
def test_invalid_specs_are_rejected(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        GeneratorSpec.parse({"type": "codec_lm", **SIZE, **fields})


def test_mismatches_name_the_field() -> None:
    with pytest.raises(ValueError, match=r"pattern.delays: 2 numbers are given, this codec needs 3"):
        CodecLMSpec(**SIZE, pattern=Delay(delays=(0, 1))).validate_inputs(GRID, {})
    with pytest.raises(ValueError, match=r"pattern.empty_initial"):
        CodecLMSpec(**SIZE, pattern=Parallel(empty_initial=-1)).validate_inputs(GRID, {})
    with pytest.raises(ValueError, match="codebook 0 must come first"):
        CodecLMSpec(**SIZE, pattern=Delay(delays=(1, 0, 0))).validate_inputs(GRID, {})
