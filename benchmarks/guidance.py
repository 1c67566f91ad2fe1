"""What branches of guidance cost: milliseconds a step of a codec language model of random weights, by batch width.

    python benchmarks/guidance.py --threads 2 --dtype float32 bfloat16

The geometry is that of musicgen-small: width 1024, 24 blocks, 16 heads, 4 codebooks of 2048, a text of 20 tokens.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from cadenza.core.types import FrameFormat, FusedConditions, GuidanceBranch, MaskedSequence
from cadenza.generators.base import GenerationInputs
from cadenza.generators.codec_lm import CodecLM, CodecLMSpec, decode_block, init_state, prefill
from cadenza.nn.patterns import Delay
from cadenza.nn.weight_quantization import pack_linears
from cadenza.samplers.guidance import nonzero_branches
from cadenza.samplers.tokens import TokenSampling

WEIGHTS = {1: (1.0,), 2: (3.0, -2.0), 3: (6.0, -4.0, -1.0)}  # plain, classifier-free, double guidance


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--depth", type=int, default=24)
    parser.add_argument("--heads", type=int, default=16)
    parser.add_argument("--steps", type=int, default=24, help="steps that are timed, after as many that are not")
    parser.add_argument("--rounds", type=int, default=3, help="of each number of branches, in turn")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--cpu-time", action="store_true", help="of this process, not of the clock: a machine may be shared")
    parser.add_argument("--dtype", nargs="+", default=["float32", "bfloat16"])
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    spec = CodecLMSpec(width=asked.width, depth=asked.depth, heads=asked.heads, positions="sinusoidal", end_of_sequence=False)
    clock = time.process_time if asked.cpu_time else time.perf_counter
    for dtype in asked.dtype:
        lm = filled(spec, getattr(torch, dtype))
        times: dict[int, list[float]] = {count: [] for count in WEIGHTS}
        twin = pack_linears(lm, max(WEIGHTS))  # as generation makes one of a model on a CPU
        for _ in range(asked.rounds):  # in turn, so that what else the machine does falls on all of them
            for count in WEIGHTS:
                times[count].append(step_time(twin, count, asked.steps, clock))
        best = {count: min(each) for count, each in times.items()}
        middle = {count: statistics.median(each) for count, each in times.items()}
        for count in WEIGHTS:
            print(
                f"{dtype} {count} branches: {1e3 * best[count]:.1f} ms a step at best ({best[count] / best[1]:.2f}x one), "
                f"{1e3 * middle[count]:.1f} in the middle ({middle[count] / middle[1]:.2f}x)",
                flush=True,
            )


@torch.no_grad()
def filled(spec: CodecLMSpec, dtype: torch.dtype) -> CodecLM:
    """A model whose weights are the same few random numbers over and over, which is soon done."""
    with torch.device("meta"):
        lm = CodecLM(spec, FrameFormat("codes", 50.0, 4, 2048), {"cross": spec.width})
    lm = lm.to(dtype).to_empty(device="cpu").eval()
    some = 0.02 * torch.randn(1 << 20)
    for weight in lm.parameters():
        weight.copy_(some.repeat(weight.numel() // len(some) + 1)[: weight.numel()].view_as(weight))
    return lm


@torch.inference_mode()
def step_time(lm: CodecLM, count: int, steps: int, clock: Callable[[], float]) -> float:
    """Seconds a step takes, in the middle of a clip's first second."""

    def tokens() -> MaskedSequence:
        return MaskedSequence(torch.randn(1, 20, lm.spec.width).to(lm.embedding.weight), torch.ones(1, 20, dtype=torch.bool))

    branches = nonzero_branches([GuidanceBranch(weight, FusedConditions(cross=tokens())) for weight in WEIGHTS[count]])
    patterns: Any = [Delay().pattern(4, 2 * steps)]
    state, first = init_state(lm, branches, GenerationInputs(torch.tensor([2 * steps]), [0], TokenSampling()), patterns)
    prefill(lm, state, first)
    decode_block(lm, state, first, first + steps)
    began = clock()
    decode_block(lm, state, first + steps, first + 2 * steps)
    return (clock() - began) / steps


if __name__ == "__main__":
    main()
