"""Byte pair encoding, compared with a count by hand and with ids of an independent implementation."""

import json
from collections import Counter
from pathlib import Path

from cadenza.core.hub import read_folder
from cadenza.nn.tokenizers import BYTES, BPETokenizer, train_bpe

WORDS = "piano pianos pianist pine pipe organ organic violin violins viola bass bassoon brass drums drum drumming".split()


def spelled(ids: list[int], merges: list[tuple[int, int]]) -> list[bytes]:
    pieces = [bytes([i]) for i in range(BYTES)]
    for left, right in merges:
        pieces.append(pieces[left] + pieces[right])
    return [pieces[i] for i in ids]


def test_most_frequent_pair_is_merged_first() -> None:
    """The example of the paper (Sennrich et al. 2016, section 3.2), without its end-of-word mark."""
    counts = {"low": 5, "lower": 2, "newest": 6, "widest": 3}
    merges = train_bpe(counts, 3)
    assert [spelled([BYTES + i], merges)[0] for i in range(3)] == [b"es", b"est", b"lo"]
    assert spelled(BPETokenizer(merges).encode_word("slowest"), merges) == [b"s", b"lo", b"w", b"est"]


def test_ids_of_saved_models_stay_the_same() -> None:
    """With the starter's merges, the ids that the first implementation (our own merge loop, until November 2026) gave."""
    root = Path(__file__).parents[2]
    stored: dict[str, list[int]] = json.loads((root / "tests/golden/bpe_starter_ids.json").read_text())
    table = read_folder(root / "src/cadenza/bundled/starter")["conditioners.prompt.merges"]
    merges = [(left, right) for left, right in table.tolist() if left >= 0]
    tokenizer = BPETokenizer(merges)
    assert {word: tokenizer.encode_word(word) for word in stored} == stored


def test_counts_stay_right_while_merging() -> None:
    """Compare with counting all pairs again before each merge."""
    words = {word: [*word.encode()] for word in [*WORDS, "aaaaa", "aabaab"]}
    counts = {word: 2 + 7 * i % 11 for i, word in enumerate(words)}
    slow = []
    while len(slow) < 80:
        pairs: Counter[tuple[int, int]] = Counter()
        for word, ids in words.items():
            for pair in zip(ids, ids[1:], strict=False):
                pairs[pair] += counts[word]
        best = min(pairs, key=lambda pair: (-pairs[pair], pair), default=None)
        if best is None or pairs[best] < 2:
            break
        for word, ids in words.items():
            out, i = [], 0
            while i < len(ids):
                joins = tuple(ids[i : i + 2]) == best
                out.append(BYTES + len(slow) if joins else ids[i])
                i += 2 if joins else 1
            words[word] = out
        slow.append(best)
    assert train_bpe(counts, 80) == slow


def test_no_merges_without_repeated_pairs() -> None:
    assert train_bpe({}, 10) == [] and train_bpe({"once": 1}, 10) == [] and train_bpe({"word": 5}, 0) == []
    assert BPETokenizer().encode_word("é") == [0xC3, 0xA9]
