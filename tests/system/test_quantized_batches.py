"""Quantised weights: an item's tokens do not depend on the batch, its order, padding, threads, streaming or windows."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from tiny import TINY
from torch import Tensor

from cadenza.apps.api import load
from cadenza.core.types import Codes
from cadenza.system.spec import SystemSpec
from cadenza.system.system import System

KINDS = ["int8", "int4"]
ITEMS: list[dict[str, Any]] = [
    {"prompt": "slow piano in A minor"},
    {"prompt": "drums and a fast bass", "tempo": 140, "chords": "C G Am F"},
    {"prompt": "a violin that plays a long and lonely tune over soft pads in a cathedral while rain falls outside"},
    {"tempo": 90},
]
SECONDS = [0.26, 0.2, 0.32, 0.24]
NEGATIVE = [{"prompt": "noise"}, {"prompt": "a hum, and a long list of other sounds that are not wanted"}, {"tempo": 60}, {}]
ASKED: dict[str, dict[str, Any]] = {
    "drawn": {"sampling": {"temperature": 1.0}},
    "negative": {"sampling": {"temperature": 1.0}, "guidance": {"scale": 3.0, "negative": NEGATIVE}, "two_step_cfg": True},
    "greedy": {"sampling": {"temperature": 0.0}, "guidance": {"scale": 3.0, "negative": NEGATIVE}},
    "greedy, without guidance": {"sampling": {"temperature": 0.0}, "guidance": 1.0},
}


@pytest.fixture(autouse=True)
def _threads() -> Iterator[None]:
    """Two threads of torch, for which it may choose other sums than for one; put back in the end."""
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module", params=KINDS)
def starter(request: pytest.FixtureRequest) -> System:
    return load("starter", quantize=request.param)


def tokens(system: System, order: list[int], seconds: list[float], items: list[dict[str, Any]], **asked: Any) -> list[Tensor]:
    """The codes of some items, each with the seed of its number."""
    guidance = asked.get("guidance")
    if isinstance(guidance, dict):
        asked["guidance"] = {**guidance, "negative": [guidance["negative"][i] for i in order]}
    frames = system.generate_frames([items[i] for i in order], seconds=[seconds[i] for i in order], seed=order, **asked)
    return [clip.data[0] for clip in frames]


@pytest.mark.parametrize("asked", ASKED.values(), ids=ASKED)
def test_alone_in_any_batch_and_with_any_number_of_threads(starter: System, asked: dict[str, Any]) -> None:
    alone = [tokens(starter, [i], SECONDS, ITEMS, **asked)[0] for i in range(len(ITEMS))]
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [0, 0], [1, 1, 1, 0, 1]):
        for i, got in zip(order, tokens(starter, order, SECONDS, ITEMS, **asked), strict=True):
            assert torch.equal(got, alone[i]), (order, i)
    for threads in (1, 3):
        torch.set_num_threads(threads)
        for i, wanted in enumerate(alone):
            assert torch.equal(tokens(starter, [i], SECONDS, ITEMS, **asked)[0], wanted), (threads, i)


def test_audio_is_the_same_alone_in_a_batch_and_streamed(starter: System) -> None:
    """But for the codec's floats, which are summed in batches; other tokens give other audio altogether."""
    whole = list(starter.generate(ITEMS, seconds=SECONDS, seed=1))
    chunks = list(starter.stream(ITEMS, seconds=SECONDS, seed=1))
    for i, item in enumerate(ITEMS):
        alone = starter.generate(item, seconds=SECONDS[i], seed=1).wave
        own = torch.cat([chunk.wave[0] for chunk in starter.stream(item, seconds=SECONDS[i], seed=1)], -1)
        beside = torch.cat([chunk.wave[i, :, : int(chunk.lengths[i])] for chunk in chunks], -1)
        for got in (own, beside, whole[i].wave[0]):
            torch.testing.assert_close(got, alone[0], atol=1e-5, rtol=1e-4)


TINY_ITEMS: list[dict[str, Any]] = [
    {"prompt": "slow piano", "style": "jazz", "tempo": 90, "key": "A minor"},
    {"prompt": [(0, 0.03, "drums"), (0.03, None, "flute and a longer text")], "style": "a long text of style", "beats": 120},
    {
        "key": [(0.01, 0.03, "A minor")],
        "tempo": [(0, 0.02, 60), (0.02, 0.04, 120)],
        "beats": [(0, 0.02, 90), (0.02, None, 200)],
    },
    {"style": "metal"},
]
TINY_SECONDS = [0.03, 0.09, 0.075, 0.05]


def tiny(kind: str | None, *, max_frames: int) -> System:
    """A system with every slot, prepended and attended texts, timelines, and an LSTM in its codec."""
    text = TINY["conditioners"]["prompt"]
    beats = {"type": "beats", "output_dim": 32, "frame_rate": 500, "max_frames": 15, "hidden": 8}
    number = {"type": "number", "output_dim": 32, "min": 40, "max": 200}
    key = {"type": "category", "output_dim": 32, "values": ["C major", "A minor"]}
    tree = {
        **TINY,
        "conditioners": {
            "prompt": {**text, "output_dim": 32},
            "style": {**text, "output_dim": 64},
            "tempo": number,
            "key": key,
            "beats": beats,
            "speed": {**number, "fallback": "tempo"},
        },
        "fusion": {
            "cross": ["prompt", "tempo"],
            "prepend": ["style"],
            "add": [{"id": "beats", "resize": "linear", "align": "steps"}, "key"],
            "concat": [{"id": "beats", "resize": "linear"}],
            "ignore": ["speed"],
        },
        "generator": {**TINY["generator"], "width": 32, "max_frames": max_frames},
    }
    torch.manual_seed(0)
    system = System(SystemSpec.parse(tree))
    for parameter in system.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    system = system.eval().requires_grad_(False)
    return system if kind is None else system.quantize(kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("max_frames", [20, 100], ids=["windows", "one window"])
def test_every_slot_alone_and_in_any_batch(kind: str, max_frames: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prefixes and conditions of other lengths are padded, shorter clips too; the kernel's threads share the work."""
    monkeypatch.setattr("cadenza.nn.kernels.cpu_decoder.MIN_BYTES", 0)
    system = tiny(kind, max_frames=max_frames)
    alone = [tokens(system, [i], TINY_SECONDS, TINY_ITEMS)[0] for i in range(len(TINY_ITEMS))]
    assert not torch.equal(alone[0], alone[3][:, : alone[0].shape[1]])
    for order in ([0, 1, 2, 3], [3, 2, 1, 0], [2, 2], [3, 0, 0, 0, 0]):
        for i, got in zip(order, tokens(system, order, TINY_SECONDS, TINY_ITEMS), strict=True):
            assert torch.equal(got, alone[i]), (order, i)
    torch.set_num_threads(1)
    for i, wanted in enumerate(alone):
        assert torch.equal(tokens(system, [i], TINY_SECONDS, TINY_ITEMS)[0], wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_known_is_read_alike_at_once_and_step_by_step(kind: str) -> None:
    """Known frames are fed at once as far as every clip of a batch knows them, the others one by one."""
    system = tiny(kind, max_frames=100)
    known = [system.generate_frames(item, seconds=0.04, seed=9) for item in TINY_ITEMS]
    beginnings = [known[0], None, Codes(known[2].data[..., :7], torch.tensor([7])), known[3]]
    alone = [
        system.generate_frames(TINY_ITEMS[i], seconds=0.09, seed=i, continue_from=one).data[0]
        for i, one in enumerate(beginnings)
    ]
    together = system.generate_frames(TINY_ITEMS, seconds=0.09, seed=[0, 1, 2, 3], continue_from=beginnings)
    for i, clip in enumerate(together):
        assert torch.equal(clip.data[0], alone[i]), i


@pytest.mark.filterwarnings("ignore:int8 weights are dequantised to float32")
@pytest.mark.parametrize("kind", [None, "int8"])
def test_float_weights_and_those_written_out(kind: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the kernel, what is quantised is computed with as float32."""
    monkeypatch.setattr("cadenza.nn.weight_quantization.cpu_kernel_unavailable_reason", lambda: "numba is not installed")
    torch.set_num_threads(1)
    system = tiny(kind, max_frames=100)
    for i, wanted in enumerate(tokens(system, [0, 1, 2, 3], TINY_SECONDS, TINY_ITEMS)):
        assert torch.equal(tokens(system, [i], TINY_SECONDS, TINY_ITEMS)[0], wanted)
