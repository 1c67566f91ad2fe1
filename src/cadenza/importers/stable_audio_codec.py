"""A pretransform of stable-audio-tools as a codec: what its JSON says, and the names of its weights."""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from cadenza.importers.layout import compare
from cadenza.importers.section import ConfigReader
from cadenza.importers.weights import to_float32_copy

_ENDS = {"weight_g": "parametrizations.weight.original0", "weight_v": "parametrizations.weight.original1"}


def convert_pretransform(section: ConfigReader, sample_rate: int) -> dict[str, Any]:
    """The codec that a `pretransform` describes; what cannot be honoured is noted in the section."""
    kind = section.get("type", str, "autoencoder")
    if kind != "autoencoder":
        section.unsupported("type", f"'{kind}' is a pretransform that this release does not have; there is: autoencoder")
        return {}
    scale = section.get("scale", (float, int), 1.0)
    section.ignore(["enable_grad", "model_half", "iterate_batch", "chunked", "gradient_checkpointing"])
    whole = section.subsection("config")
    section.reject_unread()
    encoder, down = _network(whole.subsection("encoder"), "in_channels")
    decoder, up = _network(whole.subsection("decoder"), "out_channels")
    latent = whole.get("latent_dim", int)
    whole.require_value("downsampling_ratio", _product(encoder["strides"]), why="is not the product of the encoder's strides")
    channels = whole.get("io_channels", int)
    for key in ("in_channels", "out_channels"):
        whole.require_value(key, channels, None, why="differs from io_channels")
    down.require_value("in_channels", channels, why="differs from io_channels")
    up.require_value("out_channels", channels, why="differs from io_channels")
    up.require_value("latent_dim", latent, why="differs from that of the autoencoder")
    bottleneck = "none"
    if whole.data.get("bottleneck") is not None:
        inner = whole.subsection("bottleneck")
        bottleneck = inner.get("type", str)
        inner.ignore(["requires_grad", "config"])
        inner.reject_unread()
        if bottleneck != "vae":
            inner.unsupported("type", f"'{bottleneck}' is a bottleneck that this release does not have; there is: vae, or none")
    else:
        whole.ignore(["bottleneck"])
    down.require_value("latent_dim", latent * (2 if bottleneck == "vae" else 1), why="does not suit the bottleneck")
    whole.require_value("pretransform", None)
    whole.reject_unread()
    spec = {"type": "oobleck_vae", "sample_rate": sample_rate, "channels": channels, "latent": latent, "scale": float(scale)}
    spec |= {"bottleneck": bottleneck, "tanh": up.get("final_tanh", bool, True), "encoder": encoder}
    spec |= {"upsample": "nearest" if up.get("use_nearest_upsample", bool, False) else "transposed"}
    for side in (down, up):
        side.reject_unread()
    return spec | ({} if decoder == encoder else {"decoder": decoder})


def convert_pretransform_weights(
    state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], *, source: str
) -> dict[str, Tensor]:
    """Weights of a pretransform by the names of our codec, of which `wanted` has the shapes."""
    names = {_theirs(name): name for name in wanted}
    compare(state, {there: wanted[here].shape for there, here in names.items()}, source=source)
    return {names[there]: x for there, x in to_float32_copy(state).items()}


def _network(section: ConfigReader, channels: str) -> tuple[dict[str, Any], ConfigReader]:
    """The stages of an encoder or decoder, and the section of its other settings."""
    kind = section.get("type", str)
    section.ignore(["requires_grad"])
    section.require_value("soft_clip", False, why="is not offered")
    if kind != "oobleck":
        section.unsupported("type", f"'{kind}' is an autoencoder that this release does not have; there is: oobleck")
    inner = section.subsection("config")
    section.reject_unread()
    inner.require_value("antialias_activation", False, why="is not offered")
    stages = {
        "strides": inner.get("strides", list, [2, 4, 8, 8]),
        "filters": inner.get("channels", int, 128),
        "multiples": inner.get("c_mults", list, [1, 2, 4, 8]),
        "snake": inner.get("use_snake", bool, False),
    }
    for key in (channels, "latent_dim"):
        inner.get(key, int)
    return stages, inner


def _theirs(name: str) -> str:
    """`analysis.1.0.3.bias` is `model.encoder.layers.1.layers.0.layers.3.bias`."""
    side, rest = name.split(".", 1)
    rest = rest if rest.startswith("layers.") else re.sub(r"(\d+)\.", r"layers.\1.", rest)
    rest = (
        re.sub(r"^(layers\.\d+\.layers\.1\.)layers\.", r"\1", rest) if side == "synthesis" else rest
    )  # of a repeating upsampler
    for there, here in _ENDS.items():
        rest = rest.removesuffix(here) + there if rest.endswith(here) else rest
    return f"model.{'encoder' if side == 'analysis' else 'decoder'}.{rest}"


def _product(strides: list[int]) -> int:
    product = 1
    for stride in strides:
        product *= stride if isinstance(stride, int) else 1
    return product
