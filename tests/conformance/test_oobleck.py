"""The autoencoder of stable-audio-tools: the same means, deviations and sound."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cadenza.codecs.base import CodecSpec
from cadenza.codecs.oobleck_vae import Oobleck
from cadenza.core.checkpoint import strip_prefix
from cadenza.core.types import Latents
from cadenza.dsp.audio import Audio
from cadenza.importers.base import ConfigReader
from cadenza.importers.stable_audio import convert_pretransform
from cadenza.importers.stable_audio_weights import convert_pretransform_weights

Kit = Callable[[str], Path]
TOLERANCE = {"atol": 1e-4, "rtol": 1e-3}


def loaded(folder: Path) -> tuple[Oobleck, dict[str, Tensor]]:
    config: dict[str, Any] = json.loads((folder / "model" / "model_config.json").read_text())
    section = ConfigReader(config["model"]["pretransform"], source="model.pretransform")
    codec = CodecSpec.parse(convert_pretransform(section, config["sample_rate"])).build()
    section.raise_errors()
    state = strip_prefix(load_file(folder / "model" / "model.safetensors"), "pretransform.")
    codec.load_state_dict(convert_pretransform_weights(state, codec.state_dict(), source="model"))
    assert isinstance(codec, Oobleck)
    return codec.eval(), load_file(folder / "expected.safetensors")


@pytest.mark.parametrize("case", ["13a", "13b", "13c", "13d"])
def test_autoencoder(kit: Kit, case: str) -> None:
    codec, expected = loaded(kit(case))
    wave = expected["vae.waveform"]
    with torch.no_grad():
        mean, std = codec.encode_distribution(wave)
    torch.testing.assert_close(mean, expected["vae.mean"], **TOLERANCE)
    torch.testing.assert_close(std, expected["vae.std"], **TOLERANCE)
    frames = codec.encode(Audio(wave, codec.spec.sample_rate))
    torch.testing.assert_close(frames.z * codec.spec.scale, expected["vae.mean"], **TOLERANCE)
    torch.testing.assert_close(codec.decode(frames).wave, expected["vae.decoded"], **TOLERANCE)
    given = codec.decode(Latents(expected["vae.mean"])).wave
    torch.testing.assert_close(given, expected["vae.pretransform_decoded"], **TOLERANCE)


def test_a_long_clip_is_decoded_whole(kit: Kit) -> None:
    """Theirs decodes it in chunks whose edges are not quite long enough: what is stored differs by about 1e-3."""
    folder = kit("13a")
    codec, expected = loaded(folder)
    every = json.loads((folder / "case.json").read_text())["parameters"]["vae_long_stride"]
    wave = codec.decode(Latents(expected["vae.long_z"])).wave[..., ::every]
    torch.testing.assert_close(wave, expected["vae.long_chunked"], atol=5e-3, rtol=1e-3)
