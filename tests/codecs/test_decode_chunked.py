"""Codes decoded a few frames at a time: the samples of the whole."""

import pytest
import torch

from cadenza.codecs.encodec import EncodecSpec
from cadenza.codecs.oobleck_vae import OobleckSpec
from cadenza.codecs.stereo import StereoSpec
from cadenza.core.types import Codes, Latents

LOOKING = {"causal": False, "pad_mode": "reflect", "lstm_layers": 1}
SPECS = {
    "causal": EncodecSpec.example(),
    "looks ahead": EncodecSpec.example().model_copy(update=LOOKING),
    "stereo": StereoSpec.example(),
    "whole only": OobleckSpec.example(),
}


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("size", [7, 24])
def test_the_same_samples(name, size):
    spec = SPECS[name]
    torch.manual_seed(0)
    codec = spec.build().eval().requires_grad_(False)
    lengths, frame_format = torch.tensor([100, 61, 7]), spec.frame_format
    codes = Codes(torch.randint(0, 16, (3, frame_format.channels, 100)), lengths, samples=lengths * spec.hop_length - 3)
    frames = (
        codes
        if frame_format.kind == "codes"
        else Latents(torch.randn(3, frame_format.channels, 100), lengths, samples=codes.samples)
    )
    whole, by = codec.decode(frames), codec.decode_chunked(frames, size)
    assert by.lengths.tolist() == whole.lengths.tolist() == codes.samples.tolist()
    for one, other in zip(by, whole, strict=True):
        torch.testing.assert_close(one.wave, other.wave, atol=1e-5, rtol=1e-4)
    if spec.supports_streaming:
        beyond = torch.arange(by.wave.shape[-1]) >= by.lengths[:, None]
        assert not by.wave.masked_select(beyond[:, None]).any()
