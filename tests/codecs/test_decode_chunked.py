"""Decoding in chunks gives the samples of decoding at once."""

import pytest
import torch

from cadenza.codecs.encodec import EncodecSpec
from cadenza.codecs.oobleck_vae import OobleckSpec
from cadenza.codecs.stereo import StereoSpec
from cadenza.core.types import Codes, Latents

CENTRED = {"causal": False, "pad_mode": "reflect", "lstm_layers": 1}
SPECS = {
    "causal": EncodecSpec.example(),
    "centred": EncodecSpec.example().model_copy(update=CENTRED),
    "stereo": StereoSpec.example(),
    "not streaming": OobleckSpec.example(),
}


@pytest.mark.parametrize("name", SPECS)
@pytest.mark.parametrize("size", [7, 24])
def test_chunks_equal_the_whole(name, size):
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
    whole, chunked = codec.decode(frames), codec.decode_chunked(frames, size)
    assert chunked.lengths.tolist() == whole.lengths.tolist() == codes.samples.tolist()
    for one, other in zip(chunked, whole, strict=True):
        torch.testing.assert_close(one.wave, other.wave, atol=1e-5, rtol=1e-4)
    if spec.supports_streaming:
        padding = torch.arange(chunked.wave.shape[-1]) >= chunked.lengths[:, None]
        assert not chunked.wave.masked_select(padding[:, None]).any()
