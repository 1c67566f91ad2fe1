"""Features kept on disk: the same as without, never stale, whole whatever happens to processes and files."""

import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from cadenza.conditioners.base import ConditionerSet, PreparedInputs
from cadenza.conditioners.clap import ClapSpec
from cadenza.conditioners.t5 import T5Spec
from cadenza.conditioners.text import TextSpec
from cadenza.core.errors import DataError
from cadenza.dsp.audio import Audio
from cadenza.system.feature_cache import FeatureCache, cache_dir, open_cache

TEXTS = ["slow piano", "drums", "a choir of many voices, 90 bpm"]
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[FeatureCache]:
    made = FeatureCache(tmp_path / "cache")
    yield made
    made.close()


def t5(**fields: Any) -> ConditionerSet:
    spec = T5Spec.example()[0].model_copy(update={"word_dropout": 0.0, **fields})
    return ConditionerSet({"it": spec.build().eval()})


def asked(parts: ConditionerSet, values: list[Any]) -> dict[str, PreparedInputs]:
    return parts.prepare([{"it": value} for value in values])


def same(parts: ConditionerSet, cache: FeatureCache, values: list[Any]) -> None:
    """What the cache gives is what the part gives, in the same shapes."""
    prepared = asked(parts, values)
    made, plain = cache.encode(parts, prepared, "cpu")["it"], parts.encode(prepared)["it"]
    assert made.tensors.keys() == plain.tensors.keys() and torch.equal(made.present, plain.present)
    for name, x in plain.tensors.items():
        torch.testing.assert_close(made.tensors[name], x, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        parts({"it": made})["it"].embeddings, parts({"it": plain})["it"].embeddings, atol=1e-5, rtol=1e-4
    )


def counts(cache: FeatureCache) -> tuple[int, int]:
    return cache.made, cache.found


def test_each_value_is_made_once_in_whatever_batch(cache: FeatureCache) -> None:
    parts = t5()
    same(parts, cache, [TEXTS[0], TEXTS[1], None, TEXTS[1]])
    assert counts(cache) == (3, 0), "two texts and what stands for none"
    same(parts, cache, [TEXTS[1]])
    same(parts, cache, [None, TEXTS[2], TEXTS[0]])
    assert counts(cache) == (4, 3) and len(cache) == 4
    same(parts, cache, [TEXTS[2], TEXTS[0], TEXTS[1], None])
    assert counts(cache) == (4, 7)
    again = FeatureCache(cache.folder)
    same(t5(), again, [*TEXTS, None])
    assert counts(again) == (0, 4), "another process, another object"
    sent = pickle.loads(pickle.dumps(cache))
    same(parts, sent, TEXTS)
    assert counts(sent) == (0, 3), "a copy in another process"


def test_padding_as_the_spec_says(cache: FeatureCache) -> None:
    parts = t5(pad_to="max_length", max_length=20)
    same(parts, cache, ["drums"])
    same(parts, cache, ["drums", "piano"])
    assert counts(cache) == (2, 1)


def test_texts_and_sounds(cache: FeatureCache) -> None:
    spec, rng = ClapSpec.example()[0], torch.Generator().manual_seed(0)
    long, short = (Audio(torch.randn(1, 2, n, generator=rng), 8000) for n in (11000, 3000))
    values = ["slow piano, 80 bpm", long, {"text": "drums", "audio": short}, {"audio": short}]
    parts = ConditionerSet({"it": spec.build().eval()})
    same(parts, cache, [*values, None])
    assert cache.made == len(values) + 1
    same(parts, cache, [short, "slow piano, 80 bpm"])
    same(parts, cache, [long])
    assert cache.made == len(values) + 1 and len(cache) == len(values) + 1
    same(parts, cache, [Audio(long.wave * 0.5, long.sample_rate), {"text": "drums"}])
    assert cache.made == len(values) + 3
    layers = ConditionerSet({"it": ClapSpec.parse({**spec.to_dict(), "modalities": "text", "layer": -1}).build().eval()})
    same(layers, cache, ["a", "abcdefg", None])
    same(layers, cache, ["abcdefg"])
    assert cache.made == len(values) + 6


def test_never_stale(cache: FeatureCache) -> None:
    same(t5(), cache, TEXTS)
    made = cache.made
    for fields in ({"max_length": 40}, {"dtype": "bf16"}, {"output_dim": 9}):
        same(t5(**fields), cache, TEXTS)
        assert cache.made == made + 3, fields
        made = cache.made
    parts = t5()
    encoder = parts["it"].pretrained.get(torch.device("cpu"))
    with torch.no_grad():
        encoder.final_layer_norm.weight.mul_(2)
    same(parts, cache, TEXTS)
    assert cache.made == made + 3, "other weights"
    parts = t5()
    parts["it"].pretrained.config["layer_norm_epsilon"] = 0.1
    same(parts, cache, TEXTS)
    assert cache.made == made + 6, "other settings of the encoder"
    with torch.autocast("cpu", torch.bfloat16):
        cache.encode(t5(), asked(t5(), TEXTS), "cpu")
    assert cache.made == made + 9, "another precision around it"
    same(t5(), cache, TEXTS)
    assert cache.made == made + 9


def test_what_has_nothing_to_keep(cache: FeatureCache) -> None:
    trained = t5(train=True)
    assert cache.encode(trained, asked(trained, TEXTS), "cpu")["it"].tensors.keys() == {"ids", "mask"}
    plain = ConditionerSet({"it": TextSpec.example()[0].build()})
    cache.encode(plain, asked(plain, TEXTS), "cpu")
    assert counts(cache) == (0, 0) and len(cache) == 0


def entries(folder: Path) -> dict[bytes, bytes]:
    with open_cache(folder, 2**30) as store:
        found: Any = {key: store.get(key) for key in store}
        return found


@pytest.mark.parametrize("harm", [lambda x: x[:-1], lambda x: x[:-1] + bytes([x[-1] ^ 1]), lambda x: b"", lambda x: x[:20]])
def test_a_damaged_entry_is_made_again(cache: FeatureCache, harm: Any) -> None:
    parts = t5()
    same(parts, cache, TEXTS)
    key, entry = next(iter(entries(cache.folder).items()))
    with open_cache(cache.folder, 2**30) as store:
        store.set(key, harm(entry))
    same(parts, cache, TEXTS)
    assert counts(cache) == (4, 2)
    same(parts, cache, TEXTS)
    assert counts(cache) == (4, 5)


class Trap:
    def __reduce__(self) -> Any:
        return os.abort, ()


def test_nothing_in_the_folder_can_run(cache: FeatureCache) -> None:
    import diskcache

    same(t5(), cache, TEXTS)
    with diskcache.Cache(str(cache.folder)) as store:
        for key in list(entries(cache.folder)):
            store.set(key, Trap())
    cache.close()
    same(t5(), cache, TEXTS)
    assert cache.made == 6


def test_a_folder_that_cannot_be_used_is_done_without(tmp_path: Path, cache: FeatureCache) -> None:
    same(t5(), cache, TEXTS)
    cache.close()
    for file in cache.folder.glob("cache.db*"):
        file.write_bytes(b"no database" * 1000)
    with pytest.warns(UserWarning, match="cannot be used .*: delete that folder, or move it with CADENZA_CACHE"):
        same(t5(), cache, TEXTS)
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="cannot be used"):
        same(t5(), FeatureCache(tmp_path / "file" / "folder"), TEXTS)


def test_it_stays_within_its_limit(tmp_path: Path) -> None:
    parts, limit = t5(), 400_000
    small = FeatureCache(tmp_path, limit=limit)
    for i in range(300):
        cache_one(parts, small, f"{'drums ' * 8}{i}")
    held = len(small)
    assert 20 < held < 290, "some went"
    assert sum(file.stat().st_size for file in tmp_path.glob("cache.db")) < limit + 50_000
    made = small.made
    cache_one(parts, small, f"{'drums ' * 8}299")
    assert small.made == made, "the newest is there"
    cache_one(parts, small, f"{'drums ' * 8}0")
    assert small.made == made + 1, "the oldest is made again"


def cache_one(parts: ConditionerSet, cache: FeatureCache, text: str) -> None:
    cache.encode(parts, asked(parts, [text]), "cpu")


def write(folder: Path, texts: list[str]) -> None:
    """What another process does."""
    parts, cache = t5(), FeatureCache(folder)
    for text in texts:
        cache_one(parts, cache, text)


def test_processes_share_a_folder(tmp_path: Path) -> None:
    some, others = [f"{i} drums" for i in range(40)], [f"{i} drums" for i in range(20, 60)]
    running = [FORK.Process(target=write, args=(tmp_path, texts)) for texts in (some, others)]
    for process in running:
        process.start()
    for process in running:
        process.join(120)
        assert process.exitcode == 0
    cache = FeatureCache(tmp_path)
    assert len(cache) == 60
    same(t5(), cache, sorted({*some, *others}))
    assert cache.made == 0


def test_a_killed_process_leaves_whole_entries(tmp_path: Path) -> None:
    texts = [f"{i} drums" for i in range(100_000)]
    process, cache = FORK.Process(target=write, args=(tmp_path, texts)), FeatureCache(tmp_path)
    process.start()
    for _ in range(2000):
        time.sleep(0.02)
        if len(cache) > 5:
            break
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    held = len(cache)
    assert 5 < held < len(texts)
    same(t5(), cache, texts[: held + 3])
    assert counts(cache) == (3, held), "what was there is whole, and more can be written"


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CADENZA_CACHE", str(tmp_path / "there"))
    assert cache_dir() == tmp_path / "there" and FeatureCache().folder == tmp_path / "there"
    monkeypatch.setenv("CADENZA_CACHE", "off")
    assert cache_dir() is None
    with pytest.raises(DataError, match=r"the cache is off \(CADENZA_CACHE\); unset that, or give a folder"):
        FeatureCache()
    monkeypatch.delenv("CADENZA_CACHE")
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_dir() == tmp_path / "cadenza" / "features"
