"""Peer: MusicGen of transformers in one of its configurations, timed part by part."""

import gc
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cadenza.apps.bench.library import library
from cadenza.apps.bench.measure import Contestant, Job, Run, now
from cadenza.core.errors import BenchmarkError


@dataclass(frozen=True)
class PeerConfig:
    """How transformers is asked to compute."""

    dtype: str = "float32"
    attention: str = "sdpa"  # or eager
    cache: str = "dynamic"  # or static
    compiled: bool = False
    threads: int = 0  # 0: as many as the others have

    @property
    def label(self) -> str:
        parts = [self.dtype, self.attention, f"{self.cache} cache", *(["compiled"] if self.compiled else [])]
        return ", ".join(parts + ([f"{self.threads} threads"] if self.threads else []))


class Peer(Contestant):
    """MusicgenForConditionalGeneration of a folder."""

    def __init__(self, folder: Path, config: PeerConfig, *, device: torch.device, threads: int) -> None:
        self.folder, self.config, self.device = folder, config, device
        self.threads = config.threads or threads
        self.name = f"transformers {config.label}"
        self._model: Any = None

    @property
    def model(self) -> Any:
        if self._model is None:
            self.open()
        return self._model

    def open(self) -> None:
        if self._model is not None:
            return
        transformers = library()
        self._model = transformers.MusicgenForConditionalGeneration.from_pretrained(
            self.folder,
            dtype=getattr(torch, self.config.dtype),
            attn_implementation={"decoder": self.config.attention, "text_encoder": "eager", "audio_encoder": "eager"},
        ).to(self.device)
        self._model.eval()
        if self.config.compiled:
            decoder = self._model.decoder
            decoder.forward = torch.compile(decoder.forward, dynamic=None if self.config.cache == "static" else True)

    def close(self) -> None:
        self._model = None
        if self.config.compiled:
            torch._dynamo.reset()
        gc.collect()

    def run(self, job: Job) -> Run:
        return self.made(job)[0]

    def made(self, job: Job, *, greedy: bool = False) -> tuple[Run, Tensor, Tensor]:
        """The run, its codes [b k f] and its audio [b c t]."""
        if job.branches > 2:
            raise BenchmarkError("transformers computes one or two branches of guidance")
        model, marks, heard = self.model, {}, []
        decode = model.audio_encoder.decode

        def tapped(codes: Tensor, *rest: Any, **named: Any) -> Any:
            marks.setdefault("codec", now(self.device))
            heard.append(codes)
            return decode(codes, *rest, **named)

        hook = model.text_encoder.register_forward_hook(lambda *_: marks.__setitem__("text", now(self.device)))
        model.audio_encoder.decode = tapped
        sides = model.config.decoder.audio_channels
        frames = round(job.seconds * model.config.audio_encoder.frame_rate)
        taken = frames - 1 + model.config.decoder.num_codebooks // sides
        try:
            start = now(self.device)
            ids, mask = self._read(job)
            with torch.inference_mode():
                wave = model.generate(
                    input_ids=ids,
                    attention_mask=mask,
                    do_sample=not greedy,
                    max_new_tokens=taken,
                    guidance_scale=3.0 if job.branches == 2 else 1.0,
                    **self._cache(job, taken, ids),
                )
            end = now(self.device)
        finally:
            hook.remove()
            model.audio_encoder.decode = decode
        text, codec = marks["text"], marks["codec"]
        run = Run(text - start, codec - text, end - codec, end - start, taken, job.seconds * job.batch)
        codes = torch.stack([each[0] for each in heard], 2).flatten(1, 2)  # left and right in turn
        return run, codes, wave

    def _read(self, job: Job) -> tuple[Tensor, Tensor]:
        """The ids and the mask of the prompts' tokens."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self.folder / "tokenizer.json"))
        ids = torch.tensor([tokenizer.encode(item["prompt"]).ids for item in job.items()], device=self.device)
        return ids, torch.ones_like(ids)

    def _cache(self, job: Job, taken: int, ids: Tensor) -> dict[str, Any]:
        """What makes its cache static, where that is asked for."""
        if self.config.cache != "static":
            return {}
        transformers = library()
        config = self.model.config.decoder
        own, text = (transformers.StaticCache(config=config, max_cache_len=n) for n in (taken + 1, ids.shape[1]))
        return {"past_key_values": transformers.EncoderDecoderCache(own, text)}
