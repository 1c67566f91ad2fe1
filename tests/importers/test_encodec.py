"""EnCodec of transformers and AudioCraft: import and export, compared with tiny random models of transformers."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import EncodecConfig, EncodecModel, MusicgenDecoderConfig, T5Config
from transformers.models.musicgen import MusicgenConfig

from cadenza.codecs.encodec import Encodec, EncodecSpec
from cadenza.codecs.stereo import StereoSpec
from cadenza.core.errors import CheckpointError
from cadenza.core.types import Codes, FrameFormat
from cadenza.dsp.audio import Audio
from cadenza.importers import encodec as importer

TINY = {"sampling_rate": 4000, "hidden_size": 8, "num_filters": 2, "codebook_size": 32, "upsampling_ratios": [4, 2]}
GEOMETRIES: dict[str, dict[str, Any]] = {
    "causal": {"target_bandwidths": [2.5, 5.0, 10.0]},
    "odd_strides": {"upsampling_ratios": [3, 5, 1], "num_residual_layers": 2, "target_bandwidths": [1.5, 4.0]},
    "centred": {"upsampling_ratios": [5, 3], "use_causal_conv": False, "use_conv_shortcut": False, "num_residual_layers": 3},
    "dilated": {"dilation_growth_rate": 3, "num_residual_layers": 3, "residual_kernel_size": 5, "use_causal_conv": False},
    "kernels": {"kernel_size": 5, "last_kernel_size": 3, "compress": 1, "num_lstm_layers": 1, "pad_mode": "replicate"},
    "even_kernels": {"kernel_size": 4, "last_kernel_size": 6, "use_causal_conv": False, "pad_mode": "constant"},
    "thin": {"num_filters": 3, "compress": 3, "hidden_size": 5, "pad_mode": "constant"},
    "early": {"trim_right_ratio": 0.4, "pad_mode": "constant"},
    "normalized": {"normalize": True, "pad_mode": "constant"},
    "stereo": {
        "audio_channels": 2, "norm_type": "time_group_norm", "use_causal_conv": False, "normalize": True, "num_filters": 4,
    },
    "chunked": {
        "audio_channels": 2, "norm_type": "time_group_norm", "use_causal_conv": False, "normalize": True,
        "chunk_length_s": 0.1, "overlap": 0.01, "num_filters": 4,
    },
    "causal_chunks": {"chunk_length_s": 0.0505, "overlap": 0.2, "upsampling_ratios": [4, 4]},
    "causal_group": {
        "norm_type": "time_group_norm", "trim_right_ratio": 0.3, "normalize": True, "audio_channels": 2, "num_filters": 5,
    },
    "bare": {"num_residual_layers": 0, "kernel_size": 1, "last_kernel_size": 9, "upsampling_ratios": [6, 7]},
}  # fmt: skip


def theirs(name: str, **changes: Any) -> EncodecModel:
    """Return a random model of transformers whose codebooks spread as widely as its latents."""
    torch.manual_seed(sorted(GEOMETRIES).index(name))
    default = {"target_bandwidths": [2.5, 10.0]}
    model = EncodecModel(EncodecConfig(**(TINY | default | GEOMETRIES[name] | changes))).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    z = model.encoder(torch.randn(1, model.config.audio_channels, 800))
    for layer in model.quantizer.layers:
        book = layer.codebook
        book.embed.copy_(z.std() * torch.randn_like(book.embed))
        book.cluster_size.copy_(1 + torch.rand_like(book.cluster_size))
        book.embed_avg.copy_(book.embed * book.cluster_size[:, None])
    return model


def ours(model: EncodecModel) -> Encodec:
    spec = importer.spec_from_transformers(model.config.to_dict(), source="config.json")
    codec = spec.build()
    codec.load_state_dict(importer.weights_from_transformers(model.state_dict(), spec, source="model.safetensors"))
    return codec.eval()


def encode_and_decode(model: EncodecModel, wave: Tensor, bandwidth: float) -> tuple[Tensor, Tensor | None, Tensor]:
    """Return transformers' codes with chunks in sequence, its scales [b s], and the decoded audio."""
    encoded = model.encode(wave, bandwidth=bandwidth)
    flat = encoded.audio_codes.permute(1, 2, 0, 3).flatten(2)
    scales = torch.cat(encoded.audio_scales, -1) if model.config.normalize else None
    last = encoded.last_frame_pad_length
    audio = model.decode(encoded.audio_codes, encoded.audio_scales, last_frame_pad_length=last).audio_values
    return flat[..., : flat.shape[-1] - last], scales, audio[..., : wave.shape[-1]]


def assert_close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_codes_scales_and_audio_equal_transformers(name: str) -> None:
    model = theirs(name)
    codec = ours(model)
    hop, rate = codec.spec.hop_length, 4000
    lengths = [1, hop - 1, hop, hop + 1, 201, 397, 777]
    wave = 0.3 * torch.randn(len(lengths), codec.spec.channels, 777)
    batch = codec.encode(Audio(wave, rate, torch.tensor(lengths)))
    decoded = codec.decode(batch)
    for bandwidth in model.config.target_bandwidths:
        levels = codec.spec.num_codebooks_for_bandwidth(bandwidth)
        assert levels == model.quantizer.get_num_quantizers_for_bandwidth(bandwidth)
        for length in lengths:
            clip = wave[lengths.index(length)][None, :, :length]
            codes, scales, audio = encode_and_decode(model, clip, bandwidth)
            encoded = codec.encode(Audio(clip, rate), num_codebooks=levels)
            assert torch.equal(encoded.ids, codes), f"{length} samples"
            assert (encoded.scale is None) == (scales is None)
            if scales is not None:
                assert_close(encoded.scale, scales)
            assert_close(codec.decode(encoded).wave, audio)
    for i, length in enumerate(lengths):
        codes, _, audio = encode_and_decode(model, wave[i : i + 1, :, :length], model.config.target_bandwidths[-1])
        assert torch.equal(list(batch)[i].ids, codes), "in a batch of unequal lengths as alone"
        assert_close(list(decoded)[i].wave, audio)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_transformers_loads_the_export(name: str, tmp_path: Path) -> None:
    model = theirs(name)
    codec = ours(model)
    config = importer.config_to_transformers(codec.spec)
    assert importer.spec_from_transformers(config, source="again") == codec.spec
    (tmp_path / "config.json").write_text(json.dumps(config))
    weights = importer.weights_to_transformers(codec.state_dict())
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    loaded: Any = EncodecModel.from_pretrained(tmp_path, output_loading_info=True)
    again, report = loaded
    assert not any(report.values()), report
    for key, value in model.config.to_dict().items():
        assert key in ("architectures", "_name_or_path", "dtype") or again.config.to_dict()[key] == value, key
    wave = torch.randn(1, codec.spec.channels, 397)
    for bandwidth in model.config.target_bandwidths:
        one, other = (encode_and_decode(each.eval(), wave, bandwidth) for each in (model, again))
        assert torch.equal(one[0], other[0]) and torch.equal(one[2], other[2])
    for key, value in model.state_dict().items():
        if not key.endswith(("cluster_size", "embed_avg")):
            assert torch.equal(weights[key], value)
    first = "quantizer.layers.0.codebook."
    assert_close(weights[f"{first}embed_avg"] / weights[f"{first}cluster_size"][:, None], weights[f"{first}embed"])


def test_export_computes_a_bandwidth_for_all_codebooks() -> None:
    for codebooks in range(1, 33):
        for rate in (16000, 24000, 44100):
            spec = EncodecSpec(sample_rate=rate, codebooks=codebooks, bins=1024, lstm_layers=1)
            config = EncodecConfig(**importer.config_to_transformers(spec))
            assert config.num_quantizers == codebooks


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lstm_layers": 0}, "no LSTM"),
        ({"widths": (4, 8, 16, 33)}, r"widths \[4, 8, 16, 33\]"),
        ({"residual_layers": (1, 2, 1)}, r"residual_layers \[1, 2, 1\]"),
        ({"norm": "none"}, "norm 'none'"),
        ({"bins": 24}, "24 entries"),
        ({"channels": 3}, "3 channels"),
    ],
)
def test_unsupported_codecs_are_not_exported(change: dict[str, Any], message: str) -> None:
    spec = EncodecSpec.parse(EncodecSpec.example().to_dict() | {"lstm_layers": 1} | change)
    with pytest.raises(CheckpointError, match=message):
        importer.config_to_transformers(spec)
    with pytest.raises(CheckpointError, match="'stereo' is not an EnCodec"):
        importer.config_to_transformers(StereoSpec.example())


def test_config_in_a_musicgen() -> None:
    inner = EncodecConfig(**(TINY | {"target_bandwidths": [10.0]}))
    whole = MusicgenConfig(text_encoder=T5Config(), audio_encoder=inner, decoder=MusicgenDecoderConfig())
    spec = importer.spec_from_transformers(whole.to_dict()["audio_encoder"], source="config.json.audio_encoder")
    assert spec == importer.spec_from_transformers(inner.to_dict(), source="config.json")
    old = {"torch_dtype": "float32", "typical_p": 1.0, "forced_bos_token_id": None, "_commit_hash": None}  # of transformers 4
    assert importer.spec_from_transformers(inner.to_dict() | old, source="config.json") == spec


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_fliters": 3}, "config.json.num_fliters: 3 is a setting that this release does not know"),
        ({"model_type": "dac"}, "config.json.model_type: 'dac' is another codec"),
        ({"norm_type": "layer_norm"}, "config.json.norm_type: 'layer_norm'"),
        ({"pad_mode": "circular"}, "config.json.pad_mode: 'circular'"),
        ({"codebook_dim": 3}, "config.json.codebook_dim: 3 differs from hidden_size"),
        ({"codebook_size": 1000}, "codebook_size: must be a power of two, got 1000"),
        ({"chunk_length_s": 1.0, "overlap": None}, "config.json.overlap: is missing"),
        ({"target_bandwidths": [0.1]}, "not enough for one codebook"),
        ({"target_bandwidths": []}, "target_bandwidths must hold positive numbers"),
        ({"upsampling_ratios": [4, 0]}, "must hold positive numbers"),
        ({"sampling_rate": "24k"}, "sampling_rate: must be int, got '24k'"),
        ({"trim_right_ratio": 0.5, "use_causal_conv": False}, "trim_right_ratio: 0.5 is only defined where use_causal_conv"),
        ({"compress": 64}, "compress"),
        ({"num_filters": -1}, "filters"),
    ],
)
def test_unsupported_settings_are_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError) as error:
        importer.spec_from_transformers(EncodecConfig(**TINY).to_dict() | change, source="config.json")
    assert message in str(error.value)


def test_weights_must_match_the_config() -> None:
    model = theirs("causal")
    spec, state = importer.spec_from_transformers(model.config.to_dict(), source="config.json"), dict(model.state_dict())
    key, book = "encoder.layers.0.conv.bias", "quantizer.layers.1.codebook."
    faults: list[tuple[dict[str, Tensor], str]] = [
        ({name: x for name, x in state.items() if name != key}, "1 missing: encoder.layers.0.conv.bias"),
        (state | {"encoder.layers.99.conv.bias": state[key]}, "1 unknown: encoder.layers.99.conv.bias"),
        (state | {key: state[key][:1]}, r"conv.bias is \[1\] instead of \[2\]"),
        (state | {key: state[key] * torch.nan}, "not finite"),
        (state | {f"{book}inited": torch.zeros(1)}, "codebook 1 was never trained"),
    ]
    for wrong, message in faults:
        with pytest.raises(CheckpointError, match=message):
            importer.weights_from_transformers(wrong, spec, source="model.safetensors")


def test_half_precision_and_former_names_of_weight_norm() -> None:
    model = theirs("centred")
    spec = importer.spec_from_transformers(model.config.to_dict(), source="config.json")
    state = {name: x.half() for name, x in model.state_dict().items()}
    new = importer.weights_from_transformers(state, spec, source="new")
    former = {name.replace("parametrizations.weight.original0", "weight_g"): x for name, x in state.items()}
    former = {name.replace("parametrizations.weight.original1", "weight_v"): x for name, x in former.items()}
    assert former.keys() != state.keys()
    old = importer.weights_from_transformers(former, spec, source="old")
    assert all(x.dtype == torch.float32 and torch.equal(x, new[name]) for name, x in old.items())
    assert {name: x.shape for name, x in new.items()} == {name: x.shape for name, x in spec.build().state_dict().items()}


AUDIOCRAFT: dict[str, Any] = {
    "compression_model": "encodec",
    "sample_rate": 4000,
    "optim": {"lr": 3e-4},  # other keys do not change the model
    "encodec": {
        "autoencoder": "seanet", "quantizer": "rvq", "sample_rate": 4000, "channels": 1, "causal": False, "renormalize": False,
    },
    "seanet": {
        "dimension": 8, "channels": 1, "causal": False, "n_filters": 2, "n_residual_layers": 1, "ratios": [4, 2],
        "activation": "ELU", "activation_params": {"alpha": 1.0}, "norm": "weight_norm", "norm_params": {}, "kernel_size": 7,
        "residual_kernel_size": 3, "last_kernel_size": 7, "dilation_base": 2, "pad_mode": "constant", "true_skip": True,
        "compress": 2, "lstm": 2, "disable_norm_outer_blocks": 0,
        "decoder": {"trim_right_ratio": 1.0, "final_activation": None, "final_activation_params": None}, "encoder": {},
    },
    "rvq": {
        "n_q": 4, "q_dropout": False, "bins": 32, "decay": 0.99, "kmeans_init": True, "kmeans_iters": 50,
        "threshold_ema_dead_code": 2, "orthogonal_reg_weight": 0.0, "orthogonal_reg_active_codes_only": False,
    },
}  # fmt: skip


def audiocraft_config(model: EncodecModel) -> dict[str, Any]:
    """Return the AudioCraft config that describes a model of transformers."""
    c, config = model.config, copy.deepcopy(AUDIOCRAFT)
    both = {"channels": c.audio_channels, "causal": c.use_causal_conv}
    config["encodec"] |= both | {"renormalize": c.normalize}
    config["seanet"] |= both | {
        "dimension": c.hidden_size, "n_filters": c.num_filters, "n_residual_layers": c.num_residual_layers,
        "ratios": list(c.upsampling_ratios), "norm": c.norm_type, "kernel_size": c.kernel_size, "pad_mode": c.pad_mode,
        "residual_kernel_size": c.residual_kernel_size, "last_kernel_size": c.last_kernel_size, "compress": c.compress,
        "dilation_base": c.dilation_growth_rate, "true_skip": not c.use_conv_shortcut, "lstm": c.num_lstm_layers,
    }  # fmt: skip
    config["seanet"]["decoder"]["trim_right_ratio"] = c.trim_right_ratio
    config["rvq"] |= {"n_q": c.num_quantizers, "bins": c.codebook_size}
    return config


def audiocraft_name(name: str, transposed: set[str]) -> str:
    """Return AudioCraft's name of a weight from that of transformers."""
    name = name.replace("parametrizations.weight.original0", "weight_g").replace(
        "parametrizations.weight.original1", "weight_v"
    )
    name = re.sub(r"quantizer\.layers\.(\d+)\.codebook\.", r"quantizer.vq.layers.\1._codebook.", name)
    stem = re.match(r"(encoder|decoder)\.layers\.\d+", name)
    if stem is None or ".lstm." in name:
        return re.sub(r"^(encoder|decoder)\.layers", r"\1.model", name)
    kind = "convtr" if stem[0] in transposed else "conv"
    name = re.sub(r"\.conv\.(?=[a-z_]+$)", f".{kind}.{kind}.", name)
    name = re.sub(r"\.norm\.(?=[a-z_]+$)", f".{kind}.norm.", name)
    return name.replace(".layers.", ".model.", 1)


def test_audiocraft_refuses_a_causal_codec_with_group_norm() -> None:
    with pytest.raises(CheckpointError, match=r"xp.cfg.seanet.norm: 'time_group_norm' normalizes over the whole clip"):
        importer.spec_from_audiocraft(audiocraft_config(theirs("causal_group")), source="xp.cfg")


@pytest.mark.parametrize("name", [name for name in GEOMETRIES if "chunk" not in name and name != "causal_group"])
def test_audiocraft_packages_equal_transformers(name: str) -> None:
    model = theirs(name)
    transposed = {
        path.removesuffix(".conv") for path, part in model.named_modules() if isinstance(part, torch.nn.ConvTranspose1d)
    }
    state = {audiocraft_name(key, transposed): x for key, x in model.state_dict().items()}
    spec = importer.spec_from_audiocraft(audiocraft_config(model), source="xp.cfg")
    codec = spec.build().eval()
    codec.load_state_dict(importer.weights_from_audiocraft(state, spec, source="best_state"))
    same = ours(model)
    assert spec.model_copy(update={"bandwidths": same.spec.bandwidths}) == same.spec
    wave = torch.randn(1, spec.channels, 333)
    one, other = codec.encode(Audio(wave, 4000)), same.encode(Audio(wave, 4000))
    assert torch.equal(one.ids, other.ids) and torch.equal(codec.decode(one).wave, same.decode(other).wave)


def test_audiocraft_names_without_lstm_or_norm() -> None:
    """Without an LSTM the indices of later layers decrease; without weight norm a weight is one tensor."""
    config = copy.deepcopy(AUDIOCRAFT)
    config["seanet"] |= {"ratios": [2], "lstm": 0, "norm": "none", "true_skip": False}
    config["rvq"] |= {"n_q": 1}
    spec = importer.spec_from_audiocraft(config, source="xp.cfg")
    residual = {"block.1.conv.conv": (1, 2, 3), "block.3.conv.conv": (2, 1, 1), "shortcut.conv.conv": (2, 2, 1)}
    weights = {"encoder.model.0.conv.conv": (2, 1, 7), "encoder.model.3.conv.conv": (4, 2, 4)}
    weights |= {"encoder.model.5.conv.conv": (8, 4, 7), "decoder.model.0.conv.conv": (4, 8, 7)}
    weights |= {"decoder.model.2.convtr.convtr": (4, 2, 4), "decoder.model.5.conv.conv": (1, 2, 7)}
    weights |= {
        f"{block}.{name}": shape for block in ("encoder.model.1", "decoder.model.3") for name, shape in residual.items()
    }
    state = {f"{name}.weight": torch.randn(shape) for name, shape in weights.items()}
    state |= {f"{name}.bias": torch.randn(shape[1] if "convtr" in name else shape[0]) for name, shape in weights.items()}
    shapes = {"inited": (1,), "cluster_size": (32,), "embed": (32, 8), "embed_avg": (32, 8)}
    state |= {f"quantizer.vq.layers.0._codebook.{name}": torch.ones(shape) for name, shape in shapes.items()}
    spec.build().load_state_dict(importer.weights_from_audiocraft(state, spec, source="best_state"))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("compression_model", "dac", "xp.cfg.compression_model: 'dac'"),
        ("encodec.quantizer", "no_quant", "xp.cfg.encodec.quantizer: 'no_quant'"),
        ("seanet.activation", "ReLU", "xp.cfg.seanet.activation: 'ReLU'"),
        ("seanet.activation_params", {"alpha": 0.5}, "xp.cfg.seanet.activation_params"),
        ("seanet.norm", "spectral_norm", "xp.cfg.seanet.norm: 'spectral_norm'"),
        ("seanet.disable_norm_outer_blocks", 2, "xp.cfg.seanet.disable_norm_outer_blocks: 2"),
        ("seanet.decoder.final_activation", "Tanh", "xp.cfg.seanet.decoder.final_activation: 'Tanh'"),
        ("seanet.decoder.lstm", 1, "xp.cfg.seanet.decoder.lstm: 1 differs from seanet.lstm (2)"),
        ("seanet.encoder.wobble", 1, "xp.cfg.seanet.encoder.wobble: 1 is a setting"),
        ("seanet.wobble", 1, "xp.cfg.seanet.wobble: 1 is a setting"),
        ("seanet.channels", 2, "xp.cfg.seanet.channels: 2 differs from encodec.channels"),
        ("rvq.n_q", "four", "xp.cfg.rvq.n_q: must be int, got 'four'"),
        ("rvq.wobble", 1, "xp.cfg.rvq.wobble: 1 is a setting"),
        ("rvq", None, "xp.cfg.rvq: a mapping of keys is needed"),
    ],
)
def test_unsupported_settings_of_audiocraft_are_named(key: str, value: Any, message: str) -> None:
    config = copy.deepcopy(AUDIOCRAFT)
    *path, last = key.split(".")
    node = config
    for step in path:
        node = node[step]
    node[last] = value
    with pytest.raises(CheckpointError) as error:
        importer.spec_from_audiocraft(config, source="xp.cfg")
    assert message in str(error.value)


def test_encoder_and_decoder_may_repeat_settings() -> None:
    config = copy.deepcopy(AUDIOCRAFT)
    config["seanet"]["encoder"] = {"kernel_size": 7}
    config["seanet"]["decoder"] |= {"kernel_size": 7}
    expected = importer.spec_from_audiocraft(AUDIOCRAFT, source="xp.cfg")
    assert importer.spec_from_audiocraft(config, source="xp.cfg") == expected


RELEASED: dict[str, tuple[dict[str, Any], int, float, float]] = {  # changes, codebooks, frame rate, millions of weights
    "24khz": ({}, 32, 75.0, 14.9),
    "32khz": (
        {
            "sampling_rate": 32000, "num_filters": 64, "upsampling_ratios": [8, 5, 4, 4], "codebook_size": 2048,
            "target_bandwidths": [2.2], "use_causal_conv": False, "use_conv_shortcut": False,
        }, 4, 50.0, 56.9,
    ),
    "48khz": (
        {
            "sampling_rate": 48000, "audio_channels": 2, "target_bandwidths": [3.0, 6.0, 12.0, 24.0], "chunk_length_s": 1.0,
            "overlap": 0.01, "normalize": True, "norm_type": "time_group_norm", "use_causal_conv": False,
        }, 16, 150.0, 14.9,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", RELEASED)
def test_released_geometries(name: str) -> None:
    """On the meta device, weights agree with transformers by name and shape."""
    changes, codebooks, rate, millions = RELEASED[name]
    config = EncodecConfig(**changes)
    spec = importer.spec_from_transformers(config.to_dict(), source="config.json")
    assert (spec.codebooks, spec.frame_format.frame_rate) == (codebooks, rate)
    assert spec.chunk_spans(48001) == ([(0, 48000), (47520, 48001)] if name == "48khz" else [(0, 48001)])
    with torch.device("meta"):
        codec, model = spec.build(), EncodecModel(config)
    assert round(sum(p.numel() for p in codec.parameters()) / 1e6, 1) == millions
    shapes = {key: tuple(x.shape) for key, x in importer.weights_to_transformers(codec.state_dict()).items()}
    assert shapes == {key: tuple(x.shape) for key, x in model.state_dict().items()}


@pytest.mark.parametrize(("rate", "ratios"), [(16000, [8, 5, 4, 2]), (32000, [8, 5, 4, 4])])
def test_codecs_of_audiogen_and_musicgen(rate: int, ratios: list[int]) -> None:
    config = copy.deepcopy(AUDIOCRAFT)
    config["encodec"]["sample_rate"] = rate
    config["seanet"] |= {"ratios": ratios, "n_filters": 64, "dimension": 128}
    config["rvq"]["bins"] = 2048
    spec = importer.spec_from_audiocraft(config, source="xp.cfg")
    assert (
        spec.frame_format == FrameFormat("codes", 50.0, channels=4, cardinality=2048)
        and spec.num_codebooks_for_bandwidth(2.2) == 4
    )
    with torch.device("meta"):
        codec = spec.build()
    assert rate != 32000 or round(sum(p.numel() for p in codec.parameters()) / 1e6, 1) == 56.9


def test_codes_without_a_scale_decode_at_rms_one() -> None:
    codec = ours(theirs("stereo"))
    codes = codec.encode(Audio(torch.randn(1, 2, 80), 4000))
    assert codes.scale is not None
    loud = codec.decode(Codes(codes.ids, scale=codes.scale * 3)).wave
    assert_close(loud, codec.decode(Codes(codes.ids)).wave * 3 * codes.scale[..., None])
