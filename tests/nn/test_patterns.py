"""Patterns against AudioCraft's own (kit case 10), and as invertible data."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from cadenza.nn.patterns import (
    CoarseFirst,
    Delay,
    MusicLM,
    Parallel,
    Pattern,
    PatternSpec,
    Unroll,
    build_sequence,
    revert_logits,
    stack_tables,
)

GOLDEN = Path(__file__).parents[1] / "golden" / "patterns.json"
RULES = [
    Parallel(),
    Parallel(empty_initial=-1),
    Parallel(empty_initial=2),
    Delay(),
    Delay(delays=(0, 0, 1, 1)),
    Delay(delays=(3, 0, 5, 1), empty_initial=1),
    Delay(flatten_first=2),
    Delay(delays=(0, 0, 1, 1), flatten_first=3, empty_initial=2),
    Unroll(),
    Unroll(flattening=(0, 1, 1, 2)),
    Unroll(flattening=(0, 1, 1, 2), delays=(0, 3, 3, 1)),
    CoarseFirst(),
    CoarseFirst(delays=(0, 2, 1)),
    MusicLM(),
    MusicLM(group_by=1),
]


def rule(entry: dict[str, Any]) -> Any:
    return TypeAdapter(PatternSpec).validate_python({"type": entry["provider"], **entry["args"]})


def reverted(pattern: Pattern, sequence: Tensor, special: int) -> tuple[Tensor, Tensor]:
    """Return the codes at the steps that `step_of_frame` names, with the mask of those the sequence contains."""
    steps, step = sequence.shape[-1], pattern.step_of_frame
    mask = (step >= 0) & (step < steps)
    padded = torch.nn.functional.pad(sequence, (0, 1), value=special)
    return padded.gather(2, step.where(mask, steps).expand(len(sequence), -1, -1)), mask


def agrees(entry: dict[str, Any]) -> None:
    if "error" in entry:
        with pytest.raises(ValidationError, match="delay"):
            rule(entry)
        return
    rows, frames, special = entry["n_q"], entry["T"], entry["special"]
    pattern = rule(entry).pattern(rows, frames)
    assert [[list(code) for code in step] for step in pattern.steps] == entry["layout"]
    assert len(pattern) - pattern.valid_steps == max(0, entry["max_delay"])
    assert pattern.starts_empty == entry["starts_with_special_token"]
    assert pattern.step_of_frame.amin(0).tolist() == entry["first_step_with_timestep"]
    ids = 1000 + 100 * torch.arange(rows)[:, None] + torch.arange(frames)
    for name, steps in (("full", None), ("valid", pattern.valid_steps)):
        want = {key: torch.tensor(value) for key, value in entry[name].items()}
        sequence, mask = build_sequence(pattern, ids[None], special, steps=steps)
        assert torch.equal(sequence[0], want["sequence"]) and torch.equal(mask.long(), want["mask"])
        back, mask = reverted(pattern, sequence, special)
        assert torch.equal(back[0], want["reverted"]) and torch.equal(mask.long(), want["reverted_mask"])
        numbers = torch.arange(sequence[0].numel()).view(1, *sequence[0].shape, 1).float()
        logits, mask = revert_logits(pattern, numbers, fill=-1)
        assert torch.equal(logits[0, ..., 0].long(), want["logits_reverted"])
        assert torch.equal(mask.long(), want["logits_mask"])


@pytest.mark.parametrize("entry", json.loads(GOLDEN.read_text()), ids=lambda entry: f"{entry['provider']}{entry['args']}")
def test_golden(entry: dict[str, Any]) -> None:
    agrees(entry)


def test_the_kit(kit: Callable[[str], Path]) -> None:
    entries = json.loads((kit("10") / "patterns.json").read_text())
    assert len(entries) > 40
    for entry in entries:
        agrees(entry)


def test_figure_of_the_paper() -> None:
    sequence, _ = build_sequence(Delay().pattern(3, 4), torch.arange(1, 5).expand(1, 3, 4), 0)
    assert sequence[0].tolist() == [[0, 1, 2, 3, 4, 0, 0], [0, 0, 1, 2, 3, 4, 0], [0, 0, 0, 1, 2, 3, 4]]


@pytest.mark.parametrize("spec", RULES, ids=repr)
@pytest.mark.parametrize("frames", [1, 16, 72])
def test_each_code_occurs_once(spec: Any, frames: int) -> None:
    pattern = spec.pattern(4, frames)
    ids = torch.randint(1024, (3, 4, frames), generator=torch.Generator().manual_seed(0))
    sequence, mask = build_sequence(pattern, ids, 1024)
    assert mask.sum() == 4 * frames and (sequence == 1024).sum() == 3 * (~mask).sum()
    back, found = reverted(pattern, sequence, 1024)
    assert found.all() and torch.equal(back, ids)


@pytest.mark.parametrize("spec", RULES, ids=repr)
@pytest.mark.parametrize("frames", [1, 7, 40])
def test_codes_come_in_order(spec: Any, frames: int) -> None:
    """Check that each codebook is in order of frames, and each frame in order of codebooks without delays."""
    step = spec.pattern(4, frames).step_of_frame
    assert (step >= 0).all() and (step.diff(dim=1) > 0).all()
    delays = list(getattr(spec, "delays", None) or ())
    if delays == sorted(delays):
        assert (step.diff(dim=0) >= 0).all()
    if not spec.prefix_stable:  # what is coarse is whole before what is fine begins
        assert step[0].max() < step[-1].min()


def test_step_of_each_code() -> None:
    """The rules in closed form: the step of a code from its frame t and codebook k."""
    t, k = torch.arange(7), torch.arange(4)[:, None]
    delays = torch.tensor([0, 0, 1, 1])[:, None]
    assert torch.equal(Parallel().pattern(4, 7).step_of_frame, (1 + t).expand(4, -1))
    assert torch.equal(Parallel(empty_initial=-1).pattern(4, 7).step_of_frame, t.expand(4, -1))
    assert torch.equal(Delay(delays=(0, 0, 1, 1), empty_initial=2).pattern(4, 7).step_of_frame, 3 + t + delays)
    flat = torch.where(t < 2, 1 + 4 * t + k, 9 + t - 2 + k)
    assert torch.equal(Delay(flatten_first=2).pattern(4, 7).step_of_frame, flat)
    assert torch.equal(Unroll().pattern(4, 7).step_of_frame, 1 + 4 * t + k)
    assert torch.equal(CoarseFirst().pattern(4, 7).step_of_frame, 1 + t + 7 * (k > 0))
    assert torch.equal(MusicLM().pattern(4, 7).step_of_frame, 1 + 2 * t + k % 2 + 14 * (k // 2))


@pytest.mark.parametrize("spec", RULES, ids=repr)
def test_longer_pattern_starts_like_a_shorter_one(spec: Any) -> None:
    long, short = spec.pattern(4, 9).frame_at_step, spec.pattern(4, 5).frame_at_step
    n = short.shape[1]
    same = torch.equal(torch.where(long[:, :n] < 5, long[:, :n], -1), torch.where(short < 5, short, -1))
    assert same == spec.prefix_stable


@pytest.mark.parametrize("spec", RULES, ids=repr)
def test_complete_counts_whole_frames(spec: Any) -> None:
    pattern = spec.pattern(4, 5)
    written: set[tuple[int, int]] = set()
    for step, count in zip(pattern.steps, pattern.complete_frames_after(), strict=True):
        written |= set(step)
        whole = [all((frame, row) in written for row in range(4)) for frame in range(5)] + [False]
        assert count == whole.index(False)


def test_stacked_tables_are_padded() -> None:
    patterns = [Delay().pattern(2, 3), Delay().pattern(2, 1)]
    assert stack_tables([pattern.frame_at_step for pattern in patterns]).tolist()[1] == [
        [-1, 0, 1, -1, -1],
        [-1, -1, 0, -1, -1],
    ]
    assert stack_tables([pattern.step_of_frame for pattern in patterns]).tolist() == [
        [[1, 2, 3], [2, 3, 4]],
        [[1, -1, -1], [2, -1, -1]],
    ]


def test_errors_name_the_field() -> None:
    with pytest.raises(ValueError, match="delays: 3 numbers are given, this codec needs 4"):
        Delay(delays=(0, 1, 2)).pattern(4, 8)
    with pytest.raises(ValueError, match="group_by: 5 codebooks do not make groups of 2"):
        MusicLM().pattern(5, 8)
    with pytest.raises(ValueError, match="the pattern has 4 frames, the codes 5"):
        build_sequence(Delay().pattern(2, 4), torch.zeros(1, 2, 5, dtype=torch.long), 9)
    with pytest.raises(ValueError, match="has 2 codebooks, the tensor 3"):
        revert_logits(Delay().pattern(2, 4), torch.zeros(1, 3, 5, 9))
    with pytest.raises(ValueError, match="twice"):
        Pattern(1, 2, ((), ((0, 0), (1, 0))))
    with pytest.raises(ValueError, match="goes back"):
        Pattern(1, 2, (((1, 0),), ((0, 0),)))
