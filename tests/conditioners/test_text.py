"""The text conditioner on what users really write."""

import pickle
import subprocess
import sys
import warnings
from typing import Any

import pytest
import torch

from cadenza.conditioners.base import PreparedInputs
from cadenza.conditioners.text import TextConditioner, TextSpec, split_words
from cadenza.core.errors import RequestError, SpecError

CAPTIONS = [f"{mood} piano in {key} major, {tempo} bpm" for mood in ("slow", "gentle") for key in "ABC" for tempo in (80, 120)]


def text(**fields: int) -> TextConditioner:
    return TextSpec.example()[0].model_copy(update=fields).build().eval()


def tokens(part: TextConditioner, value: str) -> list[int]:
    prepared = part.prepare([value])
    return prepared.tensors["ids"][prepared.tensors["mask"]].tolist()


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("80BPM", ["8", "0", "bpm"]),
        ("Slow,  PIANO\n", ["slow", ",", "piano"]),
        ("F# major / B♭ minor", ["f", "#", "major", "/", "bb", "minor"]),
        ("４／４ ﬁne", ["4", "/", "4", "fine"]),  # full-width digits and a ligature
        ("C♯4_x", ["c", "#", "4", "_", "x"]),
        ("", []),
        ("音楽 e\u0301", ["音楽", "é"]),
        ("x" * 70, ["x" * 32, "x" * 32, "x" * 6]),
    ],
)
def test_words(written: str, meant: list[str]) -> None:
    assert list(split_words(written)) == meant


@pytest.mark.parametrize(
    "value", ["zzzyx qwörtz", "pinao in A mjaor", "\ud800", "🎹🎻", "\x00", "120", "-1.5e9", "ة ุ", "a" * 100_000]
)
def test_reads_anything(value: str) -> None:
    part = text()
    part.prepare_training(CAPTIONS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        prepared = part.prepare([value])
    assert prepared.present.all() and torch.isfinite(part(prepared).embeddings).all()
    assert 0 <= int(prepared.tensors["ids"].min()) and int(prepared.tensors["ids"].max()) < part.spec.vocabulary


def test_long_texts_are_cut_and_said_to_be() -> None:
    part = text(max_tokens=48)
    with pytest.warns(UserWarning, match="longer than 48 tokens"):
        ids = tokens(part, "word " * 10_000)
    assert ids == [*b"word" * 12]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(tokens(part, "word " * 12)) == 48  # exactly full is not too long


def test_empty_texts_are_absent() -> None:
    assert text().prepare(["", " \n", None, "x"]).present.tolist() == [False, False, False, True]


@pytest.mark.parametrize("value", [5, 1.5, ["a"], b"a", True])
def test_refuses_what_is_no_text(value: Any) -> None:
    with pytest.raises(RequestError, match="a text is needed, got"):
        text().prepare([value])


def test_case_and_spacing_do_not_count() -> None:
    part = text()
    part.prepare_training(CAPTIONS)
    assert tokens(part, "SLOW Piano  80bpm") == tokens(part, "slow piano 80 BPM")
    assert tokens(part, "80") != tokens(part, "08")


def test_fit_joins_what_is_frequent() -> None:
    part = text()
    before = len(tokens(part, CAPTIONS[0]))
    part.prepare_training(CAPTIONS)
    after = tokens(part, CAPTIONS[0])
    assert before == sum(len(word.encode()) for word in split_words(CAPTIONS[0]))
    assert len(after) == len(list(split_words(CAPTIONS[0]))), "each frequent word is one piece"
    assert tokens(part, "8") == [ord("8")] and tokens(part, "120") == [*b"120"], "digits are never joined"


def test_fit_is_the_same_in_another_process() -> None:
    """Whatever the hash seed."""
    part = text()
    part.prepare_training(CAPTIONS)
    code = (
        "from cadenza.conditioners.text import TextSpec; part = TextSpec.example()[0].build();"
        f"part.prepare_training({CAPTIONS!r}[::-1]); print(part.merges.tolist())"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": "7"})
    assert out.stdout.strip() == str(part.merges.tolist())


def test_vocabulary_travels_with_the_weights() -> None:
    part = text()
    part.prepare_training(CAPTIONS)
    other = text()
    assert tokens(other, CAPTIONS[0]) != tokens(part, CAPTIONS[0])
    other.load_state_dict(part.state_dict())
    assert tokens(other, CAPTIONS[0]) == tokens(part, CAPTIONS[0])
    carried = pickle.loads(pickle.dumps(part))  # as data workers get it
    assert tokens(carried, CAPTIONS[0]) == tokens(part, CAPTIONS[0])
    other.prepare_training(["other words"])
    assert tokens(other, CAPTIONS[0]) != tokens(part, CAPTIONS[0]), "an earlier vocabulary is forgotten"


def test_padding_never_matters() -> None:
    """Not even what it holds."""
    part = text()
    ids = torch.tensor([[1, 2, 3, 4, 5], [6, 7, 0, 0, 0]])
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]])
    there = torch.tensor([True, True])
    out = part(PreparedInputs({"ids": ids, "mask": mask}, there))
    other = part(PreparedInputs({"ids": ids.where(mask, 99), "mask": mask}, there))
    assert torch.equal(out.embeddings, other.embeddings) and not out.embeddings[~mask].any()
    alone = part(PreparedInputs({"ids": ids[1:, :2], "mask": mask[1:, :2]}, there[1:]))
    torch.testing.assert_close(out.embeddings[1, :2], alone.embeddings[0], atol=1e-6, rtol=1e-5)


def test_order_matters_and_both_directions_are_read() -> None:
    part = text()
    one, other = (part(part.prepare([value])).embeddings for value in ("ab c", "ca b"))
    assert not torch.allclose(one[:, [0, 1, 2]], other[:, [1, 2, 0]], atol=1e-4), "the same tokens elsewhere"
    first, changed = (part(part.prepare([value])).embeddings[:, 0] for value in ("a b c", "a b d"))
    assert not torch.allclose(first, changed), "the first token knows of the last"


def test_positions_are_relative() -> None:
    """Attention with rotary positions is the same wherever a text stands (Su et al. 2021, equation 16)."""
    part = text()
    wide = torch.tensor([[5, 9, 7, 0, 0], [0, 0, 5, 9, 7]])
    mask = torch.tensor([[True, True, True, False, False], [False, False, True, True, True]])
    out = part(PreparedInputs({"ids": wide, "mask": mask}, torch.tensor([True, True])))
    torch.testing.assert_close(out.embeddings[0, :3], out.embeddings[1, 2:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("fields", [{"dim": 18, "heads": 4}, {"vocabulary": 255}, {"max_tokens": 0}, {"heads": 0}])
def test_refuses_sizes_that_do_not_fit(fields: dict[str, int]) -> None:
    with pytest.raises(SpecError):
        TextSpec.parse({"type": "text", "output_dim": 8, **fields})


def test_half_precision_stays_close() -> None:
    part = text()
    values = ["slow piano", "x"]
    full = part(part.prepare(values)).embeddings
    half = part.to(torch.bfloat16)(part.prepare(values)).embeddings
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), full, atol=0.1, rtol=0.1)
