"""A batch of clips through a network piece by piece, each clip ending where its own frames end."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Self

from jaxtyping import Float
from torch import Tensor


class BatchStream(ABC):
    """What comes out, put together, is the network's answer to each whole clip."""

    clips: list[int] | None = None  # those that have not ended, in the order of the rows; None before the first piece

    def push(self, z: Float[Tensor, "b d f"], lengths: Sequence[int]) -> dict[int, Float[Tensor, "c t"]]:
        """The new samples of each clip that has some; a clip with fewer frames than the others ends here."""
        if self.clips is None:
            self.clips = list(range(len(z)))
        clips = self.clips
        rows = [row for row, clip in enumerate(clips) if lengths[clip] == z.shape[-1]]
        given = {}
        for row, clip in enumerate(clips):
            if row not in rows:
                given |= _by_clip([clip], self.select([row]).step(z[[clip], :, : lengths[clip]], last=True))
        if len(rows) < len(clips):
            vars(self).update(vars(self.select(rows)))
        return given | (_by_clip(self.clips, self.step(z[self.clips], last=False)) if rows else {})

    def flush(self) -> dict[int, Float[Tensor, "c t"]]:
        """The last samples of each clip that had not ended."""
        return _by_clip(self.clips, self.step(None, last=True)) if self.clips else {}

    @abstractmethod
    def step(self, z: Float[Tensor, "r d f"] | None, *, last: bool) -> Float[Tensor, "r c t"] | None:
        """The samples of all rows that are now determined, if any; after the `last` frames all of them."""

    @abstractmethod
    def select(self, rows: list[int]) -> Self:
        """The same for some of the rows, with `clips` of their own."""


def _by_clip(clips: list[int], wave: Tensor | None) -> dict[int, Tensor]:
    return {} if wave is None else dict(zip(clips, wave, strict=True))
