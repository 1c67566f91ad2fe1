"""Peer: MusicGen of transformers in one of its configurations, timed part by part."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cadenza.apps.bench import BenchJob, TimedRun, synchronized_time
from cadenza.core.errors import BenchmarkError
from compare.library import import_transformers
from compare.measure import Runner


@dataclass(frozen=True)
class TransformersConfig:
    """How transformers is asked to compute."""

    dtype: str = "float32"
    attention: str = "sdpa"  # or eager
    cache: str = "dynamic"  # or static
    compiled: bool = False
    threads: int = 0  # 0: as many as the others have

    @property
    def label(self) -> str:
        parts = [self.dtype, self.attention, *(["static cache"] if self.cache == "static" else [])]
        parts += ["compiled"] if self.compiled else []
        return ", ".join(parts + ([f"{self.threads} thread{'s' * (self.threads > 1)}"] if self.threads else []))


class TransformersRunner(Runner):
    """MusicgenForConditionalGeneration of a folder."""

    def __init__(self, folder: Path, config: TransformersConfig, *, device: torch.device, threads: int) -> None:
        self.folder, self.config, self.device = folder, config, device
        self.threads = config.threads or threads
        self.name = f"transformers {config.label}"
        self._model: Any = None
        self._room = 0  # steps that a static cache has room for at least, as code is compiled for one size

    @property
    def model(self) -> Any:
        self.open()
        return self._model

    def open(self) -> None:
        if self._model is not None:
            return
        self._model = import_transformers().MusicgenForConditionalGeneration.from_pretrained(
            self.folder,
            dtype=getattr(torch, self.config.dtype),
            attn_implementation={"decoder": self.config.attention, "text_encoder": "eager", "audio_encoder": "eager"},
        )
        self._model.to(self.device).eval()
        if self.config.compiled:
            decoder = self._model.decoder
            decoder.forward = torch.compile(decoder.forward, dynamic=None if self.config.cache == "static" else True)

    def close(self) -> None:
        self._model = None
        if self.config.compiled:
            torch.compiler.reset()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def warmup_job(self, job: BenchJob) -> BenchJob:
        self._room = self._steps(job)
        return super().warmup_job(job)

    def run(self, job: BenchJob) -> TimedRun:
        return self.generate(job)[0]

    def generate(self, job: BenchJob, *, greedy: bool = False) -> tuple[TimedRun, Tensor, Tensor]:
        """The run, its codes [b k f] and its audio [b c t]."""
        if job.branches > 2:
            raise BenchmarkError("transformers computes one or two branches of guidance, not three")
        model, marks, decoded = self.model, {}, []
        decode = model.audio_encoder.decode

        def tapped(codes: Tensor, *rest: Any, **named: Any) -> Any:
            marks.setdefault("codec", synchronized_time(self.device))
            decoded.append(codes)
            return decode(codes, *rest, **named)

        hook = model.text_encoder.register_forward_hook(lambda *_: marks.__setitem__("text", synchronized_time(self.device)))
        model.audio_encoder.decode = tapped
        taken = self._steps(job)
        try:
            start = synchronized_time(self.device)
            ids = self._read(job)
            with torch.inference_mode(), self._cached(taken):
                wave = model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    do_sample=not greedy,
                    max_new_tokens=taken,
                    guidance_scale=3.0 if job.branches == 2 else 1.0,
                )
            end = synchronized_time(self.device)
        finally:
            hook.remove()
            model.audio_encoder.decode = decode
        parts = {"text": marks["text"] - start, "lm": marks["codec"] - marks["text"], "codec": end - marks["codec"]}
        codes = torch.stack([each[0] for each in decoded], 2).flatten(1, 2)  # left and right in turn
        return TimedRun(parts, job.seconds * job.batch, taken), codes, wave

    def _steps(self, job: BenchJob) -> int:
        """Steps of a clip: the delay of the last codebook is added to its frames."""
        lm, sound = self.model.config.decoder, self.model.config.audio_encoder
        return round(job.seconds * sound.frame_rate) - 1 + lm.num_codebooks // lm.audio_channels

    def _read(self, job: BenchJob) -> Tensor:
        """The ids of the prompts' tokens, all of one length."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        return torch.tensor([tokenizer.encode(item["prompt"]).ids for item in job.request().items], device=self.device)

    @contextmanager
    def _cached(self, taken: int) -> Iterator[None]:
        """Gives the decoder a static cache, where that is asked for.

        Given to `generate`, the cache would reach the text encoder too, which would fill it with keys of its own; and
        transformers 5.23 feeds the first step twice, the second time without a cache, for which there must be a new one.
        """
        if self.config.cache != "static":
            yield
            return
        model, them = self.model, import_transformers()
        prepare, config = model.prepare_inputs_for_generation, model.config.decoder

        @wraps(prepare)  # whose signature is looked at
        def given(*ids: Any, **rest: Any) -> dict[str, Any]:
            inputs = prepare(*ids, **rest)
            name = "cache" if "cache" in inputs else "past_key_values"  # the name before transformers 5.24
            if inputs[name] is None:
                own = them.StaticCache(config=config, max_cache_len=max(taken, self._room) + 1)
                inputs[name] = them.EncoderDecoderCache(own, them.DynamicCache(config=config))
            return inputs

        model.prepare_inputs_for_generation = given
        try:
            yield
        finally:
            model.prepare_inputs_for_generation = prepare
