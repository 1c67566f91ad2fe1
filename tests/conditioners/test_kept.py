"""Features that a cache keeps of chroma, style and drums: the same as without, made once, never another's."""

import gc
import json
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from separators import demucs_folder
from transformers import HubertConfig, HubertModel

from cadenza.conditioners.base import Conditioner, ConditionerSet, ConditionerSpec
from cadenza.conditioners.drums import DrumsSpec
from cadenza.core.errors import CheckpointError
from cadenza.dsp.audio import Audio
from cadenza.nn.demucs import Separator
from cadenza.system.feature_cache import FeatureCache

CODEC = {"type": "encodec", "sample_rate": 800, "strides": (4, 2), "codebooks": 2, "bins": 16, "filters": 2, "dimension": 4}
SMALL = {"hidden": 16, "depth": 1, "heads": 2, "levels": 3, "bins": 8, "eval_q": 2, "downsample": 5, "seconds": 0.4}
STYLE = {"type": "style", "output_dim": 8, **SMALL, "train_seconds_range": (0.2, 0.5)}
DRUMS = {"type": "drums", "output_dim": 8, "frame_rate": 25, "max_frames": 20, "hidden": 4, "codec": CODEC}
CHROMA = {"type": "chroma", "output_dim": 8, "sample_rate": 8000, "window": 512, "hop": 256, "stems": ("vocals", "other")}


def noise(samples: int, rate: int = 800, seed: int = 0) -> Audio:
    rng = torch.Generator().manual_seed(samples + seed)
    return Audio(0.3 * torch.randn(1, 1, samples, generator=rng), rate)


@pytest.fixture(scope="module")
def demucs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    demucs_folder(folder := tmp_path_factory.mktemp("demucs"))
    return folder


@pytest.fixture(scope="module")
def mert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mert")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24, "conv_dim": (8, 8)}
    more = {"conv_stride": (5, 2), "conv_kernel": (10, 3), "num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    torch.manual_seed(0)
    HubertModel(HubertConfig(**sizes, **more)).save_pretrained(folder)
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[FeatureCache]:
    made = FeatureCache(tmp_path / "cache")
    yield made
    made.close()


def built(fields: dict[str, Any]) -> Conditioner[Any]:
    torch.manual_seed(0)
    return ConditionerSpec.parse(fields).build().eval()


def same(part: Conditioner[Any], cache: FeatureCache, values: list[Any]) -> None:
    """What the cache gives is what the part gives, in the same shapes, and of each value what it is alone."""
    parts = ConditionerSet({"it": part})
    prepared = parts.prepare([{"it": value} for value in values])
    made, plain = cache.encode(parts, prepared, "cpu")["it"], parts.encode(prepared)["it"]
    assert made.tensors.keys() == plain.tensors.keys() and torch.equal(made.present, plain.present)
    for name, x in plain.tensors.items():
        torch.testing.assert_close(made.tensors[name], x, atol=1e-6, rtol=1e-5)
    out, want = part(made), part(plain)
    assert torch.equal(out.mask, want.mask)
    torch.testing.assert_close(out.embeddings, want.embeddings, atol=1e-6, rtol=1e-5)


def kinds(demucs: Path, mert: Path) -> dict[str, dict[str, Any]]:
    return {
        "chroma": {**CHROMA, "separator": str(demucs)},
        "chroma of frames": {**CHROMA, "separator": str(demucs), "max_frames": 9, "pad_mode": "mask", "one_hot": False},
        "chroma repeated": {**CHROMA, "separator": str(demucs), "max_frames": 30},
        "style of tokens": {**STYLE, "codec": CODEC},
        "style of a listener": {**STYLE, "model": str(mert), "sample_rate": 800},
        "drums": DRUMS,
    }


KINDS = ("chroma", "chroma of frames", "chroma repeated", "style of tokens", "style of a listener", "drums")


def change(part: Any) -> None:
    """Writes to a frozen weight, where it lies."""
    _, weights = part.cache_fingerprint()
    with torch.no_grad():
        for x in weights.values():
            if x.is_floating_point() and x.ndim > 1:
                x.mul_(1.5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS)
def test_each_value_is_made_once_in_whatever_batch(kind: str, demucs: Path, mert: Path, cache: FeatureCache) -> None:
    fields, rate = kinds(demucs, mert)[kind], 8000 if kind.startswith("chroma") else 800
    part, one, other, third = built(fields), noise(3000, rate), noise(700, rate), noise(1200, rate)
    assert part.cache_fingerprint() is not None
    same(part, cache, [one, other, None])
    assert (cache.made, cache.found) == (3, 0)
    same(part, cache, [None, other])
    same(part, cache, [other, third, one, one])
    assert (cache.made, cache.found) == (4, 5)
    again = FeatureCache(cache.folder)
    same(built(fields), again, [third, one])
    assert (again.made, again.found) == (0, 2), "another part, another object"
    again.close()
    same(part, cache, [noise(700, rate, seed=1)])
    assert cache.made == 5, "another sound of that length"
    same(built({**fields, "output_dim": 9}), cache, [one])
    assert cache.made == 6, "another spec"
    change(part := built(fields))
    if not kind.startswith("chroma"):
        same(part, cache, [one])
        assert cache.made == 7, "other weights"
        change(part)
        same(part, cache, [one])
        assert cache.made == 8, "the same part, written to since"


@pytest.mark.filterwarnings("ignore")
def test_a_separator_is_run_once(demucs: Path, tmp_path: Path, cache: FeatureCache, monkeypatch: pytest.MonkeyPatch) -> None:
    heard, stems = list[int](), Separator.separate

    def counted(self: Separator, wave: torch.Tensor, sample_rate: int) -> Any:
        heard.append(wave.shape[-1])
        return stems(self, wave, sample_rate)

    monkeypatch.setattr(Separator, "separate", counted)
    part = built({**CHROMA, "separator": str(demucs)})
    parts, mix = ConditionerSet({"it": part}), noise(3000, 8000)

    def run(*values: Any) -> None:
        cache.encode(parts, parts.prepare([{"it": value} for value in values]), "cpu")

    run(mix, mix, {"vocals": mix}, None)
    assert heard == [3000]
    run(noise(900, 8000), mix)
    assert heard == [3000, 900]
    parts["it"] = kept = part.save_assets(tmp_path / "saved", "conditioners/it").resolve_paths(tmp_path / "saved").build()
    run(mix)
    assert heard == [3000, 900], "wherever the same separator lies"
    file = tmp_path / "saved/conditioners/it/0a1b2c3d.safetensors"
    kwargs = {"sources": ["drums", "bass", "other", "vocals"], "channels": 8, "growth": 2, "nfft": 256, "depth": 2}
    kwargs |= {"t_layers": 1, "t_heads": 2, "samplerate": 8000, "segment": 1, "bottom_channels": 8, "dconv_mode": 1}
    said = {"klass": "demucs.htdemucs.HTDemucs", "args": "[]", "kwargs": json.dumps(kwargs)}
    save_file({name: x * 1.01 for name, x in load_file(file).items()}, file, said)
    parts["it"] = kept.spec.build()
    run(mix)
    assert heard == [3000, 900, 3000], "another separator"
    parts["it"] = built({**CHROMA, "separator": str(demucs), "hop": 128})
    run(mix)
    assert heard[3:] == [3000], "another spec"


def test_no_separator_is_needed_where_nothing_is_mixed(cache: FeatureCache) -> None:
    """Nor is chroma kept, which is made as soon as found."""
    part = built({**CHROMA, "separator": "no/where"})
    same(part, cache, [{"vocals": noise(900, 8000)}, None])
    assert len(cache) == 0 and part.cache_fingerprint() is None  # type: ignore[operator]
    with pytest.raises(CheckpointError, match="folder not found: 'no/where'"):
        same(part, cache, [noise(900, 8000)])
    assert built({**CHROMA, "stems": None}).cache_fingerprint() is None  # type: ignore[operator]


@pytest.mark.filterwarnings("ignore")
def test_sounds_as_long_as_the_longest_are_known_by_how_long_that_was(demucs: Path, cache: FeatureCache) -> None:
    part = built({**CHROMA, "separator": str(demucs), "pad_to": "longest"})
    short, long, longer = (noise(n, 8000) for n in (900, 2000, 3000))
    same(part, cache, [short, long])
    same(part, cache, [short, longer])
    assert cache.made == 4
    same(part, cache, [short, long])
    assert (cache.made, cache.found) == (4, 2)


@pytest.mark.parametrize("kind", ["style of tokens", "style of a listener"])
def test_an_excerpt_is_kept_by_its_place_and_not_by_its_strength(
    kind: str, demucs: Path, mert: Path, cache: FeatureCache
) -> None:
    part, sound = built(kinds(demucs, mert)[kind]), noise(900)
    same(part, cache, [{"audio": sound, "start": 0.1, "levels": 1}, {"audio": sound, "start": 0.2}])
    assert (cache.made, cache.found) == (2, 0)
    same(part, cache, [{"audio": sound, "start": 0.1, "levels": 3}, {"audio": sound, "start": 0.1, "levels": 2}])
    assert (cache.made, cache.found) == (2, 2)
    parts = ConditionerSet({"it": part.train()})
    drawn = parts.augment(parts.prepare([{"it": sound}]), torch.Generator().manual_seed(0))
    cache.encode(parts, drawn, "cpu")
    assert (cache.made, len(cache)) == (2, 2), "drawn excerpts are not kept"


def test_drums_for_longer_clips_than_those_of_training(cache: FeatureCache) -> None:
    """Twice the frames are twice the seconds, not the same ones stretched."""
    parts, stem = ConditionerSet({"it": built(DRUMS)}), noise(1280)
    prepared = parts.prepare([{"it": stem}], frames=40)
    made, plain = cache.encode(parts, prepared, "cpu")["it"].tensors["x"], parts.encode(prepared)["it"].tensors["x"]
    assert made.shape == (1, 40, 4) and torch.equal(made, plain)
    spec = DrumsSpec.parse({**DRUMS, "max_frames": 40})
    torch.manual_seed(0)
    whole = spec.build().eval()
    torch.testing.assert_close(made, whole.encode(whole.prepare([stem])).tensors["x"])
    cache.encode(parts, parts.prepare([{"it": stem}]), "cpu")
    assert cache.made == 2, "which are others than those of a shorter one"


@pytest.mark.filterwarnings("ignore")
def test_chroma_for_longer_clips_than_those_of_training(demucs: Path) -> None:
    parts = ConditionerSet({"it": built({**CHROMA, "stems": None, "max_frames": 5, "pad_mode": "mask"})})
    features = parts.encode(parts.prepare([{"it": noise(3000, 8000)}], frames=20))["it"].tensors
    assert features["x"].shape == (1, 20, 12) and features["mask"].sum() == 1 + 3000 // 256


def test_a_part_goes_when_it_is_not_needed(cache: FeatureCache) -> None:
    """What the cache knows of its weights goes with it, so that no other part is taken for it."""
    part = built(DRUMS)
    same(part, cache, [noise(700)])
    there = weakref.ref(part)
    del part
    gc.collect()
    assert there() is None
