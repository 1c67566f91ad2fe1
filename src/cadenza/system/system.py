"""System: a codec, conditioners and a generator, loaded, run and saved as one model."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass, replace
from functools import partial
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
from cadenza.nn.kernels import single_torch_thread
from cadenza.nn.meta_init import init_empty_weights
from cadenza.nn.weight_quantization import KINDS, check_device_supports, prepare_for_checkpoint, quantization_of
from cadenza.samplers.guidance import concat_conditions, guidance_schedule
from cadenza.system import store
from cadenza.system.continuation import drop_leading_frames, drop_leading_samples, encode_prompts
from cadenza.system.feature_cache import FeatureCache
from cadenza.system.fusion import KeepMask, branch_keep_mask, fuse
from cadenza.system.planner import GenerationJob, Plan, estimate_memory, num_samples, plan_within_memory, split_request
from cadenza.system.prompt_patterns import extract_prompt_values
from cadenza.system.request import Request
from cadenza.system.spec import SystemSpec
from cadenza.system.store import ModelCard
from cadenza.system.windows import generate_windows

Items = Sequence[Mapping[str, Any]]
Lengths = Int[Tensor, " b"]  # frames or samples of each clip
Progress = Callable[[int, int], None]  # frames done, frames in all


class System(nn.Module):
    """Codec, conditioners and generator of a spec; `generator` is None if there is only a codec."""

    generator: Generator | None
    cache: FeatureCache | None = None  # of outputs of frozen encoders

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
        """Quantisation of the generator: int8, int4, or None for floating point."""
        return None if self.generator is None else quantization_of(self.generator)

    def quantize(self, kind: str) -> "System":
        """Quantise the generator to int8 or int4, frozen encoders and LSTMs to int8, in place; return self.

        Activations stay in floating point; on a CPU the KV cache is int8, too. The system can then generate, be saved and
        loaded, but not be trained. Raises RequestError if the kind suits neither the model nor its device.
        """
        if self.generator is None:
            raise RequestError("this system is a codec alone, and codecs are not quantised; leave quantize out")
        if kind not in KINDS:
            raise RequestError(f"quantisation '{kind}' is not known. Choose from: {', '.join(KINDS)}")
        check_device_supports(kind, self.device)
        if self.quantization not in (None, kind):
            raise RequestError(f"this model is quantised to {self.quantization}; for {kind}, load the original model")
        if self.quantization is None:
            self.generator.quantize(kind)  # type: ignore[arg-type]
            self.codec.quantize_()
        self.conditioners.quantize_frozen_()
        return self

    def prepare(self, items: Items, *, frames: int = 0) -> dict[str, PreparedInputs]:
        """Preprocess items to CPU tensors for clips of `frames` frames.

        Raises RequestError for an unknown id or a value that its conditioner cannot use.
        """
        known = self.conditioners.input_ids()
        for name in (name for item in items for name in item if name not in known):
            raise RequestError(f"no condition called '{name}'.{did_you_mean(name, known)}")
        return self.conditioners.prepare(items, frames=frames)

    def extract_prompt_values(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """Return an item with the values that `spec.prompt_patterns` find in its texts added."""
        return extract_prompt_values(item, self.spec.prompt_patterns, self.conditioners)

    def encode_conditions(self, prepared: Mapping[str, PreparedInputs]) -> dict[str, Condition]:
        """Encode prepared values to conditions on the system's device."""
        if self.cache is not None:
            return self.conditioners(self.cache.encode(self.conditioners, prepared, self.device))
        on_device = {name: values.to(self.device) for name, values in prepared.items()}
        return self.conditioners(self.conditioners.encode(on_device))

    def fuse(
        self, conditions: Mapping[str, Condition], *, frames: int, keep: KeepMask | None = None, lengths: Lengths | None = None
    ) -> FusedConditions:
        """Route conditions to the slots of the generator, for clips of `lengths` frames (default: `frames` each)."""
        rate = self.codec.frame_format.frame_rate
        return fuse(conditions, self.spec.fusion, frames=frames, keep=keep, lengths=lengths, rate=rate)

    @classmethod
    def load(cls, folder: str | Path, *, device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32) -> "System":
        """Load a folder in evaluation mode; raise CheckpointError for missing or unknown weights."""
        return cls.from_saved(store.ModelFolder.open(Path(folder)).load(), source=str(folder)).to(device=device, dtype=dtype)

    @classmethod
    def from_saved(cls, stored: store.SavedSystem, *, source: str) -> "System":
        """Build a system of loaded weights, without copying them; `source` is named in errors."""
        with init_empty_weights():
            system = cls(stored.spec, stored.card)
            system._quantize_as(stored.weights)
        check_state_dict(stored.weights, system.state_dict(), source)
        system.conditioners = _conditioners(stored.spec)  # these may hold more than weights
        system.load_state_dict(stored.weights, assign=True)
        if any(x.is_meta for x in chain(system.parameters(), system.buffers())):  # a part computes a buffer
            system = cls(stored.spec, stored.card)
            system._quantize_as(stored.weights)
            system.load_state_dict(stored.weights)
        if system.quantization is not None:
            system.conditioners.quantize_frozen_()
        return system.eval().requires_grad_(False)

    def _quantize_as(self, weights: Mapping[str, Tensor]) -> None:
        """Quantise the modules whose weights are quantised."""
        if any(key.endswith(".packed") for key in weights):
            self.codec.quantize_()
        prepare_for_checkpoint(self, weights)

    def save(self, folder: str | Path, *, dtype: torch.dtype | None = None) -> None:
        """Write the spec, the weights (converted to `dtype` if given), the card and files of conditioners, or nothing."""
        stored = store.SavedSystem(self.spec, self.card, self.state_dict())
        store.save_system(stored, Path(folder), self.conditioners.save_assets, dtype)

    def generate(self, request: Any, *, plan: Plan | None = None, progress: Progress | None = None, **fields: Any) -> Audio:
        """Generate the clips of a request as one batch, padded to the longest.

        `request` is a prompt, an item (`{"prompt": ..., "tempo": 90}`), None for neither, a list of these, or a Request;
        `fields` are those of Request (seconds, seed, guidance, continue_from, ...). An item and seed give the same tokens
        alone and in any batch (float32). `plan` is what `plan` returned for this request. Raises RequestError.
        """
        request = Request.from_input(request, **fields)
        batch_plan = (plan or self.plan(request)).batch_plan
        parts, clips = split_request(request, batch_plan.batch_size), []
        for i, part in enumerate(parts):
            run = self._start(part)
            frames = run.collect(progress, part=i, parts=len(parts))
            audio = self.codec.decode_chunked(frames, batch_plan.decode_chunk_frames)
            clips.append(drop_leading_samples(audio, run.skip * run.hop))
        audio = clips[0] if len(clips) == 1 else Audio.pad_and_stack(clips)
        return audio if request.loudness is None else normalize_loudness(audio, request.loudness)

    def plan(self, request: Any, **fields: Any) -> Plan:
        """Choose batches that fit in the free memory; raise RequestError, naming what would fit, if none do."""
        request = Request.from_input(request, **fields)
        device, dtype = str(self.device), next(self._required_generator().parameters()).dtype
        job = GenerationJob.from_request(self.spec, request, dtype=dtype, device=device, quantize=self.quantization)
        estimate = partial(estimate_memory, self, program=None)
        return plan_within_memory(job, estimate, max_bytes=available_memory_on(device), loaded=True)

    def generate_frames(self, request: Any, *, progress: Progress | None = None, **fields: Any) -> Codes | Latents:
        """Generate the frames that `generate` decodes, as `codec.decode` and `continue_from` accept them."""
        run = self._start(Request.from_input(request, **fields))
        return drop_leading_frames(run.collect(progress), run.skip, run.hop)

    def stream(self, request: Any, **fields: Any) -> Iterator[Audio]:
        """Yield the samples of `generate` in chunks as their frames are finished; closing the iterator cancels.

        The lengths of a chunk count the valid samples of each clip: 0 once it has ended.
        """
        request = Request.from_input(request, **fields)
        if request.loudness is not None:
            raise RequestError("loudness needs a whole clip; leave it out of a stream, or use generate")
        return self._start(request).decode(self.codec.streaming_decoder())

    def _required_generator(self) -> Generator:
        if self.generator is None:
            raise RequestError("this system is a codec alone: it encodes and decodes, but cannot generate")
        return self.generator

    @torch.inference_mode()
    def _start(self, request: Request) -> "_Run":
        """Encode the conditions of a request and open the generator's stream; no frame is generated yet."""
        generator, codec, clips = self._required_generator(), self.spec.codec, request.expand()
        samples = torch.tensor([num_samples(self.spec, clip) for clip in clips], device=self.device)
        frames = torch.tensor([codec.num_frames(n) for n in samples.tolist()], device=self.device)
        longest, options = int(frames.max()), {**self.spec.defaults.sampling, **(request.sampling or {})}
        sampling = generator.spec.sampling.parse(options, source="sampling")
        with single_torch_thread() if self.quantization else nullcontext():  # float sums depend on the number of threads
            prompts = [clip.continue_from for clip in clips]
            prompt = encode_prompts(prompts, self.codec, frames, max_frames=generator.spec.max_frames)
            branches = self._branches([self.extract_prompt_values(clip.item) for clip in clips], frames, request)
        self.conditioners.unload()
        seeds, schedule = [clip.seed for clip in clips], guidance_schedule(request.guidance, frames, size=longest)
        passes = {"two_step_cfg": request.two_step_cfg, "guidance_schedule": schedule, "rescale": request.guidance.rescale}
        inputs = GenerationInputs(frames, seeds, sampling, prompt, **passes)
        chunks = generate_windows(generator, branches, inputs, stride=self._stride(request, longest))
        skip = torch.zeros_like(samples) if prompt is None or request.include_prompt else prompt.mask.sum(1)
        return _Run(chunks, longest, samples, skip, codec.hop_length)

    def _branches(self, items: Items, lengths: Lengths, request: Request) -> list[GuidanceBranch]:
        """Return the fused conditions and weight of each term of guidance, for clips of `lengths` frames.

        Items are conditioned one by one, except for a generator that attends to padding: the batch size changes the last
        digit of a float, and quantised layers, which round their inputs, would turn that into other tokens.
        """
        one_batch = self._required_generator().spec.attends_padding
        batches = [slice(None)] if one_batch else [slice(i, i + 1) for i in range(len(items))]
        conditions = [self._conditions(items[batch], lengths[batch]) for batch in batches]
        guided = self.spec.fusion.guided_ids()
        present = {name for name in guided if any(bool(each[name].present.any()) for each in conditions)}
        negatives = request.negative_items()
        if negatives is None and request.two_step_cfg and present:
            negatives = [{}] * len(items)
        branches = []
        for term in self.spec.guidance_terms(request.guidance, present):
            fused = []
            for batch, each in zip(batches, conditions, strict=True):
                if term.ids is None and negatives is not None:
                    fused.append(self._fuse_negatives(items[batch], negatives[batch], lengths[batch]))
                else:
                    ids = None if term.unguided_weight else [term.ids or ()] * len(lengths[batch])
                    fused.append(self._fuse_kept(each, ids, lengths[batch]))
            branches.append(GuidanceBranch(term.weight, concat_conditions(fused, 1), term.unguided_weight))
        return branches

    def _conditions(self, items: Items, lengths: Lengths) -> dict[str, Condition]:
        return self.encode_conditions(self.prepare(items, frames=int(lengths.max())))

    def _fuse_kept(
        self, conditions: Mapping[str, Condition], ids: Sequence[Collection[str]] | None, lengths: Lengths
    ) -> FusedConditions:
        """Fuse the conditions that a branch keeps: `ids` of each item and those without guidance, or all if None."""
        keep = None if ids is None else branch_keep_mask(self.spec.fusion, ids, self.device)
        return self.fuse(conditions, frames=int(lengths.max()), keep=keep, lengths=lengths)

    def _fuse_negatives(self, items: Items, negatives: Items, lengths: Lengths) -> FusedConditions:
        """Fuse the conditions of `negatives`, with those of `items` that guidance does not change."""
        unguided = {route.id for routes in self.spec.fusion.routes_by_slot().values() for route in routes if not route.guided}
        values = [self.extract_prompt_values(negative) for negative in negatives]
        mixed = [{**{k: v for k, v in item.items() if k in unguided}, **n} for item, n in zip(items, values, strict=True)]
        ids = [self.conditioners.present_in(negative) for negative in values]
        return self._fuse_kept(self._conditions(mixed, lengths), ids, lengths)

    def _stride(self, request: Request, frames: int) -> int | None:
        """Return the frames from window to window of a clip longer than one; None for the default or one window."""
        window, rate = self._required_generator().spec.max_frames, self.codec.frame_format.frame_rate
        seconds = request.stride or self.spec.defaults.stride
        if seconds is None or frames <= window:
            return None
        if not 0 < (stride := round(seconds * rate)) < window:
            raise RequestError(f"a stride of {seconds:g} seconds does not suit a window of {window / rate:g}; use less")
        return stride


def _conditioners(spec: SystemSpec) -> ConditionerSet:
    return ConditionerSet({name: part.build() for name, part in spec.conditioners.items()})


@dataclass(frozen=True)
class _Run:
    """A generation in progress."""

    chunks: Iterator[Codes | Latents]
    total: int  # frames of the longest clip
    samples: Lengths  # of each clip, including its audio prompt
    skip: Lengths  # leading frames to leave out of the result
    hop: int

    @torch.inference_mode()
    def collect(self, progress: Progress | None = None, *, part: int = 0, parts: int = 1) -> Any:
        """Generate all frames, with the number of samples of each clip; `progress` counts those of all equal `parts`."""
        done, chunks = 0, []
        for chunk in self.chunks:
            chunks.append(chunk)
            done += chunk.data.shape[-1]
            if progress is not None:
                progress(part * self.total + done, parts * self.total)
        if progress is not None and done < self.total:  # all clips ended early
            progress((part + 1) * self.total, parts * self.total)
        frames = type(chunks[0]).cat(chunks)
        return replace(frames, samples=torch.minimum(frames.lengths * self.hop, self.samples.to(frames.lengths.device)))

    @torch.inference_mode()
    def decode(self, decoder: StreamingDecoder) -> Iterator[Audio]:
        """Yield the audio of each chunk of frames, without the frames to skip, until each clip has its samples."""
        remaining, skip = self.samples, self.skip * self.hop
        with closing(self.chunks) as chunks:  # type: ignore[type-var]  # a generator function's
            for chunk in chain(chunks, [None]):
                audio = decoder.flush() if chunk is None else decoder.push(chunk)
                lengths = torch.minimum(audio.lengths, remaining)
                remaining = remaining - lengths
                skipped = torch.minimum(lengths, skip)
                skip = skip - skipped
                audio = drop_leading_samples(Audio(audio.wave, audio.sample_rate, lengths), skipped)
                if int(audio.lengths.max()) > 0:
                    yield audio
