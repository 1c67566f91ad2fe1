"""Geometries: the sizes that were published, weights that all matter, a tokenizer of a word a token."""

import pytest
import torch
from compare.geometry import geometry, list_geometries, random_model, write
from tokenizers import Tokenizer

import cadenza
from cadenza.apps.bench import WORDS, BenchJob
from cadenza.core.errors import BenchmarkError
from cadenza.importers.catalog import MODELS


@pytest.mark.parametrize("name", list_geometries())
def test_a_geometry_has_as_many_parameters_as_was_published(name):
    published = next(one for full, one in MODELS.items() if full.rpartition("/")[2].replace("_", "-") == name)
    assert abs(geometry(name).parameters / published.parameters - 1) < 1e-3


def test_all_sizes_of_musicgen_and_two_codecs_are_there():
    sizes = {f"musicgen-{sides}{size}" for sides in ("", "stereo-") for size in ("small", "medium", "large")}
    assert set(list_geometries()) == sizes | {"encodec-24khz", "encodec-32khz"}


def test_what_there_is_not():
    with pytest.raises(BenchmarkError, match="musicgen-small"):
        geometry("musicgen-smal")


def test_weights_are_those_of_the_seed_and_codebooks_are_not_empty():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one, same, other = (random_model(geometry("encodec-24khz", quick=True), seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    books = [name for name in one if name.endswith("codebook.embed")]
    assert books and all(one[name].std() > 0.5 and not torch.equal(one[name], other[name]) for name in books)
    assert all(torch.equal(one[name], same[name]) for name in one)


def test_a_word_is_a_token(tmp_path):
    write(geometry("musicgen-small", quick=True), tmp_path)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for words in (1, 20, 250):
        ids = tokenizer.encode(BenchJob(1.0, words=words).request().items[0]["prompt"]).ids
        assert len(ids) == words + 1 and ids[-1] == 1 and 2 not in ids  # the end, and nothing unknown
    assert len(WORDS) + 3 <= 64  # the tiny vocabulary


@pytest.mark.parametrize(("name", "channels", "rows"), [("musicgen-small", 1, 4), ("musicgen-stereo-large", 2, 8)])
def test_a_tiny_model_hears_its_prompt(tmp_path, name, channels, rows):
    write(geometry(name, quick=True), tmp_path)
    system = cadenza.load(tmp_path, device="cpu")
    assert system.spec.codec.channels == channels and system.codec.frame_format.channels == rows
    ids = [
        system.generate_frames(text, seconds=0.6, sampling={"temperature": 0}, guidance=3.0).data
        for text in ("slow piano", "drums")
    ]
    assert not torch.equal(*ids)
    wave = system.generate("slow piano", seconds=0.6, seed=1).wave
    assert 1e-3 < float(wave.abs().max()) < 10 and float(wave.std()) > 1e-4
