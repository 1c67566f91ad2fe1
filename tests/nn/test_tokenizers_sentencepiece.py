"""SentencePiece files, as protocol buffers write them."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models
from transformers.utils import sentencepiece_model_pb2_new as spm

from cadenza.nn.tokenizers import load_sentencepiece

PIECES = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -2.0), ("▁drum", -3.0), ("s", -2.5), ("d", -4.0), ("rum", -3.5)]
PIECES += [("▁très", -5.0), ("ü", -6.0)]


def written(path: Path, *, kind: int = 1) -> Path:
    proto = spm.ModelProto()
    for i, (piece, score) in enumerate(PIECES):
        proto.pieces.add(piece=piece, score=score, type={0: 3, 1: 3, 2: 2}.get(i, 1))
    proto.trainer_spec.model_type = kind
    proto.trainer_spec.vocab_size = len(PIECES)
    proto.trainer_spec.unk_surface = " ? "
    proto.trainer_spec.self_test_sample_size = 300
    proto.normalizer_spec.name = "identity"
    proto.denormalizer_spec.name = "none"
    path.write_bytes(proto.SerializeToString())
    return path


def test_pieces_and_scores_equal_the_file(tmp_path: Path) -> None:
    tokenizer = load_sentencepiece(written(tmp_path / "spiece.model"))
    vocabulary = tokenizer.get_vocab()
    assert [vocabulary[piece] for piece, _ in PIECES] == list(range(len(PIECES)))
    assert tokenizer.encode("drums  très\tdrum").ids == [4, 5, 8, 4]
    assert tokenizer.encode("x").tokens == ["▁", "x"] and tokenizer.encode("x").ids == [3, 2]
    assert tokenizer.encode("</s>").ids == [1], "marks are one token"
    best = Tokenizer(models.Unigram(PIECES, unk_id=2))
    for text in ("▁drums", "▁d", "▁rumü"):
        assert tokenizer.model.tokenize(text)[0].id == best.encode(text).ids[0]


@pytest.mark.parametrize("kind", [2, 3, 4])
def test_other_model_types_are_rejected(tmp_path: Path, kind: int) -> None:
    with pytest.raises(ValueError, match="is not a unigram model"):
        load_sentencepiece(written(tmp_path / "spiece.model", kind=kind))


@pytest.mark.parametrize("content", [b"", b"{}", b"\x00" * 40, b"\xff" * 40, "short"])
def test_invalid_files_are_rejected(tmp_path: Path, content: bytes | str) -> None:
    path = written(tmp_path / "spiece.model")
    path.write_bytes(path.read_bytes()[:-3] if isinstance(content, str) else content)
    with pytest.raises(ValueError, match=r"spiece.model is not a (SentencePiece|unigram) model"):
        load_sentencepiece(path)
