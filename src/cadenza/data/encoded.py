"""EncodedClips: windows of frames from an encoded store as items."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch.utils.data import Dataset

from cadenza.codecs.base import Codec
from cadenza.core.errors import DataError
from cadenza.core.types import Codes, Latents
from cadenza.data.items import SampleIndex, SegmentInfo, ToItem, pick_alternatives, sample_rng, select_holdout, select_keys
from cadenza.data.store import EncodedStore
from cadenza.dsp.audio import Audio


class EncodedDataset(Dataset[dict[str, Any]]):
    """Windows of `frames` frames, short clips padded with zeros and with their true length.

    A clip counts as often as it holds whole windows (at least once), as in `Clips`. With `codec` given, a store that
    another codec made is refused. `only` limits which clips there are, by number. `to_item` makes items of the metadata.
    """

    def __init__(  # noqa: PLR0913
        self, store: EncodedStore | str | Path, *, frames: int, seed: int = 0, fixed: bool = False,
        ids: Collection[str] | None = None, codec: Codec | None = None, only: Sequence[int] | None = None,
        to_item: ToItem | None = None,
    ) -> None:  # fmt: skip
        if frames < 1:
            raise DataError(f"windows of {frames} frames hold nothing; give at least 1")
        self.store = store if isinstance(store, EncodedStore) else EncodedStore(store, codec=codec)
        if codec is not None and isinstance(store, EncodedStore):
            store.header.check_codec(codec, store.path)
        self.frames, self.seed, self.fixed, self.ids, self.to_item = frames, seed, fixed, ids, to_item
        clips = range(len(self.store)) if only is None else only
        self.places = [(clip, part) for clip in clips for part in range(max(1, self.store.length(clip) // frames))]

    def __len__(self) -> int:
        return len(self.places)

    @property
    def frame_rate(self) -> float:
        return self.store.header.frame_rate

    def name(self, index: int) -> str:
        return self.store.metadata(self.places[index][0])["id"]

    def __getitem__(self, draw: SampleIndex | int) -> dict[str, Any]:
        draw = draw if isinstance(draw, SampleIndex) else SampleIndex(draw)
        rng = None if self.fixed else sample_rng(self.seed, draw)
        clip, part = self.places[draw.index]
        shard, inside = self.store.locate(clip)
        header, total = shard.header, self.store.length(clip)
        spare = max(0, total - self.frames)
        start = min(part * self.frames, spare) if rng is None else rng.randint(0, spare)
        length = min(self.frames, total - start)
        found = shard.frames(inside, start, start + length)
        room = found.new_zeros(1, header.rows, self.frames)
        room[0, : len(found), :length] = found
        samples = torch.tensor([max(0, min(length * header.hop, shard.samples[inside] - start * header.hop))])
        metadata = shard.metadata(inside)
        times = {
            "seconds_start": start * header.hop / header.sample_rate,
            "seconds_total": shard.samples[inside] / header.sample_rate,
        }
        if self.to_item is not None:
            name = f"{self.store.path}:{metadata['id']}"
            segment = SegmentInfo(metadata["id"], name, times["seconds_start"], times["seconds_total"], rng, _no_audio)
            metadata = self.to_item(metadata, segment)
            if metadata is None:
                raise DataError(f"{name}: a window of codes cannot be rejected; leave the clip out before it is encoded")
        item = {**times, **pick_alternatives(select_keys(metadata, self.ids), rng), "id": self.name(draw.index)}
        if header.kind == "latents":
            return {**item, "latents": Latents(room, torch.tensor([length]), samples)}
        scale = None if shard.scale is None else shard.scale[inside : inside + 1]
        return {**item, "codes": Codes(room, torch.tensor([length]), samples, scale)}

    def split(self, count: int) -> tuple[Self, Self]:
        """The data set without, and as fixed windows with only, `count` clips held out by the hash of their ids."""
        clips = sorted({clip for clip, _ in self.places})
        if not 0 <= count < len(clips):
            raise DataError(f"cannot hold out {count} of {len(clips)} clips; leave at least one to train on")
        names = {clip: self.store.metadata(clip)["id"] for clip in clips}
        out = select_holdout(names.values(), count)
        same = {"frames": self.frames, "seed": self.seed, "ids": self.ids, "to_item": self.to_item}
        rest = [clip for clip in clips if names[clip] not in out]
        held = [clip for clip in clips if names[clip] in out]
        return type(self)(self.store, **same, fixed=self.fixed, only=rest), type(self)(
            self.store, **same, fixed=True, only=held
        )


def _no_audio() -> Audio:
    raise DataError("an encoded store holds no audio; make what needs it before the store is, or train on the audio")
