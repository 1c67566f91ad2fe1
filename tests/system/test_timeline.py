"""Values that change over time: weights per frame, slots, batches, windows, and their effect on a trained model."""

from typing import Any

import pytest
import torch
from tiny import TINY
from torch import Tensor

from cadenza.core.errors import RequestError
from cadenza.core.types import Codes, Condition
from cadenza.data.loader import collate
from cadenza.system.fusion import fuse
from cadenza.system.request import Request
from cadenza.system.spec import FusionSpec, SystemSpec
from cadenza.system.system import System
from cadenza.training.tasks.base import StepContext
from cadenza.training.tasks.generator import GeneratorTask, GeneratorTaskSpec

RATE = 500  # frames a second of the tiny codec
BEATS = {"type": "beats", "output_dim": 16, "frame_rate": RATE, "max_frames": 20, "hidden": 8}


def build(fusion: dict[str, Any], **conditioners: Any) -> System:
    torch.manual_seed(0)
    tree = {**TINY, "conditioners": {**TINY["conditioners"], **conditioners}, "fusion": fusion}
    tree["generator"] = {**TINY["generator"], "max_frames": 20}
    system = System(SystemSpec.parse(tree))
    for parameter in system.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return system.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def system() -> System:
    beats = {"id": "beats", "resize": "cut"}
    return build({"cross": ["prompt", "tempo"], "add": ["key", beats], "concat": ["key"]}, beats=BEATS)


def condition(*values: float, spans: list[tuple[float, ...]], null: float | None = None, items: int = 1) -> Condition:
    """Vectors of width 1 that hold in spans, the same for each item."""
    x = torch.tensor(values)[None, :, None].repeat(items, 1, 1)
    mask = torch.ones(x.shape[:2], dtype=torch.bool)
    given = None if null is None else torch.tensor([[null]])
    return Condition(x, mask, mask.any(1), given, torch.tensor([spans] * items, dtype=torch.float32))


def added(of: Condition, *, frames: int, rate: float = 1.0, keep: Tensor | None = None) -> list[float]:
    kept = {} if keep is None else {("add", "a"): keep}
    fused = fuse({"a": of}, FusionSpec.parse({"add": ["a"]}), frames=frames, rate=rate, keep=kept)
    assert fused.add is not None
    return fused.add[0, :, 0].tolist()


def test_weights_are_those_of_the_middle_of_each_frame() -> None:
    inf = float("inf")
    line = condition(10.0, 20.0, spans=[(0, 2, 0, 2), (2, inf, 2, 0)], null=100.0)
    assert added(line, frames=4) == pytest.approx([10, 12.5, 17.5, 20])
    assert added(condition(10.0, spans=[(1, 3, 0, 0)], null=100.0), frames=4) == [100, 10, 10, 100]
    assert added(condition(10.0, spans=[(1, 3, 0, 0)]), frames=4) == [0, 10, 10, 0]
    assert added(condition(10.0, 20.0, spans=[(0, 3, 0, 0), (1, 4, 0, 0)]), frames=4) == [10, 15, 15, 20]  # both hold
    assert added(condition(10.0, spans=[(0, 1, 0, 0)], null=7.0), frames=4, rate=4.0) == [10] * 4
    assert added(line, frames=2, keep=torch.tensor([False])) == [100, 100]


def test_a_bias_is_the_logarithm_of_the_weight() -> None:
    inf = float("inf")
    line = condition(1.0, 2.0, spans=[(0, 2, 0, 2), (2, inf, 2, 0)], null=9.0)
    fused = fuse({"a": line}, FusionSpec.parse({"cross": ["a"]}), frames=4, rate=1.0)
    assert fused.cross is not None and fused.cross.bias is not None
    assert fused.cross.x[0, :, 0].tolist() == [1, 2, 9]
    want = torch.tensor([[1, 0.75, 0.25, 0], [0, 0.25, 0.75, 1], [0, 0, 0, 0]])
    torch.testing.assert_close(fused.cross.bias[0].exp(), want)


def test_what_holds_throughout_is_a_plain_value(system: System) -> None:
    plain = {"prompt": "drums", "tempo": 90, "key": "A minor", "beats": 120}
    changing = {id: [(0, None, value)] for id, value in plain.items()}
    frames = system.generate_frames([plain, changing], seconds=0.05, seed=3).data
    assert torch.equal(frames[0], frames[1])
    assert torch.equal(system.generate_frames(plain, seconds=0.05, seed=3).data[0], frames[0])


ITEMS: list[dict[str, Any]] = [
    {"prompt": {"timeline": [(0, 0.03, "slow piano"), (0.03, None, "drums and a longer text")], "fade": 0.02}, "tempo": 90},
    {"prompt": "flute", "key": [(0.01, 0.03, "A minor")], "tempo": [(0, 0.02, 60), (0.02, 0.04, 120)]},
    {"key": "C major", "beats": [(0, 0.015, 80), (0.015, 0.03, None), (0.03, None, 200)]},
    {},
]


def test_an_item_is_the_same_alone_and_in_a_batch(system: System) -> None:
    """Of text, category, number and beats, over several windows too."""
    seconds = [0.05, 0.06, 0.03, 0.04]
    together = list(system.generate_frames(ITEMS, seconds=seconds, seed=[1, 2, 3, 4]))
    for i, item in enumerate(ITEMS[:3]):
        alone = system.generate_frames(item, seconds=seconds[i], seed=i + 1).data
        assert torch.equal(alone[0], together[i].data[0]), item


def test_a_change_is_heard_from_its_frame_on(system: System) -> None:
    """Also where that lies in a later window; before it nothing differs."""
    pairs = {"prompt": ("slow piano", "drums"), "tempo": (60, 180), "key": ("A minor", "C major"), "beats": (60, 200)}
    items: list[dict[str, Any]] = []
    for id, (one, other) in pairs.items():
        items += [{id: one}, *({id: [(0, change, one), (change, None, other)]} for change in (0.02, 0.056))]
    frames = system.generate_frames(items, seconds=0.07, seed=5, guidance=1).data.unflatten(0, (4, 3))
    for i, id in enumerate(pairs):
        for changed, at in ((frames[i, 1], 10), (frames[i, 2], 28)):
            before = at - 1  # the last codebook of that frame is written with the first of the next
            assert torch.equal(changed[:, :before], frames[i, 0, :, :before]), (id, at)
            assert not torch.equal(changed[:, at:], frames[i, 0, :, at:]), (id, at)


def test_a_stream_changes_too(system: System) -> None:
    whole = system.generate(ITEMS[0], seconds=0.05, seed=1)
    parts = [chunk.wave for chunk in system.stream(ITEMS[0], seconds=0.05, seed=1)]
    torch.testing.assert_close(torch.cat(parts, -1), whole.wave, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("slot", ["prepend", "global"])
def test_a_slot_of_one_value_refuses(slot: str) -> None:
    system = build({"cross": ["prompt", "tempo"], slot: ["key"]})
    with pytest.raises(RequestError, match=f"fusion.{slot}: 'key' changes over time.*give one value, or put it in cross, add"):
        system.generate_frames({"key": [(0, 1, "A minor")]}, seconds=0.1)


def test_a_mistake_in_a_span_names_the_id(system: System) -> None:
    with pytest.raises(RequestError, match="key: no value called 'A minr'. Did you mean 'A minor'"):
        system.generate_frames({"key": [(0, 1, "A minor"), (1, 2, "A minr")]}, seconds=0.1)
    with pytest.raises(RequestError, match="tempo: .*timeline"):
        system.generate_frames({"tempo": [(1, 0.5, 90)]}, seconds=0.1)


def test_texts_that_change_are_read_one_by_one(system: System) -> None:
    read = system.extract_prompt_values({"prompt": [(0, 1, "at 80 bpm"), (1, 2, "no tempo"), (2, None, "120 bpm")]})
    assert [span.value for span in read["tempo"].spans] == [80.0, None, 120.0]
    assert "tempo" not in system.extract_prompt_values({"prompt": [(0, 1, "none")]})


def test_training_counts_from_the_start_of_the_piece(system: System) -> None:
    """A crop gets the values of its time; a vocabulary is learned from every text."""
    ids = torch.zeros(1, 2, 20, dtype=torch.long)

    def keys(start: float) -> list[float]:
        item = {"id": "x", "seconds_start": start, "key": [(0, 1.05, "A minor"), (1.05, 2, "C major")], "codes": Codes(ids)}
        batch = collate([item], system.conditioners.prepare)
        fused = system.fuse(system.encode_conditions(batch.prepared), frames=20)
        assert fused.concat is not None
        return fused.concat[0, :, 0].tolist()

    minor, major = keys(0.0)[0], keys(1.2)[0]
    assert keys(0.0) == [minor] * 20 and keys(1.2) == [major] * 20
    assert keys(1.03) == [minor] * 10 + [major] * 10
    seen: list[Any] = []
    system.conditioners["prompt"].prepare_training = seen.extend  # type: ignore[method-assign, assignment]
    system.conditioners.prepare_training([{"prompt": [(0, 1, "a"), (1, 2, None)]}, {"prompt": "b"}])
    del system.conditioners["prompt"].prepare_training
    assert seen == ["a", None, "b"]


@pytest.mark.parametrize("slot", ["cross", "add"])
def test_swapping_two_spans_swaps_what_is_heard(slot: str) -> None:
    """A model taught that one key has low codes and the other high ones, by items that change once somewhere."""
    torch.manual_seed(0)
    tree: dict[str, Any] = {
        **TINY,
        "prompt_patterns": [],
        "conditioners": {"key": TINY["conditioners"]["key"]},
        "fusion": {slot: ["key"]},
    }
    system = System(SystemSpec.parse({**tree, "generator": {**TINY["generator"], "max_frames": 40, "width": 16, "depth": 1}}))
    task = GeneratorTask(GeneratorTaskSpec(cfg_dropout=0.1, attribute_dropout=0.0), system)
    parameters = [p for part in task.optimized_modules().values() for p in part.parameters()]
    optimiser, rng = torch.optim.Adam(parameters, 1e-2), torch.Generator().manual_seed(0)
    names, frames = ["C major", "A minor"], 24
    for _ in range(80):
        change, first = torch.randint(4, 20, (8,), generator=rng), torch.randint(2, (8,), generator=rng)
        high = (torch.arange(frames) >= change[:, None]) != first[:, None].bool()
        ids = torch.randint(8, (8, 2, frames), generator=rng) + 8 * high[:, None]
        rows = [
            {"id": str(i), "codes": Codes(ids[i : i + 1]), "key": line(names, int(change[i]) / RATE, int(first[i]))}
            for i in range(8)
        ]
        (_, losses), *_ = task.step(collate(rows, system.conditioners.prepare), StepContext(0, 1, rng))
        optimiser.zero_grad()
        losses["loss"].backward()
        optimiser.step()
    system.eval()
    items = [{"key": line(names, 0.024, first)} for first in (0, 1)] * 4
    made = system.generate_frames(Request.from_input(items, seconds=frames / RATE, seed=list(range(8)), guidance=1.0)).data
    high = (made >= 8).float().mean(1)
    for i, (before, after) in enumerate(zip(high[:, :12].mean(1).tolist(), high[:, 12:].mean(1).tolist(), strict=True)):
        want = (0.0, 1.0) if i % 2 == 0 else (1.0, 0.0)
        assert (before, after) == pytest.approx(want, abs=0.2), (i, before, after)


def line(names: list[str], change: float, first: int) -> list[tuple[float, float | None, str]]:
    return [(0, change, names[first]), (change, None, names[1 - first])]
