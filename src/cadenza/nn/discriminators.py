"""The multi-scale STFT discriminator of EnCodec (arXiv:2210.13438, appendix A.2)."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from cadenza.dsp.spectral import stft


@dataclass(frozen=True)
class DiscriminatorOutput:
    """Logits of one discriminator (high for real audio), and its feature maps."""

    logits: Float[Tensor, "b 1 f n"]
    features: list[Tensor]


class STFTDiscriminator(nn.Module):
    """2-D convolutions over the real and imaginary parts of a spectrogram."""

    def __init__(self, channels: int, n_fft: int, *, filters: int = 32, dilations: Sequence[int] = (1, 2, 4)) -> None:
        super().__init__()
        self.n_fft = n_fft
        convs: list[nn.Module] = [nn.Conv2d(2 * channels, filters, (3, 9), padding=(1, 4))]
        for dilation in dilations:
            wide = nn.Conv2d(filters, filters, (3, 9), (1, 2), padding=(dilation, 4), dilation=(dilation, 1))
            convs.append(weight_norm(wide))
        convs.append(weight_norm(nn.Conv2d(filters, filters, 3, padding=1)))
        self.convs = nn.ModuleList(convs)
        self.last = weight_norm(nn.Conv2d(filters, 1, 3, padding=1))

    def forward(self, wave: Float[Tensor, "b c t"]) -> DiscriminatorOutput:
        wave = F.pad(wave, (0, max(self.n_fft - wave.shape[-1], 0)))
        spectrum = stft(wave, self.n_fft, hop=self.n_fft // 4, center=False, normalized=True)
        x = torch.cat([spectrum.real, spectrum.imag], 1).transpose(2, 3)
        features = []
        for conv in self.convs:
            x = F.leaky_relu(conv(x), 0.3)
            features.append(x)
        return DiscriminatorOutput(self.last(x), features)


class MultiScaleSTFTDiscriminator(nn.Module):
    """One STFTDiscriminator per window size `n_ffts`."""

    def __init__(self, channels: int = 1, *, n_ffts: Sequence[int] = (1024, 2048, 512, 256, 128), filters: int = 32) -> None:
        super().__init__()
        self.scales = nn.ModuleList(STFTDiscriminator(channels, n_fft, filters=filters) for n_fft in n_ffts)

    def forward(self, wave: Float[Tensor, "b c t"]) -> list[DiscriminatorOutput]:
        return [scale(wave) for scale in self.scales]
