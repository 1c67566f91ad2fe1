"""CUDA graphs on a GPU, at tiny size; `test_codec_lm_graphs.py` tests the same on a CPU."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cadenza.core.types import FrameFormat, FusedConditions, GuidanceBranch, MaskedSequence
from cadenza.generators.base import GenerationInputs
from cadenza.generators.codec_lm import CodecLM, CodecLMSpec
from cadenza.nn.cuda_graphs import CUDAGraphCapturer, GraphCache, GraphRunner
from cadenza.samplers.tokens import TokenSampling

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device here")

DRAWN = TokenSampling()
FRAMES = 300  # more than one bucket of positions


class Eager(CUDAGraphCapturer):
    """Launch the step by Python."""

    def capture(self, run: Callable[[], Any]) -> Callable[[], Any]:
        return run


def model(dtype: torch.dtype = torch.float32) -> CodecLM:
    torch.manual_seed(0)
    spec = CodecLMSpec(width=64, depth=2, heads=2, mlp_ratio=2, max_frames=FRAMES, end_of_sequence=False)
    generator = spec.build(FrameFormat("codes", 50.0, 3, 64), {"cross": 5, "prepend": 8}).eval()
    with torch.no_grad():
        for parameter in generator.parameters():
            if parameter.dim() > 1:
                parameter.copy_(1.5 * torch.randn_like(parameter) / parameter.shape[-1] ** 0.5)
    return generator.to("cuda", dtype)


def written(generator: CodecLM, sampling: TokenSampling = DRAWN) -> Tensor:
    rng, dtype = torch.Generator().manual_seed(1), generator.embedding.weight.dtype
    mask = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0]]).bool().cuda()
    given = [MaskedSequence(torch.randn(2, 4, width, generator=rng).to("cuda", dtype), mask) for width in (5, 8)]
    branches = [GuidanceBranch(3.0, FusedConditions(*given)), GuidanceBranch(-2.0, FusedConditions())]
    return generator.generate(branches, GenerationInputs(torch.tensor([FRAMES, 211]), [3, 4], sampling)).data


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_graph_equals_steps_launched_by_python(dtype: torch.dtype) -> None:
    generator = model(dtype)
    got = written(generator)
    assert generator.graphs._kept is not None and len(generator.graphs._kept.runs) == 2
    assert torch.equal(written(generator), got)  # by the graphs that were kept
    generator.graphs = GraphCache(Eager)
    assert torch.equal(written(generator), got)


def test_gpu_codes_equal_cpu_codes() -> None:
    """Greedy in float32; rounding differs, so a rare tie may change the rest."""
    greedy = TokenSampling(temperature=0)
    generator = model()
    got = written(generator, greedy).cpu()
    spec = generator.spec
    twin = spec.build(generator.frame_format, {"cross": 5, "prepend": 8}).eval()
    twin.load_state_dict(generator.cpu().state_dict())
    rng, mask = torch.Generator().manual_seed(1), torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0]]).bool()
    given = [MaskedSequence(torch.randn(2, 4, width, generator=rng), mask) for width in (5, 8)]
    branches = [GuidanceBranch(3.0, FusedConditions(*given)), GuidanceBranch(-2.0, FusedConditions())]
    want = twin.generate(branches, GenerationInputs(torch.tensor([FRAMES, 211]), [3, 4], greedy)).data
    assert torch.equal(got[..., :20], want[..., :20])


def test_no_step_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = model()
    written(generator)
    run = GraphRunner.run

    def watched(*args: Any, **options: Any) -> None:
        torch.cuda.set_sync_debug_mode("error")
        try:
            run(*args, **options)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    monkeypatch.setattr(GraphRunner, "run", watched)
    written(generator)


def test_a_step_that_synchronises_is_run_without_capture() -> None:
    generator = model()
    want = written(generator)
    generator.graphs = GraphCache()
    logits = generator.split_codebooks

    def waiting(x: Tensor) -> Tensor:
        x.sum().item()
        return logits(x)

    generator.split_codebooks = waiting  # type: ignore[method-assign]
    stream = torch.cuda.current_stream()
    with pytest.warns(UserWarning, match="no graph could be captured"):
        assert torch.equal(written(generator), want)
    assert torch.cuda.current_stream() == stream
    assert generator.graphs._kept is None


def test_closed_stream_frees_its_memory() -> None:
    generator = model()
    written(generator)
    generator.graphs = GraphCache()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    stream: Any = generator.stream(
        [GuidanceBranch(1.0, FusedConditions())], GenerationInputs(torch.tensor([FRAMES]), [0], TokenSampling())
    )
    next(stream)
    assert torch.cuda.memory_allocated() > before
    stream.close()
    del stream
    assert torch.cuda.memory_allocated() <= before
