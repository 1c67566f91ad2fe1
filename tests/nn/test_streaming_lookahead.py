"""Receptive field of a decoder, measured by changing single frames."""

import pytest
import torch

from cadenza.nn.conv import ConvConfig
from cadenza.nn.seanet import Decoder, SeanetConfig
from cadenza.nn.streaming import LookaheadStream, receptive_field


def shape(**changes: object) -> SeanetConfig:
    fields = {"channels": 1, "dimension": 3, "strides": (4, 3), "widths": (4, 6, 8), "residual_layers": (2, 1), "kernel": 5}
    return SeanetConfig(**(fields | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("changes", [{}, {"residual_layers": (4, 0), "last_kernel": 3}, {"strides": (1, 2), "kernel": 8}])
def test_samples_depend_only_on_the_receptive_field(causal: bool, changes: dict) -> None:
    torch.manual_seed(0)
    form = shape(style=ConvConfig(causal=causal, pad_mode="constant"), **changes)
    decoder, hop = Decoder(form).eval().double(), form.strides[0] * form.strides[1]
    far = sum(receptive_field(form))
    z = torch.randn(1, 3, 41, dtype=torch.double)
    changed_z = z.clone()
    changed_z[..., 20] += 1.0
    changed = (decoder(z) - decoder(changed_z))[0, 0].unflatten(0, (-1, hop)).abs().amax(-1) > 0
    places = changed.nonzero()[:, 0] - 20
    assert places.abs().max() <= far, "the stream would differ"
    assert places.abs().max() >= far - 2, "the stream would wait longer than needed"


def test_stream_equals_the_whole_clip() -> None:
    torch.manual_seed(0)
    form = shape(style=ConvConfig(pad_mode="reflect"), lstm_layers=2)
    decoder = Decoder(form).eval()
    z = torch.randn(2, 3, 30)
    stream = LookaheadStream(decoder, form)
    with torch.no_grad():
        pieces = [stream.push(part, [part.shape[-1]] * 2) for part in z.split([1, 9, 0, 20], -1)] + [stream.flush()]
        for clip, whole in enumerate(decoder(z)):
            torch.testing.assert_close(torch.cat([piece[clip] for piece in pieces if clip in piece], -1), whole)
    assert stream.push(z[..., :0], [0, 0]) == {}
