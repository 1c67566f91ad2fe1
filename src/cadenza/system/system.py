"""System: a codec, and a generator steered by conditioners."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn

from cadenza.codecs.base import Codec, Decoder
from cadenza.conditioners.base import Conditioners, Prepared
from cadenza.core.errors import RequestError
from cadenza.core.memory import free_on
from cadenza.core.spec import near
from cadenza.core.types import Branch, Codes, Condition, Fused, Latents
from cadenza.dsp.audio import Audio
from cadenza.generators.base import Generator, Plan
from cadenza.nn.quantized import KINDS, fit, kind_of, suits
from cadenza.nn.unfilled import unfilled
from cadenza.samplers.guidance import strength, terms
from cadenza.system import store, windows
from cadenza.system.card import Card
from cadenza.system.continuation import after, after_frames, check, known
from cadenza.system.features import FeatureCache
from cadenza.system.fitting import Fit, beside, fitted, groups
from cadenza.system.forecast import Job, samples_of
from cadenza.system.fusion import Keep, fuse, keep_only
from cadenza.system.level import levelled
from cadenza.system.reading import read
from cadenza.system.request import Request
from cadenza.system.spec import SystemSpec

Progress = Callable[[int, int], None]  # frames done, frames in all
_ALONE = "this system is a codec alone: it encodes and decodes, but cannot generate"


class System(nn.Module):
    """Everything a saved folder holds; `generator` is None for a codec alone."""

    generator: Generator | None
    cache: FeatureCache | None = None  # of what frozen encoders make of values; None: it is made every time

    def __init__(self, spec: SystemSpec, card: Card | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.card = card or Card()
        self.codec: Codec = spec.codec.build()
        self.conditioners = _conditioners(spec)
        self.generator = None if spec.generator is None else spec.generator.build(spec.codec.grid, spec.widths())

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def quantized(self) -> str | None:
        """What the generator's weights are: int8, int4, or None for floating point."""
        return None if self.generator is None else kind_of(self.generator)

    def quantize(self, kind: str) -> "System":
        """Makes the generator's weights 8 or 4 bits wide, those of frozen encoders and LSTMs 8, in place; gives itself.

        What is computed with them stays in floating point; on the CPU, keys and values are kept in 8 bits too. It can
        generate, be saved and loaded, but not be trained. RequestError where the kind suits neither the model nor
        its device.
        """
        if self.generator is None:
            raise RequestError("this system is a codec alone, and codecs are not quantised; leave quantize out")
        if kind not in KINDS:
            raise RequestError(f"there is no quantisation '{kind}'; there are: {', '.join(KINDS)}")
        suits(kind, self.device)
        if self.quantized not in (None, kind):
            raise RequestError(f"this model's weights are {self.quantized}; to have {kind}, load what they were made of")
        if self.quantized is None:
            self.generator.quantize(kind)  # type: ignore[arg-type]
            self.codec.narrow()
        self.conditioners.narrow()
        return self

    def prepare(self, items: Sequence[Mapping[str, Any]], *, frames: int = 0) -> dict[str, Prepared]:
        """Items as CPU tensors, enough of them for clips of `frames` frames.

        RequestError names an id that no conditioner knows or a value it cannot use.
        """
        known = self.conditioners.ids()
        for item in items:
            for name in item:
                if name not in known:
                    raise RequestError(f"no condition called '{name}'.{near(name, known)}")
        return self.conditioners.prepare(items, frames=frames)

    def read(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """An item of a request with the values that its texts say, by the rules of `spec.reads`."""
        return read(item, self.spec.reads, self.conditioners)

    def condition(self, prepared: Mapping[str, Prepared]) -> dict[str, Condition]:
        """Prepared values as conditions, on the system's device."""
        if self.cache is not None:
            return self.conditioners(self.cache.features(self.conditioners, prepared, self.device))
        there = {name: values.to(self.device) for name, values in prepared.items()}
        return self.conditioners(self.conditioners.features(there))

    def fuse(
        self,
        conditions: Mapping[str, Condition],
        *,
        frames: int,
        keep: Keep | None = None,
        lengths: Int[Tensor, " b"] | None = None,
    ) -> Fused:
        """Conditions in the generator's slots, for clips of `lengths` frames, all of them `frames` where none are given."""
        rate = self.codec.grid.frame_rate
        return fuse(conditions, self.spec.fusion, frames=frames, keep=keep, lengths=lengths, rate=rate)

    @classmethod
    def load(cls, folder: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> "System":
        """The system in a folder, in evaluation mode; every weight must be there and none may be left over."""
        return cls.of(store.read(folder), source=str(folder)).to(device=device, dtype=dtype)

    @classmethod
    def of(cls, stored: store.Stored, *, source: str) -> "System":
        """The system that was read from `source`, in evaluation mode, made of its weights as they are."""
        with unfilled():  # where no numbers are drawn that the weights would replace
            system = cls(stored.spec, stored.card)
            system._fit(stored.weights)
        store.check(stored.weights, system.state_dict(), source)
        system.conditioners = _conditioners(stored.spec)  # as these may hold more than weights
        system.load_state_dict(stored.weights, assign=True)
        if any(x.is_meta for x in chain(system.parameters(), system.buffers())):  # a part computes some of its tensors
            system = cls(stored.spec, stored.card)
            system._fit(stored.weights)
            system.load_state_dict(stored.weights)
        if system.quantized is not None:
            system.conditioners.narrow()
        return system.eval().requires_grad_(False)

    def _fit(self, weights: Mapping[str, Tensor]) -> None:
        """Becomes a system that such weights are of, quantised or not."""
        if any(key.endswith(".packed") for key in weights):
            self.codec.narrow()
        fit(self, weights)

    def save(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Writes `system.json`, the weights (as `dtype`, or as they are), the card and what conditioners keep; never partly."""
        stored = store.Stored(self.spec, self.card, self.state_dict())
        store.write(stored, folder, dtype=dtype, keep=self.conditioners.keep)

    def generate(self, request: Any, *, progress: Progress | None = None, **fields: Any) -> Audio:
        """The clips of a request as one batch.

        `request` is a prompt, an item (`{"prompt": ..., "tempo": 90}`), None for neither, a list of these, or a
        Request; `fields` are those of Request (seconds, seed, guidance, continue_from, ...). The same item and seed
        give the same tokens alone and in any batch (float32). Raises RequestError for what the system cannot do.
        """
        asked = Request.of(request, **fields)
        course = self.plan(asked).course
        parts, made = groups(asked, course.together), []
        for i, part in enumerate(parts):
            work = self._begin(part)
            frames = work.frames(None if progress is None else _share(progress, i, len(parts)))
            made.append(after(self.codec.decode_by(frames, course.piece), work.skip * self.spec.codec.hop))
        audio = made[0] if len(made) == 1 else Audio.stack(made)
        return audio if asked.loudness is None else levelled(audio, asked.loudness)

    def plan(self, request: Any, **fields: Any) -> Fit:
        """How a request can be done in the memory that is free; RequestError names what would fit where it cannot."""
        asked = Request.of(request, **fields)
        if self.generator is None:
            raise RequestError(_ALONE)
        device = str(self.device)
        dtype = next(self.generator.parameters()).dtype
        job = Job.of(self.spec, asked, dtype=dtype, device=device, quantize=self.quantized)
        return fitted(self.spec, job, beside(self), room=free_on(device), new=False)

    def frames(self, request: Any, *, progress: Progress | None = None, **fields: Any) -> Codes | Latents:
        """What `generate` decodes, as `codec.decode` and `continue_from` take it."""
        work = self._begin(Request.of(request, **fields))
        return after_frames(work.frames(progress), work.skip, self.spec.codec.hop)

    def stream(self, request: Any, **fields: Any) -> Iterator[Audio]:
        """The same samples as `generate`, chunk by chunk as their frames are finished; closing it cancels.

        A chunk's lengths say how many samples are true for each clip: none once it has ended.
        """
        asked = Request.of(request, **fields)
        if asked.loudness is not None:
            raise RequestError("loudness is set when a clip is whole; leave it out of a stream, or use generate")
        work = self._begin(asked)
        return _decoded(work, self.codec.decoder(), work.skip * self.spec.codec.hop)

    @torch.inference_mode()
    def _begin(self, request: Request) -> "_Work":
        """The generator's stream for a request; nothing is generated yet."""
        if self.generator is None:
            raise RequestError(_ALONE)
        clips, rate, hop = request.clips(), self.codec.grid.frame_rate, self.spec.codec.hop
        samples = torch.tensor([samples_of(self.spec, clip) for clip in clips], device=self.device)
        frames = torch.tensor([self.spec.codec.frames_of(each) for each in samples.tolist()], device=self.device)
        sampling = {**self.spec.defaults.sampling, **(request.sampling or {})}
        how = self.generator.spec.sampling.parse(sampling, source="sampling")
        prompt = known([clip.continue_from for clip in clips], self.codec)
        if prompt is not None:
            check(prompt, frames, window=self.generator.spec.context, rate=rate)
        branches = self._branches([self.read(clip.item) for clip in clips], frames, request)
        self.conditioners.rest()
        plan = Plan(
            frames,
            [clip.seed for clip in clips],
            how,
            prompt,
            two_step=request.two_step,
            strength=strength(request.guided, frames, size=int(frames.max())),
            rescale=request.guided.rescale,
        )
        chunks = windows.stream(self.generator, branches, plan, stride=self._stride(request, int(frames.max())))
        skip = torch.zeros_like(samples) if prompt is None or request.keep_prompt else prompt.mask.sum(1)
        return _Work(chunks, int(frames.max()), samples, skip, hop)

    def _branches(self, items: Sequence[Mapping[str, Any]], lengths: Int[Tensor, " b"], request: Request) -> list[Branch]:
        """The conditions of each term of guidance at its weight; one branch where that is the same."""
        frames, fusion = int(lengths.max()), self.spec.fusion
        conditions = self.condition(self.prepare(items, frames=frames))
        guided = dict.fromkeys(route.id for routes in fusion.slots().values() for route in routes if route.guided)
        told = [name for name in guided if bool(conditions[name].present.any())]
        asked = terms(request.guided, self.spec.defaults.guidance, guided, told)
        negatives = request.negatives()
        keep_plain = request.guided.varies or request.guided.rescale > 0
        branches = []
        for term in asked:
            if term.weight == 0 and not (keep_plain and term.plain):
                continue
            if term.ids is None and (negatives is not None or (request.two_step and len(asked) > 1)):
                fused = self._without(items, negatives or [{}] * len(items), lengths)
            else:
                keep = None if term.plain else keep_only(fusion, [term.ids or ()] * len(items), self.device)
                fused = self.fuse(conditions, frames=frames, keep=keep, lengths=lengths)
            branches.append(Branch(term.weight, fused, term.plain))
        return branches

    def _without(
        self, items: Sequence[Mapping[str, Any]], negatives: Sequence[Mapping[str, Any]], lengths: Int[Tensor, " b"]
    ) -> Fused:
        """The conditions of `negatives` instead, and the items' own where guidance leaves them alone; as wide as they are."""
        frames, fusion = int(lengths.max()), self.spec.fusion
        left = {route.id for routes in fusion.slots().values() for route in routes if not route.guided}
        read = [self.read(negative) for negative in negatives]
        mixed = [{**{k: v for k, v in item.items() if k in left}, **other} for item, other in zip(items, read, strict=True)]
        keep = keep_only(fusion, [self.conditioners.told(other) for other in read], self.device)
        return self.fuse(self.condition(self.prepare(mixed, frames=frames)), frames=frames, keep=keep, lengths=lengths)

    def _stride(self, request: Request, frames: int) -> int | None:
        """Frames from window to window, where one is not enough."""
        assert self.generator is not None
        window, rate = self.generator.spec.context, self.codec.grid.frame_rate
        asked = request.stride or self.spec.defaults.stride
        if asked is None or frames <= window:
            return None
        stride = round(asked * rate)
        if not 0 < stride < window:
            raise RequestError(f"a stride of {asked:g} seconds does not suit a window of {window / rate:g}; use less")
        return stride


def _share(progress: Progress, part: int, parts: int) -> Progress:
    """The progress of one of several equal parts as that of the whole."""
    return lambda done, total: progress(part * total + done, parts * total)


def _conditioners(spec: SystemSpec) -> Conditioners:
    return Conditioners({name: part.build() for name, part in spec.conditioners.items()})


@dataclass(frozen=True)
class _Work:
    """A request under way."""

    chunks: Iterator[Codes | Latents]
    total: int  # frames of the longest clip
    samples: Int[Tensor, " b"]  # of each clip, what it continues from included
    skip: Int[Tensor, " b"]  # leading frames that are not asked for
    hop: int

    @torch.inference_mode()
    def frames(self, progress: Progress | None = None) -> Any:
        """Everything, with the samples that it stands for."""
        done, parts = 0, []
        for chunk in self.chunks:
            parts.append(chunk)
            done += chunk.content.shape[-1]
            if progress is not None:
                progress(done, self.total)
        if progress is not None and done < self.total:  # the clips have ended before
            progress(self.total, self.total)
        whole = type(parts[0]).join(parts)
        return replace(whole, samples=torch.minimum(whole.lengths * self.hop, self.samples.to(whole.lengths.device)))


@torch.inference_mode()
def _decoded(work: _Work, decoder: Decoder, skip: Tensor) -> Iterator[Audio]:
    """Audio of each chunk of frames, until each clip has its samples."""
    left = work.samples
    with closing(work.chunks) as chunks:  # type: ignore[type-var]  # a generator function's
        for audio in chain(map(decoder.push, chunks), _last(decoder)):
            lengths = torch.minimum(audio.lengths, left)
            left = left - lengths
            hidden = torch.minimum(lengths, skip)
            skip = skip - hidden
            rest = after(Audio(audio.wave, audio.sample_rate, lengths), hidden)
            if int(rest.lengths.max()) > 0:
                yield rest


def _last(decoder: Decoder) -> Iterator[Audio]:
    yield decoder.finish()
