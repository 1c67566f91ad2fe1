"""Audio prompts: audio, codes or a file of either as the first frames of a clip."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from jaxtyping import Int
from torch import Tensor
from torch.nn import functional as F

from cadenza.codecs.base import Codec
from cadenza.core.errors import RequestError
from cadenza.core.types import Codes, KnownFrames, Latents
from cadenza.dsp.audio import Audio, load_audio
from cadenza.system.codes_io import load_codes

AudioPrompt = Audio | Codes | Latents | str | Path


def encode_prompts(
    prompts: Sequence[AudioPrompt | None], codec: Codec, frames: Int[Tensor, " b"], *, max_frames: int
) -> KnownFrames | None:
    """Encode the audio prompt of each clip (None: no prompt) to known frames; resample and mix to the codec's format.

    Raises RequestError if a prompt cannot be encoded, is as long as its clip of `frames` frames, or exceeds `max_frames`,
    the context of the generator.
    """
    encoded: dict[int, Codes | Latents] = {}  # variations share a prompt
    for prompt in prompts:
        if prompt is not None and id(prompt) not in encoded:
            encoded[id(prompt)] = _encode(prompt, codec)
    if not encoded:
        return None
    parts, like = [encoded.get(id(prompt)) for prompt in prompts], next(iter(encoded.values()))
    sizes = [0 if part is None else part.data.shape[-1] for part in parts]
    context, rate = max_frames / codec.frame_format.frame_rate, codec.frame_format.frame_rate
    for i, (size, total) in enumerate(zip(sizes, frames.tolist(), strict=True), 1):
        seconds = f"continue_from of clip {i} lasts {size / rate:g} seconds"
        if size > max_frames:
            raise RequestError(
                f"{seconds}, but the context of this model is {context:g}; give no more than its last {context:g}"
            )
        if size >= total:
            raise RequestError(f"{seconds}, and the clip {total / rate:g} with it; set `seconds` to more than {size / rate:g}")
    rows = [torch.zeros_like(like.data) if part is None else part.data for part in parts]
    data = torch.cat([F.pad(row, (0, max(sizes) - row.shape[-1])) for row in rows])
    lengths = torch.tensor(sizes, device=codec.device)
    return KnownFrames(like.with_data(data, lengths), torch.arange(max(sizes), device=codec.device) < lengths[:, None])


def drop_leading_samples(audio: Audio, start: Int[Tensor, " b"]) -> Audio:
    """Remove the first `start` samples of each clip."""
    wave, lengths = _shift(audio.wave, audio.lengths, start)
    return Audio(wave, audio.sample_rate, lengths)


def drop_leading_frames(frames: Codes | Latents, start: Int[Tensor, " b"], hop: int) -> Codes | Latents:
    """Remove the first `start` frames of each clip; `hop` is samples per frame."""
    data, lengths = _shift(frames.data, frames.lengths, start)
    samples = None if frames.samples is None else frames.samples - start.to(frames.samples.device) * hop
    return replace(frames.with_data(data, lengths), samples=samples)


def _shift(x: Tensor, lengths: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Shift rows left by `start`, cut to the longest, and fill with zeros after each end."""
    lengths = lengths - start.to(lengths.device)
    index = torch.arange(int(lengths.max()), device=x.device)
    source = (index + start.to(x.device)[:, None]).clamp(max=max(0, x.shape[-1] - 1))
    real = (index < lengths.to(x.device)[:, None])[:, None]
    return x.gather(-1, source[:, None].expand(-1, x.shape[1], -1)).where(real, 0), lengths


def _encode(prompt: AudioPrompt, codec: Codec) -> Codes | Latents:
    """Return the frames of one prompt, checked against the codec's frame format."""
    if isinstance(prompt, str | Path):
        prompt = load_codes(prompt, codec.spec) if Path(prompt).suffix == ".safetensors" else load_audio(prompt)
    if isinstance(prompt, Audio):
        if not int(prompt.lengths[0]):
            raise RequestError("continue_from: the audio has no samples; leave it out to start without a prompt")
        prompt = codec.encode(prompt.resample(codec.spec.sample_rate).to_channels(codec.spec.channels))
    if len(prompt) != 1:
        raise RequestError(f"continue_from: {len(prompt)} clips are given for one; give a list with one for each item")
    frames, frame_format = next(iter(prompt)).to(codec.device), codec.frame_format
    data, kind = frames.data, "codes" if isinstance(frames, Codes) else "latents"
    if (kind, data.shape[1]) != (frame_format.kind, frame_format.channels):
        raise RequestError(
            f"continue_from: {data.shape[1]} rows of {kind} are given, but this model's codec gives {frame_format.channels} "
            f"rows of {frame_format.kind}; give what `system.codec.encode` gives, or the audio"
        )
    if not data.shape[-1]:
        raise RequestError("continue_from: the prompt has no frames; leave it out to start without a prompt")
    if kind == "codes" and not 0 <= int(data.min()) <= int(data.max()) < frame_format.cardinality:
        raise RequestError(
            f"continue_from: codes must lie between 0 and {frame_format.cardinality - 1}; were they made by another codec?"
        )
    return frames
