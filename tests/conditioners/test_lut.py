"""Words looked up in a table, by each of the tokenizers."""

import hashlib
import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from contract import promises
from language import spacy_model, spacy_package, tokenizer_folder
from transformers import PreTrainedTokenizerFast

from cadenza.conditioners.base import ConditionerSet, ConditionerSpec
from cadenza.conditioners.lut import LUTConditioner, LutSpec
from cadenza.core.errors import CheckpointError, RequestError, SpecError
from cadenza.nn.tokenizers import _load_spacy, hash_to_row, lemmatize, spacy_tokens, split_normalized_words

TEXTS = ["slow piano in a minor, 80 bpm", "drums", "the violins was singing"]


def part_of(tokenizer: Any, **fields: Any) -> LUTConditioner:
    return (
        LutSpec.parse({"type": "lut", "output_dim": 4, "null_embedding": "zeros", "tokenizer": tokenizer} | fields)
        .build()
        .eval()
    )


def ids(part: LUTConditioner, text: str | None) -> list[int]:
    tensors = part.prepare([text]).tensors
    return tensors["ids"][0][tensors["mask"][0]].tolist()


def hashed(word: str, rows: int) -> int:
    return int(hashlib.sha256(word.encode("utf-8")).hexdigest(), 16) % rows


def variants(folder: Path) -> dict[str, dict[str, Any]]:
    vocab = {"type": "vocab", "model": str(tokenizer_folder(folder / "tokens")), "special_tokens": ["<verse>"]}
    return {
        "whole": {"tokenizer": "whole"},
        "words": {"tokenizer": "words", "dim": 5},
        "spacy": {"tokenizer": {"type": "spacy", "model": str(spacy_model(folder / "english")), "bins": 50}},
        "vocab": {"tokenizer": vocab, "positions": True, "max_length": 40, "project": "always"},
        "padded": {"tokenizer": vocab, "pad_to": "max_length", "max_length": 40},
    }


@pytest.mark.parametrize("which", ["whole", "words", "spacy", "vocab", "padded"])
def test_every_tokenizer_keeps_the_contract(tmp_path: Path, which: str) -> None:
    for absent in ("learned", "zeros"):
        spec = LutSpec.parse({"type": "lut", "output_dim": 4, "null_embedding": absent} | variants(tmp_path / absent)[which])
        for promise in promises():
            promise(spec, TEXTS)


def test_a_whole_text_is_one_hashed_word() -> None:
    part = part_of({"type": "whole", "bins": 64}, empty_text="encode")
    for text in ("Queen", " two  spaces ", "Ünïcode ½", ""):
        assert ids(part, text) == [hashed(text, 64)]
    assert part.prepare([None, "x"]).tensors["ids"][0].tolist() == [0]
    assert part.spec.output_kind == "vector" and part_of("words").spec.output_kind == "tokens"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Slow PIANO, in A-minor!", ["slow", "piano", "in", "a", "minor"]),
        ("F♯ or F# or B♭", ["f#", "or", "f#", "or", "bb"]),
        ("don’t DON'T", ["don't", "don't"]),
        ("ｆｕｌｌ ﬁve straße", ["full", "five", "strasse"]),
        ("120bpm 日本語 _x_", ["120bpm", "日本語", "x"]),
        ("e\u0301te\u0301 été", ["été", "été"]),
        ("... —!", []),
    ],
)
def test_words_are_told_apart_by_their_letters(text: str, words: list[str]) -> None:
    assert split_normalized_words(text) == words
    assert ids(part_of({"type": "words", "bins": 99}), text) == [hashed(word, 99) for word in words]


def test_words_by_a_language_model(tmp_path: Path) -> None:
    """Numbers in words, no stop words, no marks, dictionary forms: in the order in which AudioCraft does so."""
    model = str(spacy_model(tmp_path / "english"))
    said = "The violins was singing: 80 drums!"
    assert spacy_tokens([said, ""], model=model) == [["violin", "sing", "eighty", "drum"], []]
    assert spacy_tokens([said], model=model, lemmas=False) == [["violins", "singing", "eighty", "drums"]]
    kept = spacy_tokens([said], model=model, stop_words=True)
    assert kept == [["The", "violin", "be", "sing", "eighty", "drum"]]
    assert spacy_tokens(["take 2.5 of 1200"], model=model, lemmas=False) == [["two.five", "thousand"]]
    fields = {"type": "spacy", "model": model, "bins": 1000}
    assert ids(part_of(fields), said) == [hashed(word, 1000) for word in ["violin", "sing", "eighty", "drum"]]
    prepared = part_of(fields).prepare(["the of", said, None])
    assert prepared.present.tolist() == [False, True, False] and prepared.tensors["mask"].sum(1).tolist() == [0, 4, 0]
    assert spacy_tokens(["9" * 200], model=model)[0], "a number too long to be read is cut, not refused"


def test_a_language_model_by_name_is_read_without_running_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(spacy_package(tmp_path)))
    _load_spacy.cache_clear()
    assert lemmatize("the violins, 2 choirs") == "violin choir"
    part = part_of("spacy")
    part.prepare_training([])
    kept = part.save_assets(tmp_path, "place")
    assert kept == part.spec and not (tmp_path / "place").exists()
    _load_spacy.cache_clear()


def test_what_a_language_model_lacks_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for model in ("en_core_web_none", "torch", "os.path", str(tmp_path)):
        with pytest.raises(CheckpointError, match=r"neither installed nor a folder .*: python -m spacy download en_core_web_"):
            part_of({"type": "spacy", "model": model}).prepare_training([])
    bare = str(spacy_model(tmp_path / "bare", {}))
    with pytest.raises(CheckpointError, match="has no lemmatizer; set lemmas: false"):
        part_of({"type": "spacy", "model": bare}).prepare_training([])
    assert spacy_tokens(["drums of doom"], model=bare, lemmas=False) == [["drums", "doom"]]
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.cfg").write_text("[nlp]\nlang = 3")
    with pytest.raises(CheckpointError, match="is not a model that this version of spaCy can load"):
        part_of({"type": "spacy", "model": str(tmp_path / "broken")}).prepare_training([])
    for name in ("spacy", "num2words"):
        _load_spacy.cache_clear()
        with monkeypatch.context() as without:
            without.setitem(sys.modules, name, None)
            with pytest.raises(CheckpointError, match=rf'needs {name}.*pip install -e "\.\[text\]".*tokenizer: words'):
                part_of({"type": "spacy", "model": bare}).prepare_training([])


def theirs(folder: Path, special: list[str] | None = None) -> PreTrainedTokenizerFast:
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), pad_token="<pad>")
    tokenizer.add_special_tokens({"additional_special_tokens": special or []})
    return tokenizer


def test_tokens_are_those_of_transformers(tmp_path: Path) -> None:
    folder, special = tokenizer_folder(tmp_path / "tokens"), ["<verse>", "<chorus>"]
    part = part_of({"type": "vocab", "model": str(folder), "special_tokens": special})
    tokenizer = theirs(folder, special)
    assert part.table.num_embeddings == len(tokenizer)
    for text in ("<verse> sad piano", "ÿ?", *TEXTS, "<chorus><verse>"):
        assert ids(part, text) == tokenizer.encode(text)
    fields = {"max_length": 6, "pad_to": "max_length", "empty_text": "encode"}
    short = part_of({"type": "vocab", "model": str(folder)}, **fields)
    texts = ["a choir of violins", "", "a"]
    expected = theirs(folder)(texts, padding="max_length", truncation=True, max_length=6, return_tensors="pt")
    n = len(theirs(folder).encode(texts[0]))
    with pytest.warns(UserWarning, match=rf"a text has {n} tokens, 6 are read .*: the last {n - 6} are lost"):
        prepared = short.prepare(texts)
    assert torch.equal(prepared.tensors["ids"], expected["input_ids"])
    assert torch.equal(prepared.tensors["mask"].long(), expected["attention_mask"])


def test_tokenizers_in_other_files(tmp_path: Path) -> None:
    """A vocabulary of BERT, which `transformers` knows how to use."""
    folder = tmp_path / "bert"
    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "drum", "##s", "piano"]))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer", "pad_token": "[PAD]"}))
    part = part_of({"type": "vocab", "model": str(folder)})
    assert ids(part, "Drums piano") == [2, 4, 5, 6, 3]
    (tmp_path / "none").mkdir()
    with pytest.raises(CheckpointError, match="has no tokenizer that can be read"):
        part_of({"type": "vocab", "model": str(tmp_path / "none")})
    with pytest.raises(CheckpointError, match="has 8 tokens, not 9; fix `size`"):
        ids(part_of({"type": "vocab", "model": str(folder), "size": 9}), "drums")


def test_folders_are_copied_into_a_saved_system(tmp_path: Path) -> None:
    """What is saved needs no folder that it came from, wherever it is moved."""
    for which in ("spacy", "vocab"):
        fields = variants(tmp_path / which)[which]
        parts = ConditionerSet({"a/b": part_of(fields.pop("tokenizer"), **fields)})
        expected = ids(parts["a/b"], TEXTS[0])  # type: ignore[arg-type]
        (tmp_path / "saved").mkdir()
        spec = parts.save_assets(tmp_path / "saved")["a/b"]
        assert spec.tokenizer.model == "./conditioners/a%2Fb"
        moved = (tmp_path / "saved").rename(tmp_path / f"moved {which}")
        (tmp_path / which).rename(tmp_path / f"gone {which}")
        found = ConditionerSpec.parse(json.loads(spec.to_json())).resolve_paths(moved)
        _load_spacy.cache_clear()
        with torch.device("meta"):
            there = found.build()
        assert ids(there, TEXTS[0]) == expected
        assert {k: x.shape for k, x in there.state_dict().items()} == {k: x.shape for k, x in parts["a/b"].state_dict().items()}
        assert found.resolve_paths(tmp_path) == found, "only what was put there is looked for there"


def test_embeddings_are_projected_masked_and_placed() -> None:
    part = part_of("words", dim=3, max_length=5, positions=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        prepared = part.prepare(["piano and drums", "drums"])
    made = part(part.encode(prepared))
    place = part.places.weight / 4**0.5
    for i, row in enumerate(["piano", "and", "drums"]):
        x = part.table.weight[hash_to_row(row, 8192)] @ part.out.weight.T + part.out.bias + place[i]
        torch.testing.assert_close(made.embeddings[0, i], x)
    torch.testing.assert_close(made.embeddings[1, 1:], place[1:3])
    assert not part_of("words").state_dict().keys() & {"out.weight", "places.weight"}
    with pytest.warns(UserWarning, match="a text has 7 tokens, 5 are read"):
        part.prepare(["one two three four five six seven"])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokenizer": "word"}, "tokenizer"),
        ({"positions": True}, "positions needs max_length"),
        ({"pad_to": "max_length"}, "pad_to: max_length needs max_length"),
        ({"tokenizer": "whole", "max_length": 3}, "max_length: not supported by tokenizer: whole"),
        ({"tokenizer": {"type": "words", "bin": 3}}, "bin: unknown field. Did you mean 'bins'"),
        ({"tokenizer": {"type": "vocab"}}, "model: Field required"),
    ],
)
def test_mistakes_are_explained(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        LutSpec.parse({"type": "lut", "output_dim": 4} | fields)


@pytest.mark.parametrize("value", [140, ["a"], {"text": "a"}])
def test_only_texts_are_read(value: Any) -> None:
    call: Callable[[], Any] = lambda: part_of("words").prepare([value])  # noqa: E731
    with pytest.raises(RequestError, match=r"a text is needed, got .*put it in quotes"):
        call()
