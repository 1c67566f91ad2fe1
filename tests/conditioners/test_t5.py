"""Prompts through a T5, against the encoders of transformers with weights of chance."""

import copy
import json
import pickle
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from contract import promises
from encoders import PIECES, TEXTS, model, part_of, run, theirs, tokens
from language import spacy_package
from safetensors.torch import load_file, save_file
from tiny import TINY
from tokenizers import Tokenizer, pre_tokenizers
from transformers import AutoModelForTextEncoding, PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration

from cadenza.conditioners.base import ConditionerSet
from cadenza.core.errors import CheckpointError, SpecError
from cadenza.nn.tokenizers import _load_spacy
from cadenza.system.spec import SystemSpec
from cadenza.system.system import System


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return model(tmp_path / "t5")


GEOMETRIES = {
    "relu": {},
    "gated": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "silu, narrow heads": {"feed_forward_proj": "gated-silu", "d_kv": 6, "num_heads": 2, "num_layers": 3},
    "near positions": {"relative_attention_num_buckets": 4, "relative_attention_max_distance": 6, "layer_norm_epsilon": 1e-3},
    "mt5": {"kind": "mt5", "feed_forward_proj": "gated-gelu"},
    "umt5": {"kind": "umt5", "d_kv": 8, "num_heads": 3},
}


@pytest.mark.parametrize("sizes", GEOMETRIES.values(), ids=GEOMETRIES)
def test_a_padded_batch_gives_what_transformers_gives_each_text(tmp_path: Path, sizes: dict[str, Any]) -> None:
    folder = model(tmp_path / "t5", **sizes)
    for fields in ({}, {"pad_to": "max_length", "max_length": 60}):
        made = run(part_of(folder, **fields), list(TEXTS))
        for text, x, mask in zip(TEXTS, made.embeddings, made.mask, strict=True):
            torch.testing.assert_close(x[mask], theirs(folder, text), atol=1e-5, rtol=1e-4)
            assert not x[~mask].any()
        assert made.embeddings.shape[1] == (60 if fields else max(map(len, (theirs(folder, text) for text in TEXTS))))


def gemma(folder: Path, *, whole: bool = False, **sizes: Any) -> Path:
    """A folder with a T5Gemma as transformers writes it, whose tokenizer takes a whole text for one word, as theirs does."""
    from transformers import T5GemmaConfig, T5GemmaEncoderModel, T5GemmaForConditionalGeneration

    defaults = {"hidden_size": 12, "intermediate_size": 20, "num_hidden_layers": 3, "num_attention_heads": 3}
    inner = defaults | {"num_key_value_heads": 1, "head_dim": 6, "vocab_size": len(PIECES) + 3, "sliding_window": 4} | sizes
    config = T5GemmaConfig(encoder=inner, decoder=inner, vocab_size=len(PIECES) + 3, is_encoder_decoder=whole)
    torch.manual_seed(0)
    made = (T5GemmaForConditionalGeneration if whole else T5GemmaEncoderModel)(config)
    with torch.no_grad():
        for x in made.parameters():
            x.normal_(std=0.5)
    made.save_pretrained(folder)
    tokens(folder)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


GEMMAS = {
    "near and far": {},
    "whole": {"whole": True},
    "all far, no caps": {"layer_types": ["full_attention"] * 3, "attn_logit_softcapping": None, "query_pre_attn_scalar": 5},
    "groups of heads": {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "sliding_window": 1},
}


@pytest.mark.parametrize("sizes", GEMMAS.values(), ids=GEMMAS)
def test_t5gemma_gives_what_transformers_gives_each_text(tmp_path: Path, sizes: dict[str, Any]) -> None:
    from transformers import T5GemmaEncoderModel, T5GemmaForConditionalGeneration

    folder = gemma(tmp_path / "gemma", **sizes)
    kind = T5GemmaForConditionalGeneration if sizes.get("whole") else T5GemmaEncoderModel
    other = kind.from_pretrained(folder).eval()
    encoder = other.model.encoder if sizes.get("whole") else other.encoder
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    with torch.no_grad():
        expected = [encoder(torch.tensor([tokenizer.encode(text)])).last_hidden_state[0] for text in TEXTS]
    part = part_of(folder, output_dim=12)
    made = run(part, list(TEXTS))
    for x, mask, theirs_ in zip(made.embeddings, made.mask, expected, strict=True):
        torch.testing.assert_close(x[mask], theirs_, atol=1e-5, rtol=1e-4)
        assert not x[~mask].any()
    (tmp_path / "saved").mkdir()
    spec = part.save_assets(tmp_path / "saved", "prompt").resolve_paths(tmp_path / "saved")
    assert torch.equal(run(spec.build().eval(), list(TEXTS)).embeddings, made.embeddings)
    again = T5GemmaEncoderModel.from_pretrained(tmp_path / "saved" / "prompt").eval()
    with torch.no_grad():
        x = again(torch.tensor([tokenizer.encode(TEXTS[0])])).last_hidden_state[0]
    torch.testing.assert_close(x, expected[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("train", [False, True])
def test_t5gemma_keeps_the_contract(tmp_path: Path, train: bool) -> None:
    spec = part_of(gemma(tmp_path / "gemma"), output_dim=5, project="always", train=train).spec
    for promise in promises():
        promise(spec, list(TEXTS))


def test_t5gemma_can_be_trained_and_loses_whole_words(tmp_path: Path) -> None:
    folder = gemma(tmp_path / "gemma")
    part = part_of(folder, output_dim=5, project="always", train=True, word_dropout=0.5).train()
    prepared = part.prepare(["slow piano drums", "a choir"])
    part(part.encode(prepared)).embeddings.square().sum().backward()
    assert all(x.grad is not None and x.grad.any() for name, x in part.named_parameters() if "norm" not in name)
    word, mask = prepared.tensors["word"], prepared.tensors["mask"]
    assert sorted(set(word[0][mask[0]].tolist())) == [-1, 0, 1, 2] and sorted(set(word[1][mask[1]].tolist())) == [-1, 0, 1]
    spec = part.save_assets(tmp_path, "prompt").resolve_paths(tmp_path)
    other = spec.build()
    other.load_state_dict(part.state_dict())
    assert torch.equal(run(other.eval(), list(TEXTS)).embeddings, run(part.eval(), list(TEXTS)).embeddings)


def test_the_encoder_of_a_whole_t5_in_any_file(tmp_path: Path, folder: Path) -> None:
    """With its decoder, in shards, as a checkpoint of torch.save, among the weights of something else."""
    config = json.loads((folder / "config.json").read_text())
    whole = T5ForConditionalGeneration(T5Config(**config | {"num_decoder_layers": 1, "is_encoder_decoder": True}))
    whole.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    whole.save_pretrained(tmp_path / "shards", max_shard_size="4KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    (tmp_path / "bin").mkdir()
    torch.save(whole.state_dict(), tmp_path / "bin" / "pytorch_model.bin")
    whole.config.save_pretrained(tmp_path / "bin")
    (tmp_path / "more").mkdir()
    inner = {f"text.{key}": x.clone() for key, x in load_file(folder / "model.safetensors").items()}
    save_file(inner | {"other": torch.zeros(1)}, tmp_path / "more" / "model.safetensors")
    (tmp_path / "more" / "config.json").write_text(json.dumps({"model_type": "band", "text": config}))
    expected = run(part_of(folder), list(TEXTS)).embeddings
    for name, fields in {"shards": {}, "bin": {}, "more": {"subconfig": "text"}}.items():
        tokens(tmp_path / name)
        assert torch.equal(run(part_of(tmp_path / name, **fields), list(TEXTS)).embeddings, expected), name


def test_longer_texts_are_cut_before_their_end_mark(folder: Path) -> None:
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    count = len(tokenizer.encode(TEXTS[2]))
    for most in (1, 2, 9, count - 1):
        with pytest.warns(
            UserWarning, match=f"a text has {count} tokens, {most} are read .*: the last {count - most} are lost"
        ):
            ids = part_of(folder, max_length=most).prepare([TEXTS[2]]).tensors["ids"]
        assert ids[0].tolist() == tokenizer.encode(TEXTS[2], truncation=True, max_length=most)
    assert part_of(folder, max_length=count).prepare([TEXTS[2]]).tensors["mask"].all()
    with pytest.raises(SpecError, match="pad_to: max_length needs max_length"):
        part_of(folder, pad_to="max_length")


@pytest.mark.parametrize("project", ["auto", "always"])
def test_absent_and_empty_texts_are_zeros(folder: Path, project: str) -> None:
    part = part_of(folder, project=project)
    assert [name for name, _ in part.named_parameters()] == ([] if project == "auto" else ["out.weight", "out.bias"])
    made = run(part, [None, "", "  ", TEXTS[0]])
    assert made.present.tolist() == [False, False, False, True]
    assert not made.embeddings[:3].any() and not made.mask[:3].any() and made.embeddings[3].any()
    assert run(part, [None, ""]).embeddings.shape == (2, 1, 16)
    read = run(part_of(folder, empty_text="encode"), ["", None])
    assert read.present.tolist() == [True, False]
    torch.testing.assert_close(read.embeddings[0], theirs(folder, ""), atol=1e-5, rtol=1e-4)
    learned = part_of(folder, null_embedding="learned")
    assert learned.null is not None and not run(learned, [""]).present.any()


def test_bfloat16_is_near_float32(folder: Path) -> None:
    exact, coarse = part_of(folder), part_of(folder, dtype="bf16")
    assert coarse.encode(coarse.prepare(["drums"])).tensors["x"].dtype == torch.bfloat16
    a, b = run(exact, list(TEXTS)).embeddings, run(coarse, list(TEXTS)).embeddings
    assert b.dtype == torch.float32
    assert 1e-4 < _apart(b, a) < 0.05


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_never_in_half_precision(tmp_path: Path, dtype: str, train: bool) -> None:
    """Activations beyond 65504, as in large T5s, stay finite when the rest of the model is cast or autocast to half."""
    folder = model(tmp_path / "t5", scale=4000.0)
    encoder = AutoModelForTextEncoding.from_pretrained(folder).to(torch.float16).eval()
    exact = run(part_of(folder), list(TEXTS))
    with torch.no_grad():
        halved = encoder(part_of(folder).prepare([TEXTS[0]]).tensors["ids"]).last_hidden_state
    assert not _apart(halved[0].float(), exact.embeddings[0][exact.mask[0]]) < 0.3, "this T5 would do in half precision"
    part = part_of(folder, dtype=dtype, train=train).to(torch.float16)
    hidden = part.project(part.encode_frozen(part.prepare(list(TEXTS)).tensors)).x
    made = run(part, [*TEXTS, None])
    assert hidden.dtype == made.embeddings.dtype == torch.float16 and made.embeddings.isfinite().all()
    assert _apart(made.embeddings[:3].float(), exact.embeddings) < 0.05
    with torch.autocast("cpu", torch.float16):
        assert _apart(run(part.float(), list(TEXTS)).embeddings, exact.embeddings) < 0.05


def _apart(x: torch.Tensor, y: torch.Tensor) -> float:
    return float((x - y).norm() / y.norm())


def test_a_frozen_encoder_is_no_part_of_training(folder: Path) -> None:
    part = part_of(folder, project="always").train()
    assert set(part.state_dict()) == {"out.weight", "out.bias"}
    features = part.encode(part.prepare(list(TEXTS)))
    assert not features.tensors["x"].requires_grad
    stack = part.pretrained.get(torch.device("cpu"))
    assert not stack.training and not any(x.requires_grad for x in stack.parameters())
    with torch.inference_mode():
        other = part_of(folder, project="always")
        other.encode(other.prepare(["drums"]))
    other(other.encode(other.prepare(["drums"]))).embeddings.sum().backward()  # weights read under inference serve training


def test_copies_share_the_frozen_encoder(folder: Path) -> None:
    part = part_of(folder)
    expected = run(part, list(TEXTS)).embeddings
    twin = copy.deepcopy(part)
    assert twin.pretrained is part.pretrained
    sent = pickle.dumps(part)
    assert len(sent) < 5000, "another process gets no weights"
    assert torch.equal(run(pickle.loads(sent), list(TEXTS)).embeddings, expected)
    part.to("meta").to_empty(device="cpu")
    assert torch.equal(run(part, list(TEXTS)).embeddings, expected)


def test_a_trained_encoder_learns_and_is_saved(folder: Path) -> None:
    part = part_of(folder, train=True, null_embedding="learned").train()
    frozen = run(part_of(folder), list(TEXTS))
    torch.testing.assert_close(run(part, list(TEXTS)).embeddings, frozen.embeddings)
    assert len(part.state_dict()) == len(list(part.pretrained.weights())) + 1
    assert torch.equal(part.encode(part.prepare(list(TEXTS))).tensors["ids"], part.prepare(list(TEXTS)).tensors["ids"])
    part(part.encode(part.prepare([*TEXTS, None]))).embeddings.square().sum().backward()
    for name, x in part.encoder.named_parameters():
        assert x.grad is not None and x.grad.any(), name
    with torch.no_grad():
        part.encoder.final_layer_norm.weight.mul_(2.0)
    with torch.device("meta"):
        other = part.spec.build()
    there = other(other.encode(part.prepare([*TEXTS, None]).to("meta"))).embeddings
    assert there.is_meta, "the host never looks at a value"
    other.to_empty(device="cpu").load_state_dict(part.state_dict())
    torch.testing.assert_close(run(other.eval(), list(TEXTS)).embeddings, 2 * frozen.embeddings)


def test_words_are_dropped_whole_and_by_chance(folder: Path) -> None:
    part, p = part_of(folder, word_dropout=0.3), 0.3
    words = "slow fast piano drums choir violins".split()
    texts = [" ".join(words)] * 500
    prepared = part.prepare(texts)
    assert set(part.encode(prepared).tensors) == {"x", "mask"}
    varied = part.augment(prepared, torch.Generator().manual_seed(1))
    again = part.augment(prepared, torch.Generator().manual_seed(1))
    assert all(torch.equal(x, again.tensors[name]) for name, x in varied.tensors.items())
    rows = {tuple(part.prepare([" ".join(some)]).tensors["ids"][0].tolist()): some for some in _subsets(words)}
    left = [rows[tuple(ids[mask].tolist())] for ids, mask in zip(varied.tensors["ids"], varied.tensors["mask"], strict=True)]
    kept = torch.tensor([[word in some for word in words] for some in left]).float()
    assert (kept.mean(0) - (1 - p)).abs().max() < 4 * (p * (1 - p) / 500) ** 0.5
    assert (torch.corrcoef(kept.T) - torch.eye(6)).abs().max() < 0.2, "each word has its own chance"
    shorter = run(part, [" ".join(left[0])]).embeddings[0]
    torch.testing.assert_close(part(part.encode(varied)).embeddings[0, : len(shorter)], shorter, atol=1e-5, rtol=1e-4)
    assert part_of(folder).augment(prepared, torch.Generator()) is prepared


def _subsets(words: list[str]) -> Iterator[list[str]]:
    for chosen in range(1, 2 ** len(words)):
        yield [word for i, word in enumerate(words) if chosen >> i & 1]


def test_a_text_without_words_left_is_absent(folder: Path) -> None:
    parts = ConditionerSet({"it": part_of(folder, word_dropout=1.0)})
    prepared = parts.prepare([{"it": TEXTS[0]}, {}])
    made = parts(parts.encode(parts.augment(prepared, torch.Generator())))["it"]
    assert not made.present.any() and not made.embeddings.any()
    read = part_of(folder, word_dropout=1.0, empty_text="encode")
    varied = read.augment(read.prepare([TEXTS[0], None]), torch.Generator())
    assert varied.tensors["ids"][varied.tensors["mask"]].tolist() == [1] and varied.present.tolist() == [True, False]


@pytest.fixture
def english(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(spacy_package(tmp_path / "packages")))
    _load_spacy.cache_clear()
    yield
    _load_spacy.cache_clear()


def test_normalised_text_is_lemmas_without_stop_words(folder: Path, english: None) -> None:
    part, plain = part_of(folder, normalize_text=True), part_of(folder)
    said, meant = "the drums, 2 choirs and 80 violins", "drum choir eighty violin"
    assert torch.equal(part.prepare([said]).tensors["ids"], plain.prepare([meant]).tensors["ids"])
    assert part.prepare(["the and a", None]).present.tolist() == [False, False]


def test_normalising_needs_its_extra(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _load_spacy.cache_clear()
    monkeypatch.setitem(sys.modules, "spacy", None)
    with pytest.raises(CheckpointError, match=r"needs spacy.*pip install -e \"\.\[text\]\""):
        part_of(folder, normalize_text=True).prepare(["drums"])


def test_a_narrow_encoder_is_near_the_exact_one(tmp_path: Path) -> None:
    folder = model(tmp_path / "t5", d_model=128, d_kv=32, d_ff=256)
    exact, narrow = part_of(folder, output_dim=128), part_of(folder, output_dim=128)
    narrow.pretrained.quantized = True
    size = narrow.pretrained.unloaded_bytes()
    assert size < 0.3 * exact.pretrained.unloaded_bytes() and narrow.pretrained.unloaded_bytes(peak=True) <= 2 * size
    assert 1e-4 < _apart(run(narrow, list(TEXTS)).embeddings, run(exact, list(TEXTS)).embeddings) < 0.03
    held = narrow.pretrained.get(torch.device("cpu")).state_dict()
    assert sum(x.nbytes for x in held.values()) == size and narrow.pretrained.unloaded_bytes() == 0
    assert {x.dtype for name, x in held.items() if name.endswith((".packed", "embed_tokens.weight"))} == {
        torch.int8,
        torch.bfloat16,
    }


def test_generating_from_text_needs_neither_transformers_nor_a_compiler(tmp_path: Path, folder: Path) -> None:
    """Each takes seconds and more memory than a small model."""
    prompt = {"type": "t5", "model": str(folder), "output_dim": 16, "null_embedding": "zeros"}
    spec = SystemSpec.parse(
        {**TINY, "conditioners": {"prompt": prompt}, "prompt_patterns": [], "fusion": {"cross": ["prompt"]}}
    )
    System(spec).quantize("int8").save(tmp_path / "it")
    code = (
        "import sys\nfrom cadenza.apps.api import load\n"
        f"load({str(tmp_path / 'it')!r}, device='cpu').generate('slow piano', seconds=0.1)\n"
        "assert not {'transformers', 'sympy', 'torch._dynamo'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_spec_is_light(folder: Path) -> None:
    """Neither the spec nor its host side loads transformers, which takes seconds in every worker."""
    code = (
        "import sys\nfrom cadenza.conditioners.t5 import T5Spec\n"
        f"part = T5Spec(model={str(folder)!r}, output_dim=4).build()\npart.prepare(['drums'])\n"
        "assert 'transformers' not in sys.modules and 'spacy' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
