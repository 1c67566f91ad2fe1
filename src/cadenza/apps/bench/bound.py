"""Bound: how fast a decoder could step, if memory and arithmetic were all there is (arXiv:1911.02150)."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from cadenza.apps.bench.machine import MachineLimits
from cadenza.apps.bench.measure import BenchJob
from cadenza.nn.kernels import cpu_kernel_unavailable_reason
from cadenza.nn.weight_quantization import QuantizedLinear


@dataclass(frozen=True)
class StepCost:
    """What a step reads and computes in the middle of a clip: bytes of weights, of keys and values, and operations."""

    weights: int
    memory: int
    operations: int

    def roofline_steps_per_second(self, bounds: MachineLimits) -> float:
        """Steps a second where the slower of memory and arithmetic is all that counts."""
        arithmetic = max(bounds.float32, bounds.bfloat16)
        return 1 / max((self.weights + self.memory) / bounds.bandwidth, self.operations / arithmetic)


def step_cost(generator: Any, job: BenchJob, *, steps: int) -> StepCost:
    """What a step of a codec_lm needs: weights as they are stored, keys and values of half of the clip, which is the mean."""
    spec, rows = generator.spec, job.batch * job.branches
    cross = any("cross" in name for name, _ in generator.transformer.named_modules())
    positions = min(steps, spec.max_frames) / 2
    tokens = job.words + 1 if cross else 0
    numbers = spec.depth * 2 * spec.width * rows * (positions + tokens)
    block = (4 + 2 * cross + 2 * spec.mlp_ratio) * spec.width**2
    products = spec.depth * block + spec.width * (
        generator.num_codebooks * generator.special_token_id + int(spec.end_of_sequence)
    )
    operations = 2 * rows * products + 4 * rows * spec.depth * spec.width * (positions + tokens)
    return StepCost(weight_bytes_per_step(generator), int(numbers * kv_bytes_per_value(generator)), int(operations))


def kv_bytes_per_value(generator: nn.Module) -> int:
    """Bytes of a number in the memory of keys and values: one where quantised weights are walked on a CPU."""
    like = generator.get_submodule("transformer.norm").weight
    narrow = any(isinstance(part, QuantizedLinear) for part in generator.modules())
    return 1 if narrow and like.device.type == "cpu" and cpu_kernel_unavailable_reason() is None else like.element_size()  # type: ignore[operator]


def weight_bytes_per_step(generator: nn.Module) -> int:
    """Bytes of the weights that each step reads: not embeddings, of which it takes rows, nor what conditions are read with."""
    parts = [generator.get_submodule("transformer"), generator.get_submodule("head")]
    found = {}
    for part in parts:
        for name, module in part.named_modules():
            if "cross.kv" in name or name.startswith("style"):
                continue
            for x in (*module._parameters.values(), *module._buffers.values()):
                if x is not None:
                    found[id(x)] = x.numel() * x.element_size()
    return sum(found.values())
