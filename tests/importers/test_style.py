"""MusicGen-Style in AudioCraft's package: config and weights, compared with layers of torch."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from foreign import audiocraft_folder, save_package
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import HubertConfig, HubertModel

import cadenza
from cadenza.core.errors import CheckpointError
from cadenza.dsp.audio import Audio
from cadenza.nn.rope import sinusoidal_embedding

STEM = "condition_provider.conditioners.self_wav."
STYLE = {
    **{"model_name": "mert", "transformer_scale": "xsmall", "sample_rate": "${sample_rate}", "encodec_n_q": 3, "length": 0.5},
    **{
        "encodec_checkpoint": "//pretrained/facebook/encodec_32khz",
        "ds_factor": 15,
        "n_q_out": 3,
        "eval_q": 2,
        "q_dropout": True,
    },
    **{"bins": 8, "varying_lengths": [0.2, 0.6], "batch_norm": True, "compute_mask": True, "num_codebooks_lm": 3},
    **{"ds_rate_compression": 640, "use_middle_of_segment": False, "rvq_threshold_ema_dead_code": 0.1},
}


def layers() -> nn.ModuleList:
    """Return torch's transformer, whose weights have AudioCraft's names; biases are zero, as AudioCraft has none."""
    blocks = nn.ModuleList(
        nn.TransformerEncoderLayer(256, 8, 1024, dropout=0, activation="gelu", batch_first=True, norm_first=True)
        for _ in range(4)
    )
    for name, x in blocks.named_parameters():
        if "norm" in name:
            nn.init.normal_(x, mean=float(name.endswith("weight")), std=0.2)
        elif name.endswith("bias"):
            nn.init.zeros_(x)
    return blocks.eval()


def write_package(folder: Path, **changes: Any) -> tuple[nn.ModuleList, dict[str, Tensor], HubertModel]:
    """Write a package with a style; return its layers, its other weights, and its tiny MERT."""
    torch.manual_seed(0)
    audiocraft_folder(folder, melody=True)
    content = torch.load(folder / "state_dict.bin", weights_only=True)
    net = layers()
    layer_weights = {
        f"transformer.layers.{key}": x.detach() for key, x in net.state_dict().items() if "norm" in key or "bias" not in key
    }
    other = {"embed.weight": torch.randn(256, 16), "embed.bias": torch.randn(256), "output_proj.bias": torch.randn(16)}
    other |= {"output_proj.weight": torch.randn(16, 256) / 16, "batch_norm.num_batches_tracked": torch.tensor(7)}
    other |= {"batch_norm.running_mean": torch.randn(256), "batch_norm.running_var": torch.rand(256) + 0.5}
    for k in range(3):
        book, stem = torch.randn(8, 256) / (k + 1), f"rvq.vq.layers.{k}._codebook."
        other |= {f"{stem}embed": book, f"{stem}embed_avg": 5 * book, f"{stem}cluster_size": torch.full((8,), 5.0)}
        other[f"{stem}inited"] = torch.ones(1)
    state = {key: x for key, x in content["best_state"].items() if not key.startswith(STEM)}
    state |= {f"{STEM}{key}": x for key, x in (layer_weights | other).items()}
    config = yaml.safe_load(content["xp.cfg"])
    config["conditioners"]["self_wav"] = {"model": "style", "style": STYLE | changes}
    save_package(folder / "state_dict.bin", state, yaml.safe_dump(config))
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "conv_dim": (8, 8, 8),
    }
    convolutions = {"conv_stride": (8, 8, 5), "conv_kernel": (10, 8, 5)}
    mert = HubertModel(HubertConfig(**sizes, **convolutions, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2)).eval()
    mert_folder = folder / "MERT-v1-95M"
    mert_folder.mkdir()
    (mert_folder / "config.json").write_text(json.dumps({**mert.config.to_dict(), "model_type": "mert_model"}))
    save_file({key: x.contiguous() for key, x in mert.state_dict().items()}, mert_folder / "model.safetensors")
    return net, other, mert


@torch.no_grad()
def theirs(net: nn.ModuleList, other: dict[str, Tensor], frames: Tensor, levels: int) -> Tensor:
    """Return the style of MERT frames by the steps of AudioCraft's module."""
    x = nn.functional.linear(frames, other["embed.weight"], other["embed.bias"])
    x = x + sinusoidal_embedding(torch.arange(x.shape[1])[None], 256)
    for layer in net:
        x = layer(x)
    x = (x - other["batch_norm.running_mean"]) / (other["batch_norm.running_var"] + 1e-5).sqrt()
    total = torch.zeros_like(x)
    for k in range(levels):
        book = other[f"rvq.vq.layers.{k}._codebook.embed"]
        total = total + book[((x - total)[..., None, :] - book).norm(dim=-1).argmin(-1)]
    return nn.functional.linear(total[:, ::15], other["output_proj.weight"], other["output_proj.bias"])


def test_package_with_a_style(tmp_path: Path) -> None:
    net, other, mert = write_package(tmp_path)
    system = cadenza.load(tmp_path, device="cpu")
    assert [route.id for route in system.spec.fusion.prepend] == ["style", "prompt"]
    spec: Any = system.spec.conditioners["style"]
    assert (spec.hidden, spec.depth, spec.heads, spec.levels, spec.eval_q, spec.downsample) == (256, 4, 8, 3, 2, 15)
    assert (spec.seconds, spec.train_seconds_range, spec.null_embedding) == (0.5, (0.2, 0.6), "zeros")
    wave = torch.randn(1, 1, 20000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        frames = mert(wave[0, :, 4000:16000]).last_hidden_state  # the middle half second at 24 kHz
    for value, levels in ((Audio(wave, 24000), 2), ({"audio": Audio(wave, 24000), "levels": 3}, 3)):
        style = system.encode_conditions(system.prepare([{"style": value}]))["style"].embeddings
        torch.testing.assert_close(style, theirs(net, other, frames, levels), atol=1e-4, rtol=1e-3)
    items = [{"prompt": "sad piano", "style": Audio(wave, 24000)}, {"prompt": "drums"}]
    with_style, without = system.generate_frames(items, seconds=0.2, sampling={"temperature": 0}).ids
    assert with_style.shape == without.shape == (3, 20)
    assert torch.equal(system.generate_frames(items[:1], seconds=0.2, sampling={"temperature": 0}).ids[0], with_style)
    system.save(tmp_path / "saved")
    again = cadenza.load(tmp_path / "saved", device="cpu")
    assert str(tmp_path / "MERT") not in (tmp_path / "saved/system.json").read_text()
    assert torch.equal(again.generate_frames(items, seconds=0.2, sampling={"temperature": 0}).ids[0], with_style)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_name": "encodec"}, "style.model_name: 'encodec' uses a codec of its own"),
        ({"transformer_scale": "huge"}, "style.transformer_scale: 'huge' is not a scale"),
        ({"batch_norm": False}, "style.batch_norm: False"),
        ({"shift": 1}, "style.shift: 1 is a setting that this release does not know"),
        ({"transformer_scale": "default"}, "the weights do not match the config"),
    ],
)
def test_unsupported_settings_are_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    write_package(tmp_path, **change)
    with pytest.raises(CheckpointError) as error:
        cadenza.load(tmp_path, device="cpu")
    assert message in str(error.value)
