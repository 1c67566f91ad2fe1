"""Byte pair encoding (Sennrich et al. 2016, arXiv:1508.07909) over the bytes of words.

Piece i is the byte i below 256, and above it the join of the two pieces in row i - 256 of `merges`.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heappush
from itertools import pairwise

BYTES = 256
_KEPT = 1 << 16  # words whose pieces are remembered

Merges = list[tuple[int, int]]


class BPETokenizer:
    """Words to the ids of their pieces, by the merges learnt first."""

    def __init__(self, merges: Sequence[tuple[int, int]] = ()) -> None:
        self._id = {pair: BYTES + i for i, pair in enumerate(merges)}
        self._known: dict[str, list[int]] = {}

    def encode_word(self, word: str) -> list[int]:
        """The ids of a word's pieces; every word has some."""
        if word in self._known:
            return self._known[word]
        ids = list(word.encode("utf-8", "replace"))
        while len(ids) > 1:
            first = min(pairwise(ids), key=lambda pair: self._id.get(pair, float("inf")))
            if first not in self._id:
                break
            ids = _join(ids, first, self._id[first])
        if len(self._known) < _KEPT:
            self._known[word] = ids
        return ids


def train_bpe(counts: Mapping[str, int], pieces: int) -> Merges:
    """At most `pieces` merges, the most frequent pair first; of equals the one with the lowest ids."""
    words = [(list(word.encode("utf-8", "replace")), count) for word, count in sorted(counts.items())]
    frequency: Counter[tuple[int, int]] = Counter()
    places: defaultdict[tuple[int, int], set[int]] = defaultdict(set)
    for place, (ids, count) in enumerate(words):
        for pair in pairwise(ids):
            frequency[pair] += count
            places[pair].add(place)
    heap = [(-count, pair) for pair, count in frequency.items()]
    heapify(heap)
    merges: Merges = []
    while heap and len(merges) < pieces:
        count, best = heappop(heap)
        if -count != frequency[best]:  # an entry of before a merge; its successor is in the heap too
            continue
        if -count < 2:  # a pair seen once is no regularity
            break
        changed: set[tuple[int, int]] = set()
        for place in places.pop(best):
            old, count = words[place]
            new = _join(old, best, BYTES + len(merges))
            for pair in pairwise(old):
                frequency[pair] -= count
            for pair in pairwise(new):
                frequency[pair] += count
                places[pair].add(place)
            changed.update(pairwise(old), pairwise(new))
            words[place] = (new, count)
        for pair in changed:
            heappush(heap, (-frequency[pair], pair))
        merges.append(best)
    return merges


def _join(ids: Sequence[int], pair: tuple[int, int], joined: int) -> list[int]:
    out: list[int] = []
    for piece in ids:
        if out and (out[-1], piece) == pair:
            out[-1] = joined
        else:
            out.append(piece)
    return out
