"""EnCodec with transformers' and AudioCraft's weights gives their latents, codes, loudness and audio."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from cadenza.codecs.encodec import Encodec
from cadenza.codecs.stereo import Stereo, StereoSpec
from cadenza.core.checkpoint import strip_prefix
from cadenza.core.types import Codes
from cadenza.dsp.audio import Audio
from cadenza.importers.audiocraft_package import InterpolatedConfig
from cadenza.importers.encodec import (
    spec_from_audiocraft,
    spec_from_transformers,
    weights_from_audiocraft,
    weights_from_transformers,
)

Kit = Callable[[str], Path]
TOLERANCE = {"atol": 1e-4, "rtol": 1e-3}


def codec_of(folder: Path, prefix: str = "") -> Encodec:
    """The codec of a transformers folder, or that under `prefix` of a larger model."""
    config = json.loads((folder / "config.json").read_text())
    spec = spec_from_transformers(config["audio_encoder"] if prefix else config, source="config.json")
    codec = spec.build()
    codec.load_state_dict(
        weights_from_transformers(strip_prefix(load_file(folder / "model.safetensors"), prefix), spec, source="weights")
    )
    return codec.eval()


def native(folder: Path) -> Encodec:
    """The codec of an AudioCraft package."""
    package = torch.load(folder / "compression_state_dict.bin", weights_only=True)
    spec = spec_from_audiocraft(InterpolatedConfig(yaml.safe_load(package["xp.cfg"]), "xp.cfg"), source="xp.cfg")
    codec = spec.build()
    codec.load_state_dict(weights_from_audiocraft(package["best_state"], spec, source="best_state"))
    return codec.eval()


def joined(expected: dict[str, Tensor], name: str) -> Tensor:
    """Their codes [chunks, b, k, f] as ours: one chunk after the other, without the frames that fill up the last."""
    codes = expected[f"{name}.codes"]
    flat = codes.permute(1, 2, 0, 3).flatten(2)
    return flat[..., : flat.shape[-1] - int(expected.get(f"{name}.last_frame_pad_length", torch.zeros(1)))]


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, **TOLERANCE)


@pytest.mark.parametrize("case", ["04a", "04b", "04c"])
def test_every_length_at_every_bandwidth(kit: Kit, case: str) -> None:
    folder = kit(case)
    expected = load_file(folder / "expected.safetensors")
    described = json.loads((folder / "case.json").read_text())
    codec = codec_of(folder / "model")
    counts = {float(rate): count for rate, count in described["parameters"]["codebooks_per_bandwidth"].items()}
    assert {rate: codec.spec.num_codebooks_for_bandwidth(rate) for rate in codec.spec.bandwidths} == counts
    compared = 0
    for length in described["forward_length"]:
        wave = expected[f"{length}.waveform"]
        if f"{length}.latent" in expected:
            close(codec.encoder(wave), expected[f"{length}.latent"])
        for rate, count in counts.items():
            name = f"{length}.bw{count}"
            codes = codec.encode(
                Audio(wave, codec.spec.sample_rate), num_codebooks=codec.spec.num_codebooks_for_bandwidth(rate)
            )
            assert torch.equal(codes.ids, joined(expected, name))
            if f"{name}.scales" in expected:
                close(codes.scale, expected[f"{name}.scales"][:, :, 0].T)
            decoded = expected[f"{name}.decoded"]
            close(codec.decode(codes).wave, decoded[..., : wave.shape[-1]])
            close(codec.decode(Codes(codes.ids, scale=codes.scale)).wave, decoded)
            compared += 1
    assert compared == len(counts) * len(described["forward_length"])


@pytest.mark.parametrize("case", ["04a", "04b", "04c"])
def test_batch(kit: Kit, case: str) -> None:
    """Theirs encodes the zeros that pad a clip; ours does not, and gives the same when they are called part of the clip."""
    folder = kit(case)
    expected = load_file(folder / "expected.safetensors")
    codec = codec_of(folder / "model")
    wave, rate = expected["batch.input_values"], codec.spec.sample_rate
    whole = codec.encode(Audio(wave, rate))
    theirs = expected["batch.codes"].permute(1, 2, 0, 3).flatten(2)
    assert torch.equal(whole.ids, theirs[..., : whole.ids.shape[-1]])
    if "batch.scales" in expected:
        close(whole.scale, expected["batch.scales"][:, :, 0].T)
    close(codec.decode(whole).wave, expected["batch.decoded"][..., : wave.shape[-1]])
    honoured = codec.encode(Audio(wave, rate, expected["batch.padding_mask"].sum(-1).long()))
    for i, clip in enumerate(honoured):
        alone = codec.encode(Audio(expected[f"batch.waveform{i}"][None], rate))
        assert torch.equal(clip.ids, alone.ids) and clip.samples.equal(alone.samples)
        close(codec.decode(clip).wave, codec.decode(alone).wave)


@pytest.mark.parametrize(("case", "name"), [("04a", "len9001.bw8"), ("04b", "len12345.bw4")])
def test_released_geometries_stream(kit: Kit, case: str, name: str) -> None:
    """What is mirrored at the start, or looked ahead to, is waited for."""
    folder = kit(case)
    expected = load_file(folder / "expected.safetensors")
    codes = expected[f"{name}.codes"][0]
    codec = codec_of(folder / "model")
    decoder = codec.streaming_decoder()
    chunks = [decoder.push(Codes(part)).wave for part in codes.split([3, 1, 9, codes.shape[-1] - 13], -1)]
    assert chunks[0].shape[-1] == 0 and chunks[2].shape[-1] > 0
    close(torch.cat([*chunks, decoder.flush().wave], -1), expected[f"{name}.decoded"])


@pytest.mark.parametrize("case", ["01", "02"])
def test_codec_inside_a_musicgen(kit: Kit, case: str) -> None:
    folder = kit(case)
    expected = load_file(folder / "expected.safetensors")
    mono = codec_of(folder / "model", "audio_encoder.")
    close(mono.decode(Codes(expected["codec.codes"][0])).wave, expected["codec.decoded"])
    codec = stereo(mono) if case == "02" else mono
    prompt = expected["continuation.input_values"]
    encoded = codec.encode(Audio(prompt, codec.spec.sample_rate))
    assert torch.equal(encoded.ids, expected["continuation.prompt_codes"])
    for run in [name.removesuffix(".audio") for name in expected if re.fullmatch(r"(greedy|continuation).*\.audio", name)]:
        close(codec.decode(Codes(expected[f"{run}.codes"])).wave, expected[f"{run}.audio"])


@pytest.mark.parametrize("case", ["09a", "09b"])
def test_native_codec(kit: Kit, case: str) -> None:
    folder = kit(case)
    expected = load_file(folder / "expected.safetensors")
    codec = stereo(native(folder / "model")) if case == "09b" else native(folder / "model")
    names = [name.removesuffix(".waveform") for name in expected if re.fullmatch(r"codec\.len\d+\.waveform", name)]
    assert len(names) == 3
    for name in names:
        wave = expected[f"{name}.waveform"]
        codes = codec.encode(Audio(wave, codec.spec.sample_rate))
        assert torch.equal(codes.ids, expected[f"{name}.codes"])
        close(codec.decode(Codes(codes.ids)).wave, expected[f"{name}.decoded"])
        assert codec.decode(codes).wave.shape == wave.shape


def stereo(mono: Encodec) -> Stereo:
    codec = StereoSpec(codec=mono.spec).build()
    codec.load_state_dict({f"codec.{name}": value for name, value in mono.state_dict().items()})
    return codec.eval()
