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

from cadenza.codecs.base import Codec, StreamingDecoder
from cadenza.conditioners.base import ConditionerSet, PreparedInputs
from cadenza.core.checkpoint import check_state_dict
from cadenza.core.errors import RequestError
from cadenza.core.memory import available_memory_on
from cadenza.core.spec import did_you_mean
from cadenza.core.types import Codes, Condition, FusedConditions, GuidanceBranch, Latents
from cadenza.dsp.audio import Audio
from cadenza.dsp.loudness import normalize_loudness
from cadenza.generators.base import GenerationInputs, Generator
from cadenza.nn.meta_init import init_empty_weights
from cadenza.nn.weight_quantization import KINDS, check_device_supports, prepare_for_checkpoint, quantization_of
from cadenza.samplers.guidance import expand_guidance, guidance_schedule
from cadenza.system import store, windows
from cadenza.system.continuation import drop_leading_frames, drop_leading_samples, encode_prompts, validate_prompts
from cadenza.system.feature_cache import FeatureCache
from cadenza.system.fusion import KeepMask, branch_keep_mask, fuse
from cadenza.system.planner import GenerationJob, Plan, estimator_for_loaded, num_samples, plan_within_memory, split_request
from cadenza.system.prompt_patterns import extract_prompt_values
from cadenza.system.request import Request
from cadenza.system.spec import SystemSpec
from cadenza.system.store import ModelCard

Progress = Callable[[int, int], None]  # frames done, frames in all
_ALONE = "this system is a codec alone: it encodes and decodes, but cannot generate"


class System(nn.Module):
    """Everything a saved folder holds; `generator` is None for a codec alone."""

    generator: Generator | None
    cache: FeatureCache | None = None  # of what frozen encoders make of values; None: it is made every time

    def __init__(self, spec: SystemSpec, card: ModelCard | None = None) -> None:
        super().__init__()
        self.spec = spec
        self.card = card or ModelCard()
        self.codec: Codec = spec.codec.build()
        self.conditioners = _conditioners(spec)
        self.generator = None if spec.generator is None else spec.generator.build(spec.codec.frame_format, spec.slot_dims())

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def quantization(self) -> str | None:
        """What the generator's weights are: int8, int4, or None for floating point."""
        return None if self.generator is None else quantization_of(self.generator)

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
        check_device_supports(kind, self.device)
        if self.quantization not in (None, kind):
            raise RequestError(f"this model's weights are {self.quantization}; to have {kind}, load what they were made of")
        if self.quantization is None:
            self.generator.quantize(kind)  # type: ignore[arg-type]
            self.codec.quantize_()
        self.conditioners.quantize_frozen_()
        return self

    def prepare(self, items: Sequence[Mapping[str, Any]], *, frames: int = 0) -> dict[str, PreparedInputs]:
        """Items as CPU tensors, enough of them for clips of `frames` frames.

        RequestError names an id that no conditioner knows or a value it cannot use.
        """
        known = self.conditioners.input_ids()
        for item in items:
            for name in item:
                if name not in known:
                    raise RequestError(f"no condition called '{name}'.{did_you_mean(name, known)}")
        return self.conditioners.prepare(items, frames=frames)

    def extract_prompt_values(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """An item of a request with the values that its texts say, by the rules of `spec.reads`."""
        return extract_prompt_values(item, self.spec.prompt_patterns, self.conditioners)

    def encode_conditions(self, prepared: Mapping[str, PreparedInputs]) -> dict[str, Condition]:
        """Prepared values as conditions, on the system's device."""
        if self.cache is not None:
            return self.conditioners(self.cache.encode(self.conditioners, prepared, self.device))
        there = {name: values.to(self.device) for name, values in prepared.items()}
        return self.conditioners(self.conditioners.encode(there))

    def fuse(
        self,
        conditions: Mapping[str, Condition],
        *,
        frames: int,
        keep: KeepMask | None = None,
        lengths: Int[Tensor, " b"] | None = None,
    ) -> FusedConditions:
        """Conditions in the generator's slots, for clips of `lengths` frames, all of them `frames` where none are given."""
        rate = self.codec.frame_format.frame_rate
        return fuse(conditions, self.spec.fusion, frames=frames, keep=keep, lengths=lengths, rate=rate)

    @classmethod
    def load(cls, folder: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> "System":
        """The system in a folder, in evaluation mode; every weight must be there and none may be left over."""
        return cls.from_saved(store.load_system(folder), source=str(folder)).to(device=device, dtype=dtype)

    @classmethod
    def from_saved(cls, stored: store.SavedSystem, *, source: str) -> "System":
        """The system that was read from `source`, in evaluation mode, made of its weights as they are."""
        with init_empty_weights():  # where no numbers are drawn that the weights would replace
            system = cls(stored.spec, stored.card)
            system._fit(stored.weights)
        check_state_dict(stored.weights, system.state_dict(), source)
        system.conditioners = _conditioners(stored.spec)  # as these may hold more than weights
        system.load_state_dict(stored.weights, assign=True)
        if any(x.is_meta for x in chain(system.parameters(), system.buffers())):  # a part computes some of its tensors
            system = cls(stored.spec, stored.card)
            system._fit(stored.weights)
            system.load_state_dict(stored.weights)
        if system.quantization is not None:
            system.conditioners.quantize_frozen_()
        return system.eval().requires_grad_(False)

    def _fit(self, weights: Mapping[str, Tensor]) -> None:
        """Becomes a system that such weights are of, quantised or not."""
        if any(key.endswith(".packed") for key in weights):
            self.codec.quantize_()
        prepare_for_checkpoint(self, weights)

    def save(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Writes `system.json`, the weights (as `dtype`, or as they are), the card and what conditioners keep; never partly."""
        stored = store.SavedSystem(self.spec, self.card, self.state_dict())
        store.save_system(stored, folder, dtype=dtype, save_assets=self.conditioners.save_assets)

    def generate(self, request: Any, *, plan: Plan | None = None, progress: Progress | None = None, **fields: Any) -> Audio:
        """The clips of a request as one batch, in the batches of `plan` if it was planned before.

        `request` is a prompt, an item (`{"prompt": ..., "tempo": 90}`), None for neither, a list of these, or a
        Request; `fields` are those of Request (seconds, seed, guidance, continue_from, ...). The same item and seed
        give the same tokens alone and in any batch (float32). Raises RequestError for what the system cannot do.
        """
        asked = Request.from_input(request, **fields)
        batch_plan = (plan or self.plan(asked)).batch_plan
        parts, made = split_request(asked, batch_plan.batch_size), []
        for i, part in enumerate(parts):
            work = self._begin(part)
            frames = work.frames(None if progress is None else _share(progress, i, len(parts)))
            made.append(
                drop_leading_samples(
                    self.codec.decode_chunked(frames, batch_plan.decode_chunk_frames), work.skip * self.spec.codec.hop_length
                )
            )
        audio = made[0] if len(made) == 1 else Audio.pad_and_stack(made)
        return audio if asked.loudness is None else normalize_loudness(audio, asked.loudness)

    def plan(self, request: Any, **fields: Any) -> Plan:
        """How a request can be done in the memory that is free; RequestError names what would fit where it cannot."""
        asked = Request.from_input(request, **fields)
        if self.generator is None:
            raise RequestError(_ALONE)
        device = str(self.device)
        dtype = next(self.generator.parameters()).dtype
        job = GenerationJob.from_request(self.spec, asked, dtype=dtype, device=device, quantize=self.quantization)
        return plan_within_memory(
            self.spec, job, estimator_for_loaded(self), max_bytes=available_memory_on(device), loaded=True
        )

    def generate_frames(self, request: Any, *, progress: Progress | None = None, **fields: Any) -> Codes | Latents:
        """What `generate` decodes, as `codec.decode` and `continue_from` take it."""
        work = self._begin(Request.from_input(request, **fields))
        return drop_leading_frames(work.frames(progress), work.skip, self.spec.codec.hop_length)

    def stream(self, request: Any, **fields: Any) -> Iterator[Audio]:
        """The same samples as `generate`, chunk by chunk as their frames are finished; closing it cancels.

        A chunk's lengths say how many samples are true for each clip: none once it has ended.
        """
        asked = Request.from_input(request, **fields)
        if asked.loudness is not None:
            raise RequestError("loudness is set when a clip is whole; leave it out of a stream, or use generate")
        work = self._begin(asked)
        return _decoded(work, self.codec.streaming_decoder(), work.skip * self.spec.codec.hop_length)

    @torch.inference_mode()
    def _begin(self, request: Request) -> "_Work":
        """The generator's stream for a request; nothing is generated yet."""
        if self.generator is None:
            raise RequestError(_ALONE)
        clips, rate, hop = request.expand(), self.codec.frame_format.frame_rate, self.spec.codec.hop_length
        samples = torch.tensor([num_samples(self.spec, clip) for clip in clips], device=self.device)
        frames = torch.tensor([self.spec.codec.num_frames(each) for each in samples.tolist()], device=self.device)
        sampling = {**self.spec.defaults.sampling, **(request.sampling or {})}
        how = self.generator.spec.sampling.parse(sampling, source="sampling")
        prompt = encode_prompts([clip.continue_from for clip in clips], self.codec)
        if prompt is not None:
            validate_prompts(prompt, frames, window=self.generator.spec.max_frames, rate=rate)
        branches = self._branches([self.extract_prompt_values(clip.item) for clip in clips], frames, request)
        self.conditioners.unload()
        plan = GenerationInputs(
            frames,
            [clip.seed for clip in clips],
            how,
            prompt,
            two_step_cfg=request.two_step_cfg,
            guidance_schedule=guidance_schedule(request.effective_guidance, frames, size=int(frames.max())),
            rescale=request.effective_guidance.rescale,
        )
        chunks = windows.generate_windows(self.generator, branches, plan, stride=self._stride(request, int(frames.max())))
        skip = torch.zeros_like(samples) if prompt is None or request.include_prompt else prompt.mask.sum(1)
        return _Work(chunks, int(frames.max()), samples, skip, hop)

    def _branches(
        self, items: Sequence[Mapping[str, Any]], lengths: Int[Tensor, " b"], request: Request
    ) -> list[GuidanceBranch]:
        """The conditions of each term of guidance at its weight; one branch where that is the same."""
        frames, fusion = int(lengths.max()), self.spec.fusion
        conditions = self.encode_conditions(self.prepare(items, frames=frames))
        guided = dict.fromkeys(route.id for routes in fusion.routes_by_slot().values() for route in routes if route.guided)
        told = [name for name in guided if bool(conditions[name].present.any())]
        asked = expand_guidance(request.effective_guidance, self.spec.defaults.guidance, guided, told)
        negatives = request.negative_items()
        keep_plain = request.effective_guidance.is_scheduled or request.effective_guidance.rescale > 0
        branches = []
        for term in asked:
            if term.weight == 0 and not (keep_plain and term.unguided_weight):
                continue
            if term.ids is None and (negatives is not None or (request.two_step_cfg and len(asked) > 1)):
                fused = self._without(items, negatives or [{}] * len(items), lengths)
            else:
                keep = None if term.unguided_weight else branch_keep_mask(fusion, [term.ids or ()] * len(items), self.device)
                fused = self.fuse(conditions, frames=frames, keep=keep, lengths=lengths)
            branches.append(GuidanceBranch(term.weight, fused, term.unguided_weight))
        return branches

    def _without(
        self, items: Sequence[Mapping[str, Any]], negatives: Sequence[Mapping[str, Any]], lengths: Int[Tensor, " b"]
    ) -> FusedConditions:
        """The conditions of `negatives` instead, and the items' own where guidance leaves them alone; as wide as they are."""
        frames, fusion = int(lengths.max()), self.spec.fusion
        left = {route.id for routes in fusion.routes_by_slot().values() for route in routes if not route.guided}
        read = [self.extract_prompt_values(negative) for negative in negatives]
        mixed = [{**{k: v for k, v in item.items() if k in left}, **other} for item, other in zip(items, read, strict=True)]
        keep = branch_keep_mask(fusion, [self.conditioners.present_in(other) for other in read], self.device)
        return self.fuse(self.encode_conditions(self.prepare(mixed, frames=frames)), frames=frames, keep=keep, lengths=lengths)

    def _stride(self, request: Request, frames: int) -> int | None:
        """Frames from window to window, where one is not enough."""
        assert self.generator is not None
        window, rate = self.generator.spec.max_frames, self.codec.frame_format.frame_rate
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


def _conditioners(spec: SystemSpec) -> ConditionerSet:
    return ConditionerSet({name: part.build() for name, part in spec.conditioners.items()})


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
            done += chunk.data.shape[-1]
            if progress is not None:
                progress(done, self.total)
        if progress is not None and done < self.total:  # the clips have ended before
            progress(self.total, self.total)
        whole = type(parts[0]).cat(parts)
        return replace(whole, samples=torch.minimum(whole.lengths * self.hop, self.samples.to(whole.lengths.device)))


@torch.inference_mode()
def _decoded(work: _Work, decoder: StreamingDecoder, skip: Tensor) -> Iterator[Audio]:
    """Audio of each chunk of frames, until each clip has its samples."""
    left = work.samples
    with closing(work.chunks) as chunks:  # type: ignore[type-var]  # a generator function's
        for audio in chain(map(decoder.push, chunks), _last(decoder)):
            lengths = torch.minimum(audio.lengths, left)
            left = left - lengths
            hidden = torch.minimum(lengths, skip)
            skip = skip - hidden
            rest = drop_leading_samples(Audio(audio.wave, audio.sample_rate, lengths), hidden)
            if int(rest.lengths.max()) > 0:
                yield rest


def _last(decoder: StreamingDecoder) -> Iterator[Audio]:
    yield decoder.flush()
