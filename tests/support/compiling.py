"""Print the number of compilations, and whether codes stayed equal; run without the type checks of the tests."""

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from cadenza.core.types import FrameFormat, FusedConditions, GuidanceBranch, MaskedSequence
from cadenza.generators.base import GenerationInputs
from cadenza.generators.codec_lm import CodecLMSpec
from cadenza.nn import kv_cache
from cadenza.nn.cuda_graphs import CUDAGraphCapturer, GraphCache
from cadenza.samplers.tokens import TokenSampling


class Python(CUDAGraphCapturer):
    """Run the step of a GPU by Python, without capture."""

    def __init__(self) -> None:
        """Use no device."""

    def warmup(self, run: Callable[[], Any]) -> None:
        run()

    def capture(self, run: Callable[[], Any]) -> Callable[[], Any]:
        return run


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    spec = CodecLMSpec(width=32, depth=3, heads=2, mlp_ratio=2, max_frames=40, end_of_sequence=False)
    generator = (
        spec.build(FrameFormat("codes", 50.0, 3, 11), {"cross": 5, "prepend": 8, "global": 6}).eval().requires_grad_(False)
    )
    for weight in generator.parameters():
        weight.normal_(std=1.5 * weight.shape[-1] ** -0.5)
    mask = torch.tensor([[1, 1, 0, 1], [1, 0, 0, 0]]).bool()
    given = FusedConditions(
        MaskedSequence(torch.randn(2, 4, 5), mask), MaskedSequence(torch.randn(2, 4, 8), mask), global_vector=torch.randn(2, 6)
    )
    branches = [GuidanceBranch(2.5, given), GuidanceBranch(-1.5, FusedConditions(global_vector=given.global_vector))]
    plan = GenerationInputs(torch.tensor([40, 31]), [1, 2], TokenSampling())
    compiled = 0

    def backend(graph: Any, _: Any) -> Any:
        nonlocal compiled
        compiled += 1
        return graph.forward

    def compile_whole(block: nn.Module) -> None:
        block._compiled_call_impl = torch.compile(block._call_impl, backend=backend, fullgraph=True)

    with patch.object(kv_cache, "BUCKET", 16), patch("cadenza.generators.codec_lm.pack_linears", lambda module, _: module):
        want = generator.generate(branches, plan).data
        generator.graphs = GraphCache(lambda _: Python())
        with patch.object(nn.Module, "compile", compile_whole):
            for block in generator.transformer.blocks:
                block.compile()
        print(compiled, torch.equal(generator.generate(branches, plan).data, want), compiled)


if __name__ == "__main__":
    main()
