"""Agreement: how near a model's predictions are to those of the same model in full precision, on the same real codes.

Every code is predicted from the true ones before it, so that errors do not add up and each of them is seen.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from cadenza.core.errors import RequestError
from cadenza.core.types import Codes, GuidanceBranch, KnownFrames
from cadenza.evaluation.adherence import Interval, paired_difference
from cadenza.generators.base import GenerationInputs
from cadenza.generators.codec_lm import CodecLM, init_state, prefill, step_logits
from cadenza.nn.kv_cache import PositionRange
from cadenza.nn.patterns import Pattern, build_sequence, revert_logits
from cadenza.nn.weight_quantization import dequantized_if_unsupported, pack_linears
from cadenza.samplers.guidance import batch_branches, weighted_sum
from cadenza.samplers.tokens import TokenSampling, sample_tokens, uniform_noise
from cadenza.system.fusion import branch_keep_mask
from cadenza.system.system import System


@dataclass(frozen=True)
class CodesExample:
    """The codes of one clip and the item that asks for it."""

    codes: Codes
    item: Mapping[str, Any]


@dataclass(frozen=True)
class PredictionGap:
    """Of one clip, for each codebook: nats of KL divergence a code, shares of codes that agree, nats lost on the true codes."""

    divergence: Float[Tensor, " k"]
    likeliest: Float[Tensor, " k"]
    drawn: Float[Tensor, " k"]
    loss: Float[Tensor, " k"]


@dataclass(frozen=True)
class MeanWithInterval:
    """A mean over clips with its bounds, and that of each codebook."""

    mean: Interval
    codebooks: tuple[float, ...]


@dataclass(frozen=True)
class QuantizationReport:
    """Gap between a model and the same one in full precision, over several clips."""

    divergence: MeanWithInterval  # KL(full || other), nats a code
    likeliest: MeanWithInterval  # share of codes of which both find the same value likeliest
    drawn: MeanWithInterval  # share of codes that the same uniform number draws from both
    loss: MeanWithInterval  # cross-entropy of the true codes above that of full precision, nats a code
    clips: int
    codes: int


@torch.inference_mode()
def teacher_forced_logits(system: System, excerpt: CodesExample, *, stepwise: bool = False) -> Float[Tensor, "2 k f v"]:
    """The logits of every code given those before it, with the conditions and without.

    `stepwise` reads step after step in the way in which clips are made, which on the CPU is the compiled walk with keys
    and values of 8 bits where weights are quantised; otherwise all steps are read at once and in floating point.
    """
    lm = system.generator
    if not isinstance(lm, CodecLM):
        raise RequestError("agreement is measured of generators that write codes step by step (codec_lm)")
    codes, device = excerpt.codes, system.device
    if len(codes) != 1 or codes.ids.shape[-1] > lm.spec.max_frames:
        raise RequestError(
            f"an excerpt is one clip of up to {lm.spec.max_frames} frames (generator.max_frames), "
            f"got {len(codes)} of {codes.ids.shape[-1]}"
        )
    pattern = lm.spec.pattern.pattern(lm.num_codebooks, codes.ids.shape[-1])
    branches = _branches(system, excerpt.item, codes.lengths.to(device))
    sequence, inside = build_sequence(pattern, codes.ids.to(device), lm.special_token_id)
    sequence = sequence.expand(len(branches), -1, -1)
    frame = pattern.frame_at_step.to(device).where(inside, -1).expand(len(branches), -1, -1)
    fused = batch_branches(branches, 1)
    if stepwise:
        logits = _stepwise_logits(lm, branches, codes, pattern)
    else:
        logits = lm(sequence, fused, frame).transpose(1, 2)
    return revert_logits(pattern, logits.float())[0]


def _stepwise_logits(lm: CodecLM, branches: list[GuidanceBranch], codes: Codes, pattern: Pattern) -> Float[Tensor, "2 k s v"]:
    """Return the logits of every step, computed as in generation with all codes known."""
    known = KnownFrames(codes, torch.ones(1, pattern.frames, dtype=torch.bool))
    inputs = GenerationInputs(codes.lengths, [0], TokenSampling(), known)
    lm = pack_linears(dequantized_if_unsupported(lm), len(branches))
    state, _ = init_state(lm, branches, inputs, [pattern])
    try:
        prefill(lm, state, 1)
        positions = [PositionRange(step, step + 1) for step in range(1, len(pattern) + 1)]
        return torch.stack([step_logits(lm, state, position) for position in positions], 2)
    finally:
        state.close()


def apply_guidance(logits: Float[Tensor, "2 k f v"], scale: float) -> Float[Tensor, "k f v"]:
    """Logits with conditions and without as guidance of this scale combines them; a value that neither has stays impossible."""
    never = logits[0] == -torch.inf
    return weighted_sum(logits, (scale, 1 - scale))[0].masked_fill(never, -torch.inf)


def kl_divergence(full: Float[Tensor, "*b v"], other: Float[Tensor, "*b v"]) -> Float[Tensor, "*b"]:
    """KL(full || other) of the distributions of which these are logits, in nats."""
    p, q = full.double().log_softmax(-1), other.double().log_softmax(-1)
    return (p.exp() * (p - q).masked_fill(p == -torch.inf, 0)).sum(-1).float()


def prediction_gap(
    full: Float[Tensor, "k f v"], other: Float[Tensor, "k f v"], *, ids: Int[Tensor, "k f"], sampling: Any, seed: int = 0
) -> PredictionGap:
    """How near the logits of a clip's codes are to those in full precision."""
    uniform = uniform_noise([seed], 0, ids.shape[1], ids.shape[0])[0].to(full.device)
    drawn = [sample_tokens(logits, uniform, sampling) for logits in (full, other)]
    spoken = [logits.float().log_softmax(-1).gather(-1, ids[..., None])[..., 0] for logits in (full, other)]
    return PredictionGap(
        kl_divergence(full, other).mean(-1),
        (full.argmax(-1) == other.argmax(-1)).float().mean(-1),
        (drawn[0] == drawn[1]).float().mean(-1),
        (spoken[0] - spoken[1]).mean(-1),
    )


def summarize(found: Sequence[PredictionGap], *, codes: int) -> QuantizationReport:
    """Return the means over clips with bootstrap bounds."""
    tables = {name: torch.stack([vars(each)[name] for each in found]).cpu() for name in PredictionGap.__annotations__}
    measures = {
        name: MeanWithInterval(
            paired_difference(table.mean(1)[None], torch.zeros(1, len(table)), rng=torch.Generator().manual_seed(0)),
            tuple(table.mean(0).tolist()),
        )
        for name, table in tables.items()
    }
    return QuantizationReport(**measures, clips=len(found), codes=codes)


def compare_systems(
    full: System, others: Mapping[str, tuple[System, bool]], excerpts: Iterable[CodesExample], *, scales: Sequence[float]
) -> dict[tuple[str, float], QuantizationReport]:
    """The agreement of each of `others`, a system and whether it reads stepwise, at each scale of guidance."""
    sampling = full.generator.spec.sampling.parse(full.spec.defaults.sampling, source="sampling")  # type: ignore[union-attr]
    found: dict[tuple[str, float], list[PredictionGap]] = {(name, scale): [] for name in others for scale in scales}
    codes = 0
    for seed, excerpt in enumerate(excerpts):
        known, ids = teacher_forced_logits(full, excerpt), excerpt.codes.ids[0].to(full.device)
        codes += ids.numel()
        for name, (system, stepwise) in others.items():
            logits = teacher_forced_logits(system, excerpt, stepwise=stepwise).to(known.device)
            for scale in scales:
                pair = apply_guidance(known, scale), apply_guidance(logits, scale)
                found[name, scale].append(prediction_gap(*pair, ids=ids, sampling=sampling, seed=seed))
    return {key: summarize(each, codes=codes) for key, each in found.items()}


def _branches(system: System, item: Mapping[str, Any], lengths: Int[Tensor, "1"]) -> list[GuidanceBranch]:
    """What a clip is asked by, and what guidance compares it with."""
    frames = int(lengths.max())
    conditions = system.encode_conditions(system.prepare([system.extract_prompt_values(item)], frames=frames))
    nothing = branch_keep_mask(system.spec.fusion, [()], system.device)
    return [
        GuidanceBranch(weight, system.fuse(conditions, frames=frames, keep=keep, lengths=lengths))
        for weight, keep in ((1.0, None), (0.0, nothing))
    ]
