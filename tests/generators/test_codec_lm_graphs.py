"""Captured and replayed steps give the same codes as steps that Python runs."""

import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tape import TapeRecorder
from torch import Tensor

from cadenza.core.types import (
    Codes,
    FrameFormat,
    FusedConditions,
    GuidanceBranch,
    InterpolatedCondition,
    KnownFrames,
    MaskedSequence,
)
from cadenza.generators.base import GenerationInputs
from cadenza.generators.codec_lm import CodecLM, CodecLMSpec
from cadenza.nn import kv_cache
from cadenza.nn.cuda_graphs import GraphCache, iter_tensors
from cadenza.nn.patterns import Delay, MusicLM, Parallel, Unroll
from cadenza.nn.weight_quantization import quantize_linears
from cadenza.samplers.tokens import TokenSampling
from cadenza.system import windows

GRID = FrameFormat("codes", 50.0, 3, 11)
SIZE = {"width": 32, "depth": 2, "heads": 2, "mlp_ratio": 2, "max_frames": 40}
WIDTHS: Any = {"cross": 5, "prepend": 8, "add": 32, "concat": 3, "global": 6}
FRAMES = 40


@pytest.fixture(autouse=True)
def small_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kv_cache, "BUCKET", 16)


def model(widths: Any = WIDTHS, **fields: Any) -> CodecLM:
    torch.manual_seed(0)
    generator = CodecLMSpec(**{**SIZE, **fields}).build(GRID, widths).eval()
    with torch.no_grad():
        for parameter in generator.parameters():
            if parameter.dim() > 1:
                parameter.copy_(1.5 * torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
    return generator


def recording(generator: CodecLM) -> tuple[CodecLM, list[TapeRecorder]]:
    """Make the model capture its steps; return it with the list of its capturers."""
    made: list[TapeRecorder] = []

    def recorder(_: torch.device) -> TapeRecorder:
        made.append(TapeRecorder())
        return made[-1]

    generator.graphs = GraphCache(recorder)
    return generator, made


def everything(frames: int = FRAMES, *, bias: bool = False) -> FusedConditions:
    """Return conditions in every slot, with padding; with a bias, tokens of some frames only."""
    rng = torch.Generator().manual_seed(1)
    random = lambda *shape: torch.randn(shape, generator=rng)  # noqa: E731
    masks = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0]]).bool()
    weight = torch.rand(2, 4, frames, generator=rng)
    weight[0, :, 4:7] = 0
    curves = (InterpolatedCondition(random(2, 7, 32), torch.tensor([7, 3]), "linear"),)
    cross = MaskedSequence(random(2, 4, 5), masks, weight.log() if bias else None)
    return FusedConditions(
        cross, MaskedSequence(random(2, 4, 8), masks), random(2, frames, 32), random(2, frames, 3), random(2, 6), curves
    )


def guided(fused: FusedConditions) -> list[GuidanceBranch]:
    return [GuidanceBranch(2.5, fused, 1.0), GuidanceBranch(-1.5, replace(fused, cross=None, prepend=None))]


WHOLE = TokenSampling(allow_eos=False)


def plan(frames: Sequence[int] = (FRAMES, 31), sampling: TokenSampling = WHOLE, **more: Any) -> GenerationInputs:
    return GenerationInputs(torch.tensor(frames), [3, 4], sampling, **more)


def same(
    generator: CodecLM, branches: list[GuidanceBranch], the_plan: GenerationInputs, *, least: int = 20
) -> list[TapeRecorder]:
    """Check that captured steps give the same codes; return the capturers."""
    want = generator.generate(branches, the_plan)
    got = recording(generator)
    found = generator.generate(branches, the_plan)
    assert torch.equal(found.data, want.data) and torch.equal(found.lengths, want.lengths)
    assert sum(recorder.replayed for recorder in got[1]) > least
    return got[1]


KNOWN = KnownFrames(
    Codes(torch.arange(2 * 3 * FRAMES).view(2, 3, FRAMES) % 11), torch.arange(FRAMES)[None] < torch.tensor([[9], [4]])
)
ASKED: dict[str, Callable[[], tuple[CodecLM, list[GuidanceBranch], GenerationInputs]]] = {
    "nothing": lambda: (model({}), [GuidanceBranch(1.0, FusedConditions())], plan()),
    "every slot": lambda: (model(), guided(everything()), plan()),
    "sinusoids": lambda: (model(positions="sinusoidal", cross_attention_pos_emb_scale=0.5), guided(everything()), plan()),
    "padding attended to": lambda: (model(attend_padding=True), guided(everything()), plan()),
    "a timeline": lambda: (model(), guided(everything(bias=True)), plan()),
    "no end": lambda: (model(end_of_sequence=False), guided(everything()), plan()),
    "greedy": lambda: (model(), guided(everything()), plan(sampling=TokenSampling(temperature=0, allow_eos=False))),
    "top p": lambda: (
        model(), guided(everything()), plan(sampling=TokenSampling(top_p=0.8, top_k=0, temperature=1.3, allow_eos=False))
    ),
    "strength": lambda: (model(), guided(everything()), plan(guidance_schedule=torch.linspace(0, 1, FRAMES).expand(2, -1))),
    "rescaled": lambda: (model(), guided(everything()), plan(rescale=0.7)),
    "two steps": lambda: (model(), guided(everything()), plan(two_step_cfg=True)),
    "known": lambda: (model(), guided(everything()), plan(known_frames=KNOWN)),
    "parallel": lambda: (model(pattern=Parallel()), guided(everything()), plan()),
    "unrolled": lambda: (model(pattern=Unroll()), guided(everything()), plan()),
    "delays": lambda: (model(pattern=Delay(delays=(0, 1, 3), flatten_first=2)), guided(everything()), plan()),
    "coarse to fine": lambda: (
        model(pattern=MusicLM(group_by=1), end_of_sequence=False), guided(everything()), plan((FRAMES, FRAMES))
    ),
    "one clip": lambda: (
        model({}),
        [GuidanceBranch(1.0, FusedConditions())],
        GenerationInputs(torch.tensor([FRAMES]), [5], TokenSampling()),
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", ASKED)
def test_captured_steps_give_the_same_codes(what: str) -> None:
    same(*ASKED[what]())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_captured_steps_in_half_precision(dtype: torch.dtype) -> None:
    """Compare with the same steps without capture, as sums depend on the length."""
    generator = model({"cross": 5}).to(dtype)
    tokens = everything().cross
    assert tokens is not None
    fused = FusedConditions(MaskedSequence(tokens.x.to(dtype), tokens.mask))

    class Alone(TapeRecorder):
        def capture(self, run: Callable[[], Any]) -> Callable[[], Any]:
            return run

    generator.graphs = GraphCache(lambda _: Alone())
    want = generator.generate(guided(fused), plan()).data
    recording(generator)
    assert torch.equal(generator.generate(guided(fused), plan()).data, want)


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_quantised_weights_can_be_captured(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dequantise the weights for each product, as on a GPU without a kernel."""
    generator = model({"cross": 32}, width=64, mlp_ratio=1)
    quantize_linears(generator, kind)
    monkeypatch.setattr("cadenza.nn.weight_quantization.cpu_kernel_unavailable_reason", lambda: "as on a GPU")
    monkeypatch.setattr("cadenza.generators.codec_lm.dequantized_if_unsupported", lambda module: module)
    monkeypatch.setattr("cadenza.generators.codec_lm.QuantizedLinear", type(None))  # which the walk of a CPU looks for
    tokens = MaskedSequence(
        torch.randn(2, 4, 32, generator=torch.Generator().manual_seed(2)), torch.ones(2, 4, dtype=torch.bool)
    )
    same(generator, guided(FusedConditions(tokens)), plan())


def test_ends_are_detected_on_the_device() -> None:
    """One item ends by itself in the first block of steps, the other in a later one."""
    generator = model({"cross": 5})
    branches = [GuidanceBranch(1.0, FusedConditions(everything().cross))]
    plans = (GenerationInputs(torch.tensor([FRAMES, FRAMES]), [seed, seed + 1], TokenSampling()) for seed in range(60))

    def early_and_late(the_plan: GenerationInputs) -> bool:
        early, late = sorted(generator.generate(branches, the_plan).lengths.tolist())
        return 1 < early < 12 and 18 < late < FRAMES

    same(generator, branches, next(filter(early_and_late, plans)), least=14)


def test_windows_of_the_same_shape_are_captured_once() -> None:
    """A clip of four windows, of which all but the last are as long as the model's context and know as much."""
    fused = everything(130)
    the_plan = GenerationInputs(torch.tensor([130, 130]), [3, 4], TokenSampling(allow_eos=False))
    generator = model()

    def run() -> Tensor:
        chunks = list(windows.generate_windows(generator, guided(fused), the_plan, stride=30))
        return torch.cat([chunk.data for chunk in chunks], -1)

    want = run()
    _, made = recording(generator)
    assert torch.equal(run(), want)
    assert [bool(recorder.tapes) for recorder in made].count(True) == 1
    assert torch.equal(run(), want)
    assert [bool(recorder.tapes) for recorder in made].count(True) == 1


def test_attention_is_limited_to_the_bucket() -> None:
    """Check one capture per 16 positions, and no step that attends to more than 16 beyond its own."""
    recorders = same(model({}), [GuidanceBranch(1.0, FusedConditions())], plan())
    read = []
    for tape in recorders[0].tapes if len(recorders) == 1 else recorders[-1].tapes:
        attended = [args[1].shape[2] for func, args, _, _ in tape.operations if "scaled_dot_product" in str(func)]
        read.append(attended[0])
        assert set(attended) == {attended[0]}
    assert read == [16, 32, 48]


def test_closed_stream_frees_its_state_and_finished_one_keeps_its_runner() -> None:
    generator = model()
    generator.graphs = GraphCache(lambda _: TapeRecorder())
    stream: Any = generator.stream(guided(everything()), plan())
    next(stream)
    buffers = [weakref.ref(x) for x in iter_tensors(stream.gi_frame.f_locals["state"])]
    assert len(buffers) > 20
    stream.close()
    del stream
    assert not any(reference() is not None for reference in buffers)
    for _ in generator.stream(guided(everything()), plan()):
        pass
    kept = generator.graphs._kept
    assert kept is not None and len(kept.runs) == 2


def test_concurrent_streams_are_independent() -> None:
    """Run two of the same shape in turn, after one whose runner is kept."""
    generator, branches = model(), guided(everything())
    plans = [replace(plan(), seeds=seeds) for seeds in ([1, 2], [3, 4])]
    want = [generator.generate(branches, each).data for each in plans]
    recording(generator)
    generator.generate(branches, plan())
    got = list(zip(*(generator.stream(branches, each) for each in plans), strict=True))
    for i, content in enumerate(want):
        assert torch.equal(torch.cat([chunk[i].data for chunk in got], -1), content)


def test_blocks_compile_whole() -> None:
    """At most once for the prefix, for the first bucket of positions and for any, without graph breaks."""
    program = Path(__file__).parents[1] / "support" / "compiling.py"
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before, same, after = done.stdout.split()
    assert before == "0" and same == "True" and 1 <= int(after) <= 3
