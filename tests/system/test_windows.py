"""Windows: every frame once, in order, from conditions and random numbers of its own place in the clip."""

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cadenza.core.errors import RequestError
from cadenza.core.types import (
    Codes,
    FrameFormat,
    FusedConditions,
    GuidanceBranch,
    InterpolatedCondition,
    KnownFrames,
    Latents,
    MaskedSequence,
)
from cadenza.generators.base import GenerationInputs, Generator
from cadenza.generators.codec_lm import CodecLM, CodecLMSpec
from cadenza.nn.patterns import CoarseFirst
from cadenza.samplers.tokens import TokenSampling
from cadenza.system import windows

SAMPLING = TokenSampling(allow_eos=False)


class Scribe(Generator):
    """Writes for every frame: its item's seed, its absolute number, what `add` says there, and its number in the window."""

    def __init__(self, context: int, *, chunk: int = 3) -> None:
        super().__init__()
        self.spec = SimpleNamespace(max_frames=context, fixed_length=False)
        self.chunk, self.requests = chunk, list[GenerationInputs]()

    def losses(self, target: Any, fused: Any, rng: Any) -> Any:
        raise NotImplementedError

    def stream(self, branches: Sequence[GuidanceBranch], inputs: GenerationInputs) -> Iterator[Codes | Latents]:
        self.requests.append(inputs)
        longest, add = int(inputs.frames.max()), branches[0].fused.add
        assert add is not None and len(add) == len(inputs.frames)
        here = torch.arange(longest)
        rows = [torch.full((longest,), float(seed)) for seed in inputs.seeds]
        z = torch.stack(
            [torch.stack([row, here + inputs.start_frame, a[:longest, 0], here]) for row, a in zip(rows, add, strict=True)]
        )
        if inputs.known_frames is not None:
            n = inputs.known_frames.mask.shape[1]
            assert inputs.known_frames.mask.all() and isinstance(inputs.known_frames.frames, Latents)
            assert torch.equal(inputs.known_frames.frames.z[:, :3], z[:, :3, :n])  # the same frames as this window's first ones
        z = z.where(here < inputs.frames[:, None, None], 0)
        for start in range(0, longest, self.chunk):
            yield Latents(
                z[..., start : start + self.chunk], (inputs.frames - start).clamp(0, min(self.chunk, longest - start))
            )


@pytest.mark.parametrize("stride", [1, 4, 7, 9])
@pytest.mark.parametrize("chunk", [1, 3, 10])
def test_every_frame_once_from_its_own_place(stride: int, chunk: int) -> None:
    scribe, totals = Scribe(10, chunk=chunk), [23, 4, 10, 31]
    add = torch.arange(31.0)[None, :, None] + 1000 * torch.arange(4)[:, None, None]
    plan = GenerationInputs(torch.tensor(totals), [5, 6, 7, 8], SAMPLING)
    chunks = list(windows.generate_windows(scribe, [GuidanceBranch(1.0, FusedConditions(add=add))], plan, stride=stride))
    whole = Latents.cat(chunks)  # type: ignore[arg-type]
    assert whole.lengths.tolist() == totals and whole.z.shape[-1] == 31
    for i, total in enumerate(totals):
        seed, frame, said, place = whole.z[i, :, :total]
        assert (
            (seed == 5 + i).all() and torch.equal(frame, torch.arange(total).float()) and torch.equal(said, add[i, :total, 0])
        )
        assert (place[10:] >= 10 - stride).all()  # what a later window adds it adds after what it knows
        assert not whole.z[i, :, total:].any()
    assert [plan.start_frame for plan in scribe.requests] == list(range(0, stride * len(scribe.requests), stride))
    assert all(len(plan.frames) < 4 for plan in scribe.requests[1:])  # items that have ended cost nothing


def test_one_window_is_the_generators_own_stream() -> None:
    scribe = Scribe(10)
    plan = GenerationInputs(torch.tensor([10, 3]), [0, 1], SAMPLING)
    branches = [GuidanceBranch(1.0, FusedConditions(add=torch.zeros(2, 10, 1)))]
    own = list(scribe.stream(branches, plan))
    for a, b in zip(own, windows.generate_windows(scribe, branches, plan), strict=True):
        assert torch.equal(a.data, b.data) and torch.equal(a.lengths, b.lengths)


def model(**fields: Any) -> CodecLM:
    generator = CodecLMSpec(
        width=32, depth=2, heads=2, mlp_ratio=2, **{"max_frames": 20, "end_of_sequence": False, **fields}
    ).build(FrameFormat("codes", 10.0, 3, 11), {"cross": 4, "add": 32})
    rng = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in generator.parameters():
            if parameter.dim() > 1:
                parameter.copy_(1.5 * torch.randn(parameter.shape, generator=rng) / parameter.shape[-1] ** 0.5)
    return generator.eval()


def told(batch: int, frames: int) -> FusedConditions:
    rng = torch.Generator().manual_seed(1)
    tokens = MaskedSequence(torch.randn(batch, 5, 4, generator=rng), torch.arange(5) < torch.tensor([5, 2, 3, 1])[:batch, None])
    return FusedConditions(cross=tokens, add=torch.randn(batch, frames, 32, generator=rng))


def run(generator: CodecLM, fused: FusedConditions, plan: GenerationInputs, stride: int | None = 12) -> Codes:
    null = FusedConditions(add=None if fused.add is None else torch.zeros_like(fused.add))
    chunks = list(
        windows.generate_windows(generator, [GuidanceBranch(3.0, fused), GuidanceBranch(-2.0, null)], plan, stride=stride)
    )
    return Codes.cat(chunks)  # type: ignore[arg-type]


def test_the_windows_are_what_a_caller_would_do_by_hand() -> None:
    """Generate, keep the last frames, generate on from them (the scheme of MusicGen's long clips), greedily."""
    generator, fused = model(), told(1, 50)
    greedy = TokenSampling(temperature=0)
    whole = run(generator, fused, GenerationInputs(torch.tensor([50]), [0], greedy)).ids
    made = torch.zeros(1, 3, 0, dtype=torch.long)
    for first in (0, 12, 24, 36):
        prompt = made[..., first:]
        known = KnownFrames(Codes(prompt), torch.ones(1, prompt.shape[-1], dtype=torch.bool)) if first else None
        assert fused.add is not None
        here = FusedConditions(cross=fused.cross, add=fused.add[:, first : first + 20])
        null = FusedConditions(add=torch.zeros(1, here.add.shape[1], 32))  # type: ignore[union-attr]
        plan = GenerationInputs(torch.tensor([min(20, 50 - first)]), [0], greedy, known)
        out = generator.generate([GuidanceBranch(3.0, here), GuidanceBranch(-2.0, null)], plan)
        made = torch.cat([made, out.data[..., prompt.shape[-1] :]], -1)
    assert torch.equal(made, whole)


def test_alone_and_in_any_batch() -> None:
    generator, fused, totals = model(), told(4, 70), [33, 70, 7, 45]
    together = list(run(generator, fused, GenerationInputs(torch.tensor(totals), [1, 2, 3, 4], SAMPLING)))
    for i, total in enumerate(totals):
        assert fused.cross is not None and fused.add is not None
        n = int(fused.cross.mask[i].sum())
        own = MaskedSequence(fused.cross.x[i : i + 1, :n], fused.cross.mask[i : i + 1, :n])
        alone = run(
            generator,
            FusedConditions(cross=own, add=fused.add[i : i + 1, :total]),
            GenerationInputs(torch.tensor([total]), [i + 1], SAMPLING),
        )
        assert torch.equal(alone.ids, together[i].ids) and together[i].ids.shape[-1] == total


def test_a_clip_of_one_window_has_the_curves_it_has_alone() -> None:
    """Check it in a batch with a longer clip, whose curves are resized to its frames before they are cut into windows."""
    generator, totals, rng = model(), torch.tensor([19, 33]), torch.Generator().manual_seed(2)
    curve = InterpolatedCondition(torch.randn(2, 40, 32, generator=rng), torch.tensor([40, 40]), "linear")
    together = list(run(generator, FusedConditions(interpolated=(curve,)), GenerationInputs(totals, [1, 2], SAMPLING)))
    for i in range(2):
        own = InterpolatedCondition(curve.x[i : i + 1], curve.lengths[i : i + 1], curve.resize)
        inputs = GenerationInputs(totals[i : i + 1], [i + 1], SAMPLING)
        assert torch.equal(run(generator, FusedConditions(interpolated=(own,)), inputs).ids, together[i].ids)


def test_a_longer_clip_begins_like_a_shorter_one() -> None:
    generator, fused = model(), told(1, 70)
    short, long = (run(generator, fused, GenerationInputs(torch.tensor([n]), [3], SAMPLING)).ids for n in (41, 70))
    assert torch.equal(short[..., :39], long[..., :39])  # what the delay writes last knows no condition of the frames after


def test_a_clip_that_ends_is_not_gone_on_with() -> None:
    generator, fused = model(end_of_sequence=True), told(2, 60)
    split, state = generator.split_codebooks, {"step": 0}

    def ending(x: torch.Tensor) -> torch.Tensor:
        y = split(x)
        y[:, 0, -1] = -1e4
        if state["step"] == 15 + 22 and len(y) == 4:  # the second window's frame 15: 8 known, then 7
            y[0::2, 0, -1] = 1e4  # item 0 in both branches
        state["step"] += 1
        return y

    generator.split_codebooks = ending  # type: ignore[method-assign]
    out = run(generator, fused, GenerationInputs(torch.tensor([60, 60]), [0, 1], TokenSampling()))
    assert out.lengths.tolist()[1] == 60 and 20 < out.lengths.tolist()[0] < 40


@pytest.mark.parametrize("frames", [7, 20, 33])
def test_a_pattern_of_one_length_makes_whole_windows_and_cuts(frames: int) -> None:
    generator, fused = model(pattern=CoarseFirst()), told(1, 40)
    out = run(generator, fused, GenerationInputs(torch.tensor([frames]), [0], SAMPLING))
    assert out.lengths.tolist() == [frames] and out.ids.shape[-1] == frames
    longer = run(generator, fused, GenerationInputs(torch.tensor([40]), [0], SAMPLING))
    assert torch.equal(out.ids, longer.ids[..., :frames])


@pytest.mark.parametrize("stride", [0, 20, 25, -1])
def test_a_stride_that_does_not_suit_is_refused(stride: int) -> None:
    with pytest.raises(RequestError, match=f"stride of {stride} frames does not suit windows of 20"):
        run(model(), told(1, 30), GenerationInputs(torch.tensor([30]), [0], SAMPLING), stride)


def test_closing_stops_the_work_in_any_window() -> None:
    generator, calls = model(), []
    generator.transformer.blocks[0].norm1.register_forward_hook(lambda *_: calls.append(0))  # type: ignore[union-attr]
    stream = windows.generate_windows(
        generator, [GuidanceBranch(1.0, told(1, 60))], GenerationInputs(torch.tensor([60]), [0], SAMPLING), stride=12
    )
    assert not calls
    for _ in range(4):
        next(stream)
    before = len(calls)
    stream.close()  # type: ignore[attr-defined]
    assert next(stream, None) is None and len(calls) == before < 60


def test_the_work_grows_with_the_length_alone() -> None:
    """Positions read: each window its own frames and delay, whatever came before."""
    generator, read = model(), []
    generator.transformer.blocks[0].norm1.register_forward_hook(lambda _, args, __: read.append(args[0].shape[1]))  # type: ignore[union-attr]
    for total, parts in ((20, 1), (32, 2), (116, 9)):
        read.clear()
        run(generator, told(1, total), GenerationInputs(torch.tensor([total]), [0], SAMPLING))
        assert sum(read) == parts * (20 + 3 - 1)
