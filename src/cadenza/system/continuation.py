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


def encode_prompts(beginnings: Sequence[AudioPrompt | None], codec: Codec) -> KnownFrames | None:
    """Encode the audio prompt of each clip (None: no prompt) to known frames; resample and mix to the codec's format."""
    encoded: dict[int, Codes | Latents] = {}  # variations share a prompt
    for one in beginnings:
        if one is not None and id(one) not in encoded:
            encoded[id(one)] = _frames(one, codec)
    if not encoded:
        return None
    parts = [encoded.get(id(one)) for one in beginnings]
    longest = max(part.data.shape[-1] for part in encoded.values())
    lengths = torch.tensor([0 if part is None else part.data.shape[-1] for part in parts], device=codec.device)
    some = next(iter(encoded.values()))
    rows = [torch.zeros_like(some.data) if part is None else part.data for part in parts]
    content = torch.cat([F.pad(row, (0, longest - row.shape[-1])) for row in rows])
    return KnownFrames(some.with_data(content, lengths), torch.arange(longest, device=codec.device) < lengths[:, None])


def validate_prompts(prompt: KnownFrames, frames: Int[Tensor, " b"], *, window: int, rate: float) -> None:
    """Raise RequestError if a prompt is as long as its clip, or longer than `window` frames; `rate` is frames per second."""
    for i, (known_, wanted) in enumerate(zip(prompt.mask.sum(1).tolist(), frames.tolist(), strict=True)):
        where = f"continue_from of clip {i + 1} lasts {known_ / rate:g} seconds"
        if known_ > window:
            raise RequestError(
                f"{where}, but the context of this model is {window / rate:g}; give no more than its last {window / rate:g}"
            )
        if known_ >= wanted:
            raise RequestError(f"{where}, and the clip {wanted / rate:g} with it; set `seconds` to more than {known_ / rate:g}")


def drop_leading_samples(audio: Audio, start: Int[Tensor, " b"]) -> Audio:
    """Remove the first `start` samples of each clip."""
    wave, lengths = _shifted(audio.wave, audio.lengths, start)
    return Audio(wave, audio.sample_rate, lengths)


def drop_leading_frames(frames: Codes | Latents, start: Int[Tensor, " b"], hop: int) -> Codes | Latents:
    """Remove the first `start` frames of each clip; `hop` is samples per frame."""
    content, lengths = _shifted(frames.data, frames.lengths, start)
    samples = None if frames.samples is None else frames.samples - start.to(frames.samples.device) * hop
    return replace(frames.with_data(content, lengths), samples=samples)


def _shifted(x: Tensor, lengths: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Shift rows left by `start`, cut to the longest, and fill with zeros after each end."""
    lengths = lengths - start.to(lengths.device)
    index = torch.arange(int(lengths.max()), device=x.device)
    moved = (index + start.to(x.device)[:, None]).clamp(max=max(0, x.shape[-1] - 1))
    there = (index < lengths.to(x.device)[:, None])[:, None]
    return x.gather(-1, moved[:, None].expand(-1, x.shape[1], -1)).where(there, 0), lengths


def _frames(one: AudioPrompt, codec: Codec) -> Codes | Latents:
    if isinstance(one, str | Path):
        one = load_codes(one, codec.spec) if Path(one).suffix == ".safetensors" else load_audio(one)
    if isinstance(one, Audio):
        if not int(one.lengths[0]):
            raise RequestError("continue_from: the audio has no samples; leave it out to start without a prompt")
        one = codec.encode(one.resample(codec.spec.sample_rate).to_channels(codec.spec.channels))
    clips = list(one)
    if len(clips) != 1:
        raise RequestError(f"continue_from: {len(clips)} clips are given for one; give a list with one for each item")
    return _checked(clips[0].to(codec.device), codec)


def _checked(frames: Codes | Latents, codec: Codec) -> Codes | Latents:
    frame_format, content = codec.frame_format, frames.data
    kind = "codes" if isinstance(frames, Codes) else "latents"
    if (kind, content.shape[1]) != (frame_format.kind, frame_format.channels):
        raise RequestError(
            f"continue_from: {content.shape[1]} rows of {kind} are given, but this model's codec "
            f"gives {frame_format.channels} rows of "
            f"{frame_format.kind}; give what `system.codec.encode` gives, or the audio"
        )
    if not content.shape[-1]:
        raise RequestError("continue_from: the prompt has no frames; leave it out to start without a prompt")
    if kind == "codes" and not 0 <= int(content.min()) <= int(content.max()) < frame_format.cardinality:
        raise RequestError(
            f"continue_from: codes must lie between 0 and {frame_format.cardinality - 1}; were they made by another codec?"
        )
    return frames
