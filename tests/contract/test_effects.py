"""Every conditioner, in every slot that takes it, can decide what is written; without it nothing of that is known.

The clips of a batch are the same but for their last frame, whose code is the number of the clip's value in `example()`.
So nothing but the condition says what comes last.
"""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cadenza.conditioners.base import ConditionerSet, ConditionerSpec, FramewiseConditionerSpec
from cadenza.core.types import Codes, FrameFormat, FusedConditions, GuidanceBranch, Slot
from cadenza.generators.base import GenerationInputs
from cadenza.generators.codec_lm import CodecLM, CodecLMSpec
from cadenza.samplers.guidance import nonzero_branches
from cadenza.samplers.tokens import TokenSampling
from cadenza.system.fusion import branch_keep_mask, fuse
from cadenza.system.spec import SLOT_KINDS, FusionSpec

LARGE = {"width": 128, "depth": 4, "heads": 4}  # 0.8 to 1.2 million weights
SMALL = {"width": 32, "depth": 1, "heads": 2}


def slots_of(name: str) -> list[Slot]:
    gives = ConditionerSpec.lookup(name).example()[0].output_kind
    return [slot for slot, takes in SLOT_KINDS.items() if gives in takes and slot in CodecLMSpec.slots]


CASES = [(name, slot) for name in ConditionerSpec.registered_names() for slot in slots_of(name)]


@dataclass
class Task:
    """One conditioner, one slot, and a language model that gets no other input."""

    parts: ConditionerSet
    fusion: FusionSpec
    lm: CodecLM
    items: list[dict[str, Any]]
    frames: int

    @classmethod
    def of(cls, spec: ConditionerSpec, values: list[Any], slot: Slot, sizes: dict[str, int]) -> "Task":
        torch.manual_seed(0)
        route = {"id": "it", "resize": "linear"} if slot in ("add", "concat") else {"id": "it"}
        frames = spec.max_frames if isinstance(spec, FramewiseConditionerSpec) else 4
        parts, items = ConditionerSet({"it": spec.build()}), [{"it": value} for value in values]
        parts.prepare_training(items)
        widths: dict[Slot, int] = {slot: spec.output_dim}
        lm = CodecLMSpec(**sizes, end_of_sequence=False, max_frames=frames).build(
            FrameFormat("codes", 10.0, 1, len(values) + 1), widths
        )
        return cls(parts, FusionSpec.parse({slot: [route]}), lm, items, frames)

    def clips(self, times: int = 1) -> Codes:
        """The number of the value last, the number that no value has before."""
        n = len(self.items)
        ids = torch.full((times * n, 1, self.frames), n)
        ids[:, 0, -1] = torch.arange(n).repeat(times)
        return Codes(ids)

    def fused(self, items: list[dict[str, Any]], *, keep: bool = True) -> FusedConditions:
        conditions = self.parts(self.parts.encode(self.parts.prepare(items, frames=self.frames)))
        dropped = None if keep else branch_keep_mask(self.fusion, [()] * len(items), "cpu")
        return fuse(conditions, self.fusion, frames=self.frames, rate=10.0, keep=dropped)

    def train(self, steps: int) -> None:
        """Half of each batch with its conditions, half without."""
        rng = torch.Generator().manual_seed(0)
        both = nn.ModuleList([self.parts, self.lm]).train()
        trained = [x for x in both.parameters() if x.requires_grad]
        optimiser = torch.optim.AdamW(trained, lr=2e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 2e-3, total_steps=steps)
        prepared = self.parts.prepare(self.items * 2, frames=self.frames)
        first = torch.arange(2 * len(self.items)) < len(self.items)
        keep = dict.fromkeys(self.fusion.slot_ids(), first)
        for _ in range(steps):
            conditions = self.parts(self.parts.encode(self.parts.augment(prepared, rng)))
            fused = fuse(conditions, self.fusion, frames=self.frames, rate=10.0, keep=keep)
            loss = self.lm.losses(self.clips(2), fused, rng)["loss"]
            optimiser.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(trained, 1.0)
            optimiser.step()
            schedule.step()
        both.eval()

    @torch.no_grad()
    def last(self, branches: list[GuidanceBranch], temperature: float = 0.0) -> Tensor:
        """The code that is written last, for each item."""
        n = len(self.items)
        plan = GenerationInputs(torch.full((n,), self.frames), [7] * n, TokenSampling(temperature=temperature, top_k=0))
        return self.lm.generate(branches, plan).data[:, 0, -1]

    @torch.no_grad()
    def loss(self, fused: FusedConditions) -> Tensor:
        return self.lm.losses(self.clips(), fused, torch.Generator())["loss"]


@torch.no_grad()
def decides(task: Task) -> None:
    n = len(task.items)
    chance, numbers = 1 / n, torch.arange(n)
    given, dropped = task.fused(task.items), task.fused(task.items, keep=False)
    absent = task.fused([{} for _ in task.items])
    told = task.last([GuidanceBranch(1.0, given)])
    assert (told == numbers).float().mean() >= 0.9, f"with their conditions, {n} values give {told.tolist()}"
    swapped = task.last([GuidanceBranch(1.0, task.fused(task.items[::-1]))])
    assert (swapped == numbers.flip(0)).float().mean() >= 0.9, "the conditions of other clips do not give what those are"
    for fused in (dropped, absent):
        untold = task.last([GuidanceBranch(1.0, fused)])
        assert (untold == numbers).float().mean() <= chance + 0.1, f"without, {n} values give {untold.tolist()}"
    torch.testing.assert_close(task.loss(dropped), task.loss(absent))
    for temperature in (0.0, 1.0):
        weightless = task.last(nonzero_branches([GuidanceBranch(0.0, given, 1.0), GuidanceBranch(1.0, dropped)]), temperature)
        assert torch.equal(weightless, task.last([GuidanceBranch(1.0, absent)], temperature)), "weight 0 is not absence"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "slot"), CASES, ids=[f"{name}-{slot}" for name, slot in CASES])
def test_every_condition_in_every_slot_can_decide(name: str, slot: Slot) -> None:
    task = Task.of(*ConditionerSpec.lookup(name).example(), slot, LARGE)
    assert 7e5 < sum(x.numel() for x in task.lm.parameters()) < 1.3e6
    task.train(300)
    decides(task)


@pytest.mark.parametrize(("name", "slot"), [("category", "cross"), ("number", "add")])
def test_a_condition_decides(name: str, slot: Slot) -> None:
    """A small one of the above, which always runs."""
    task = Task.of(*ConditionerSpec.lookup(name).example(), slot, SMALL)
    task.train(100)
    decides(task)


def test_what_says_nothing_is_noticed() -> None:
    """The test itself: a condition that is in no slot cannot decide."""
    task = Task.of(*ConditionerSpec.lookup("category").example(), "cross", SMALL)
    task.parts["it"].table.weight.requires_grad_(False).fill_(0.0)  # type: ignore[union-attr]
    task.train(20)
    with pytest.raises(AssertionError, match="with their conditions"):
        decides(task)
