"""System: a codec, and a generator steered by conditioners."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cadenza.codecs.base import Codec, Decoder
from cadenza.conditioners.base import Conditioners, Prepared
from cadenza.core.errors import RequestError
from cadenza.core.spec import near
from cadenza.core.types import Branch, Codes, Condition, Fused, Latents
from cadenza.dsp.audio import Audio
from cadenza.generators.base import Generator, Plan
from cadenza.samplers.guidance import classifier_free
from cadenza.system import store
from cadenza.system.card import Card
from cadenza.system.fusion import Keep, drop_all, fuse
from cadenza.system.reading import read
from cadenza.system.request import Clip, Request
from cadenza.system.spec import SystemSpec

Progress = Callable[[int, int], None]  # frames done, frames in all


class System(nn.Module):
    """Everything a saved folder holds; `generator` is None for a codec alone."""

    generator: Generator | None

    def __init__(self, spec: SystemSpec, card: Card | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.card = card or Card()
        self.codec: Codec = spec.codec.build()
        self.conditioners = Conditioners({name: part.build() for name, part in spec.conditioners.items()})
        self.generator = None if spec.generator is None else spec.generator.build(spec.codec.grid, spec.widths())

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def prepare(self, items: Sequence[Mapping[str, Any]]) -> dict[str, Prepared]:
        """Items as CPU tensors; RequestError names an id that no conditioner knows or a value it cannot use."""
        known = list(self.conditioners)
        for item in items:
            for name in item:
                if name not in self.conditioners:
                    raise RequestError(f"no condition called '{name}'.{near(name, known)}")
        return self.conditioners.prepare(items)

    def read(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """An item of a request with the values that its texts say, by the rules of `spec.reads`."""
        return read(item, self.spec.reads, self.conditioners)

    def condition(self, prepared: Mapping[str, Prepared]) -> dict[str, Condition]:
        """Prepared values as conditions, on the system's device."""
        there = {name: values.to(self.device) for name, values in prepared.items()}
        return self.conditioners(self.conditioners.features(there))

    def fuse(self, conditions: Mapping[str, Condition], *, frames: int, keep: Keep | None = None) -> Fused:
        return fuse(conditions, self.spec.fusion, frames=frames, keep=keep)

    @classmethod
    def load(cls, folder: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> "System":
        """The system in a folder, in evaluation mode; every weight must be there and none may be left over."""
        stored = store.read(folder)
        system = cls(stored.spec, stored.card)
        store.check(stored.weights, system.state_dict(), str(folder))
        system.load_state_dict(stored.weights)
        return system.eval().requires_grad_(False).to(device=device, dtype=dtype)

    def save(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Writes `system.json`, the weights (as `dtype`, or as they are) and the card; never partly."""
        store.write(store.Stored(self.spec, self.card, self.state_dict()), folder, dtype=dtype)

    def generate(self, request: Any, *, progress: Progress | None = None, **fields: Any) -> Audio:
        """The clips of a request as one batch.

        `request` is a prompt, an item (`{"prompt": ..., "tempo": 90}`), a list of either, or a Request; `fields`
        are those of Request (seconds, seed, guidance, sampling, variations). The same item and seed give the same
        tokens alone and in any batch (float32). Raises RequestError for what the system cannot do.
        """
        frames, samples = self._frames(Request.of(request, **fields), progress)
        audio = self.codec.decode(frames)
        return Audio(audio.wave[..., : int(samples.max())], audio.sample_rate, torch.minimum(audio.lengths, samples))

    def stream(self, request: Any, **fields: Any) -> Iterator[Audio]:
        """The same samples as `generate`, chunk by chunk as their frames are finished; closing it cancels.

        A chunk's lengths say how many samples are true for each clip: none once it has ended.
        """
        with torch.inference_mode():
            chunks, samples = self._begin(Request.of(request, **fields))
        return _decoded(chunks, self.codec.decoder(), samples)

    @torch.inference_mode()
    def _frames(self, request: Request, progress: Progress | None) -> tuple[Any, Tensor]:
        chunks, samples = self._begin(request)
        total = math.ceil(int(samples.max()) / self.spec.codec.hop)
        done, parts = 0, []
        for chunk in chunks:
            parts.append(chunk)
            done += (chunk.ids if isinstance(chunk, Codes) else chunk.z).shape[-1]
            if progress is not None:
                progress(min(done, total), total)
        if progress is not None:
            progress(total, total)
        return type(parts[0]).join(parts), samples

    def _begin(self, request: Request) -> tuple[Iterator[Codes | Latents], Tensor]:
        """The generator's stream for a request, and the samples of each clip."""
        if self.generator is None:
            raise RequestError("this system is a codec alone: it encodes and decodes, but cannot generate")
        clips = request.clips()
        samples = torch.tensor([self._samples(clip) for clip in clips], device=self.device)
        frames = torch.tensor([math.ceil(n / self.spec.codec.hop) for n in samples.tolist()], device=self.device)
        guidance = self.spec.defaults.guidance if request.guidance is None else request.guidance
        sampling = {**self.spec.defaults.sampling, **(request.sampling or {})}
        assert self.spec.generator is not None
        how = self.spec.generator.sampling.parse(sampling, source="sampling")
        branches = self._branches([self.read(clip.item) for clip in clips], guidance, int(frames.max()))
        plan = Plan(frames, [clip.seed for clip in clips], how)
        return self.generator.stream(branches, plan), samples

    def _branches(self, items: Sequence[Mapping[str, Any]], guidance: float, frames: int) -> list[Branch]:
        """The conditions at the weight of `guidance`, and the rest without any."""
        conditions = self.condition(self.prepare(items))
        given = self.fuse(conditions, frames=frames)
        keep = drop_all(self.spec.fusion, len(items), self.device)
        return classifier_free(given, self.fuse(conditions, frames=frames, keep=keep), guidance)

    def _samples(self, clip: Clip) -> int:
        assert self.spec.generator is not None
        longest = self.spec.generator.context / self.codec.grid.frame_rate
        seconds = min(self.spec.defaults.seconds, longest) if clip.seconds is None else clip.seconds
        if seconds > longest:
            raise RequestError(f"{seconds:g} seconds are too long: this model makes up to {longest:g} seconds in one piece")
        return max(1, round(seconds * self.spec.codec.sample_rate))


@torch.inference_mode()
def _decoded(chunks: Iterator[Codes | Latents], decoder: Decoder, left: Tensor) -> Iterator[Audio]:
    """Audio of each chunk of frames, until each clip has its samples."""
    for audio in chain(map(decoder.push, chunks), _last(decoder)):
        lengths = torch.minimum(audio.lengths, left)
        left = left - lengths
        if int(lengths.max()) > 0:
            yield Audio(audio.wave[..., : int(lengths.max())], audio.sample_rate, lengths)


def _last(decoder: Decoder) -> Iterator[Audio]:
    yield decoder.finish()
