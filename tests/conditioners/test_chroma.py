"""Chroma as a condition: length, silence, absence, stems, slots."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from separators import demucs_folder
from torch import Tensor

from cadenza.conditioners.base import ConditionerSet
from cadenza.conditioners.chroma import ChromaConditioner, ChromaSpec
from cadenza.core.errors import CheckpointError, RequestError
from cadenza.dsp.audio import Audio
from cadenza.nn.demucs import Separator
from cadenza.system.fusion import fuse
from cadenza.system.spec import FusionSpec

RATE, HOP, WINDOW = 8000, 256, 1024


def spec(**fields: Any) -> ChromaSpec:
    return ChromaSpec.parse({"output_dim": 12, "sample_rate": RATE, "window": WINDOW, "hop": HOP, **fields})


def seen(**fields: Any) -> ChromaConditioner:
    """A part whose vectors are the chroma itself."""
    part = spec(**fields).build().eval()
    with torch.no_grad():
        part.out.weight.copy_(torch.eye(12))
        part.out.bias.zero_()
    return part


def note(midi: int, samples: int, rate: int = RATE) -> Audio:
    t = torch.arange(samples) / rate
    return Audio(torch.sin(2 * math.pi * 440 * 2 ** ((midi - 69) / 12) * t)[None, None], rate)


def classes(part: ChromaConditioner, values: list[Any]) -> tuple[Tensor, Tensor]:
    out = part(part.encode(part.prepare(values)))
    return out.embeddings.argmax(-1), out.mask


def test_masks_are_of_true_lengths() -> None:
    """Two lengths in one batch, one at another rate and in stereo; nothing of the longer is in the shorter."""
    short = Audio(note(62, 8000, 2 * RATE).wave.expand(-1, 2, -1), 2 * RATE)
    found, mask = classes(seen(), [note(69, 10000), short])
    assert mask.sum(1).tolist() == [1 + 10000 // HOP, 1 + 4000 // HOP] and mask.shape[1] == 40
    assert (found[0, 2:-2] == 9).all() and (found[1, 2:14] == 2).all()
    out = seen()(seen().encode(seen().prepare([note(69, 10000), short])))
    assert not out.embeddings[1, 16:].any()


def test_cut_or_repeated_to_a_number_of_frames() -> None:
    part = seen(max_frames=40)
    own, mask = classes(seen(), [note(69, 4000)])
    found, mask = classes(part, [note(69, 4000), note(62, 30000)])
    assert mask.all() and found.shape == (2, 40)
    assert torch.equal(found[0], own[0].repeat(3)[:40])
    long, _ = classes(seen(), [note(62, 30000)])
    assert torch.equal(found[1], long[0, :40])
    assert part.with_max_frames(500) is part
    cut, _ = classes(seen(seconds=0.5), [note(62, 30000)])
    assert cut.shape[1] == 1 + 4000 // HOP


def test_short_sounds_are_masked_if_so_asked_and_longer_clips_have_room() -> None:
    part = seen(max_frames=40, pad_mode="mask")
    _, mask = classes(part, [note(69, 4000), note(62, 30000)])
    assert mask.sum(1).tolist() == [16, 40] and mask.shape == (2, 40)
    _, mask = classes(part.with_max_frames(60), [note(69, 4000)])
    assert mask.shape == (1, 60) and mask.sum() == 16 and part.spec.max_frames == 40


def test_sounds_as_long_as_the_longest_of_a_batch() -> None:
    """As released models were asked: the rest of a shorter sound is silence, which is the first pitch class."""
    part = seen(max_frames=50, pad_to="longest")
    found, mask = classes(part, [note(69, 10000), note(62, 4000)])
    padded, _ = classes(seen(), [Audio(torch.nn.functional.pad(note(62, 4000).wave, (0, 6000)), RATE)])
    assert mask.all() and torch.equal(found[1], padded[0].repeat(2)[:50]) and (padded[0, -10:] == 0).all()


@pytest.mark.parametrize("one_hot", [True, False])
def test_absence_is_a_silent_recording(one_hot: bool) -> None:
    part = spec(max_frames=30, one_hot=one_hot).build().eval()
    silent = Audio(torch.zeros(1, 1, 9000), RATE)
    fusion = FusionSpec.parse({"prepend": ["it"]})
    parts = ConditionerSet({"it": part})
    both = fuse(parts(parts.encode(parts.prepare([{"it": silent}, {"it": None}, {}]))), fusion, frames=4).prepend
    assert both is not None and both.x.shape == (3, 30, 12) and both.mask.all()
    for row in (1, 2):
        torch.testing.assert_close(both.x[row], both.x[0])
    alone = fuse(parts(parts.encode(parts.prepare([{}]))), fusion, frames=4).prepend
    assert alone is not None and torch.equal(alone.x[0], both.x[1])
    both.x[1:].sum().backward()
    assert part.out.bias.grad is not None and part.out.bias.grad.all()
    zeros = ConditionerSet({"it": spec(null_embedding="zeros").build()})
    none = fuse(zeros(zeros.encode(zeros.prepare([{}]))), fusion, frames=4).prepend
    assert none is not None and not none.mask.any()


@pytest.mark.parametrize("slot", ["cross", "prepend", "add"])
def test_slots(slot: str) -> None:
    route = {"id": "it", "resize": "linear"} if slot == "add" else "it"
    parts = ConditionerSet({"it": seen(max_frames=20)})
    items = [{"it": note(69, 4000)}, {}]
    fused = fuse(parts(parts.encode(parts.prepare(items))), FusionSpec.parse({slot: [route]}), frames=50)
    x = fused.add if slot == "add" else getattr(fused, slot).x
    assert x.shape == (2, 50 if slot == "add" else 20, 12)
    assert (x[0].argmax(-1) == 9).float().mean() > 0.8 and (x[1].argmax(-1) == 0).all()


def test_stems_of_an_item_are_heard_instead_of_its_mix() -> None:
    part = seen(stems="vocals+other")
    assert part.spec.stems == ("vocals", "other") == ChromaSpec.parse(json.loads(part.spec.to_json())).stems
    stems = {"vocals": note(69, 8000), "drums": note(60, 8000), "other": Audio(torch.zeros(1, 1, 6000), RATE)}
    parts = ConditionerSet({"it": part})
    prepared = parts.prepare([{"it": note(64, 8000), "stems": stems}, {"it": stems}, {"stems": stems}])
    assert prepared["it"].present.tolist() == [True, True, False]
    out = parts(parts.encode(prepared))["it"]
    assert (out.embeddings[:2, 2:-2].argmax(-1) == 9).all()
    mix = ConditionerSet({"it": seen()})
    out = mix(mix.encode(mix.prepare([{"it": note(64, 8000), "stems": stems}])))["it"]
    assert (out.embeddings[0, 2:-2].argmax(-1) == 4).all()
    assert "stems" in parts.input_ids()
    with pytest.raises(RequestError, match="it: the stems are drums; needed is one of vocals, other"):
        parts.prepare([{"it": {"drums": note(60, 800)}}])


def test_a_clip_of_a_data_set_is_heard_itself() -> None:
    parts = ConditionerSet({"it": seen(fallback="audio")})
    padded = Audio(torch.nn.functional.pad(note(69, 4000).wave, (0, 4000)), RATE, torch.tensor([4000]))
    out = parts(parts.encode(parts.prepare([{"audio": padded, "id": "a"}, {"audio": padded, "it": note(62, 3000)}])))["it"]
    assert out.mask.sum(1).tolist() == [16, 12]
    assert (out.embeddings[0, 2:13].argmax(-1) == 9).all() and (out.embeddings[1, 2:9].argmax(-1) == 2).all()


@pytest.mark.filterwarnings("ignore")
def test_demucs_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its net, tiny and untrained, through demucs itself; the stems are then chroma as if they had been given."""
    from demucs.apply import BagOfModels, apply_model
    from demucs.hf import load_safetensors_model

    demucs_folder(tmp_path / "d")
    mix = Audio(torch.randn(1, 1, 9000, generator=torch.Generator().manual_seed(0)), RATE)
    net = BagOfModels([load_safetensors_model(tmp_path / "d/0a1b2c3d.safetensors")]).eval()
    with torch.no_grad():
        parts = apply_model(net, mix.wave.expand(-1, 2, -1), shifts=0)[0].mean(1)
    found = Separator(str(tmp_path / "d")).separate(mix.wave[0], RATE)
    for name, want in zip(net.sources, parts, strict=True):
        torch.testing.assert_close(found[name][0], want, atol=1e-5, rtol=1e-4)
    part = seen(stems="vocals+other", separator=str(tmp_path / "d"))
    given = {name: Audio(found[name][None], RATE) for name in ("vocals", "other")}
    mixed, _ = classes(part, [mix, given])
    assert torch.equal(mixed[0], mixed[1]) and not torch.equal(mixed[0], classes(seen(), [mix])[0][0])
    with pytest.raises(RequestError, match="'piano' is not a stem"):
        classes(seen(stems="piano", separator=str(tmp_path / "d")), [mix])

    kept = part.save_assets(tmp_path / "saved", "conditioners/it")
    assert kept.separator == "./conditioners/it"  # type: ignore[attr-defined]
    again = seen(**{**kept.resolve_paths(tmp_path / "saved").to_dict(), "output_dim": 12})
    assert torch.equal(classes(again, [mix])[0], mixed[:1])

    file = tmp_path / "d/0a1b2c3d.safetensors"
    save_file(load_file(file), file, {"klass": "os.system", "args": '["true"]', "kwargs": "{}"})
    with pytest.raises(CheckpointError, match="has the class 'os.system'. Expected one of demucs"):
        classes(seen(stems="vocals+other", separator=str(tmp_path / "d")), [mix])
    monkeypatch.setitem(sys.modules, "demucs.apply", None)
    with pytest.raises(CheckpointError, match=r"(?s)needs Demucs.*\.\[stems\].*stems: null"):
        classes(seen(stems="vocals+other"), [mix])


def test_a_demucs_that_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="adefossez/HTDemucs"):
        classes(seen(stems="vocals"), [note(60, 4000)])
    with pytest.raises(CheckpointError, match=r"has 0 \*.yaml files"):
        classes(seen(stems="vocals", separator=str(tmp_path)), [note(60, 4000)])
    with pytest.raises(CheckpointError, match="folder not found: 'no/where'"):
        classes(seen(stems="vocals", separator="no/where"), [note(60, 4000)])
