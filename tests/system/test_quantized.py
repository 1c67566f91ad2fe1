"""Systems whose weights are quantised: made, saved, loaded, streamed, and what is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import TINY, tiny_system

from cadenza.apps.api import load
from cadenza.core.errors import CheckpointError, RequestError
from cadenza.nn.weight_quantization import check_device_supports
from cadenza.system.spec import SystemSpec
from cadenza.system.system import System

KINDS = ["int8", "int4"]
ITEMS = [{"prompt": "slow piano in A minor", "tempo": 80}, {"prompt": "drums"}]


def wide(seed: int = 0) -> System:
    """A tiny system of a width that int4 can have."""
    torch.manual_seed(seed)
    system = System(SystemSpec.parse({**TINY, "generator": {**TINY["generator"], "width": 32}}))
    for parameter in system.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return system.eval().requires_grad_(False)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_saved_is_loaded_and_generates_the_same(tmp_path: Path, kind: str) -> None:
    system = wide().quantize(kind)
    assert system.quantization == kind
    system.save(tmp_path / "it", dtype=torch.bfloat16)  # which numbers and their scales do not become
    stored = load_file(tmp_path / "it" / "model.safetensors")
    qkv = "generator.transformer.blocks.0.attention.qkv"
    assert stored[f"{qkv}.packed"].dtype == {"int8": torch.int8, "int4": torch.uint8}[kind]
    assert stored[f"{qkv}.scale"].dtype == {"int8": torch.float32, "int4": torch.bfloat16}[kind]
    assert stored["generator.embedding.weight"].dtype == torch.bfloat16
    system.to(torch.bfloat16)
    again = load(tmp_path / "it", dtype="bfloat16")
    assert again.quantization == kind
    codes = [each.generate_frames(ITEMS, seconds=0.3, seed=3).data for each in (system, again)]
    assert torch.equal(*codes)


@pytest.mark.parametrize("kind", KINDS)
def test_an_item_is_the_same_alone_in_a_batch_and_streamed(kind: str) -> None:
    system = wide().quantize(kind)
    both = system.generate_frames(ITEMS, seconds=[0.4, 0.3], seed=[1, 2])
    for i, item in enumerate(ITEMS):
        alone = system.generate_frames(item, seconds=[0.4, 0.3][i], seed=i + 1)
        assert torch.equal(alone.data[0], both.data[i, :, : int(both.lengths[i])])
    whole = system.generate(ITEMS, seconds=0.4, seed=1)
    chunks = list(system.stream(ITEMS, seconds=0.4, seed=1))
    streamed = torch.cat([chunk.wave[0, :, : int(chunk.lengths[0])] for chunk in chunks], -1)
    torch.testing.assert_close(streamed, whole.wave[0], atol=1e-5, rtol=1e-4)


def test_windows_and_continuation_go_on_from_what_is_known() -> None:
    """In windows the beginning is known and fed at once; what follows is what follows it in a clip of one window."""
    system = wide().quantize("int8")
    start = system.generate_frames(ITEMS[0], seconds=0.3, seed=5)
    more = system.generate_frames(ITEMS[0], seconds=0.5, seed=5, continue_from=start)
    whole = system.generate_frames(ITEMS[0], seconds=0.5, seed=5)
    assert torch.equal(more.data, whole.data)


def test_loading_can_quantise(tmp_path: Path) -> None:
    system = wide()
    system.save(tmp_path / "it")
    made, loaded = system.quantize("int8").state_dict(), load(tmp_path / "it", quantize="int8").state_dict()
    assert made.keys() == loaded.keys() and all(torch.equal(made[key], loaded[key]) for key in made)


def test_bad_input_is_named(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"quantisation 'int2' is not known. Choose from: int8, int4"):
        tiny_system().quantize("int2")
    narrow = tiny_system()
    with pytest.raises(
        RequestError, match=r"attention.qkv: int4 needs layers whose number of inputs is a multiple of 32 or 64.*has 16"
    ):
        narrow.quantize("int4")
    assert narrow.quantization is None  # nothing was changed
    with pytest.raises(RequestError, match=r"quantised to int8; for int4, load the original model"):
        wide().quantize("int8").quantize("int4")
    with pytest.raises(RequestError, match=r"int8 weights run on cpu and cuda, not on meta"):
        wide().to("meta").quantize("int8")
    with pytest.raises(RequestError, match=r"int4 weights run on cpu and cuda, not on mps; use half precision there"):
        check_device_supports("int4", torch.device("mps"))
    codec = System(SystemSpec.parse({"codec": TINY["codec"]}))
    with pytest.raises(RequestError, match="a codec alone"):
        codec.quantize("int8")
    wide().quantize("int8").save(tmp_path / "it")
    text = (tmp_path / "it" / "system.json").read_text().replace('"depth": 2', '"depth": 1')
    (tmp_path / "it" / "system.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"'generator.transformer.blocks.1.*no linear layer"):
        load(tmp_path / "it")
