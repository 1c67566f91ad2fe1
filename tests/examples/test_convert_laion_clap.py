"""LAION's checkpoints of CLAP, made here of transformers' models with weights of chance, whose names are turned back.

No file of LAION's can be had where these tests run: its names and shapes are those that its issues and its published
code give, its real numbers are not tested.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from convert_laion_clap import convert_laion_clap
from transformers import ClapConfig, ClapModel

from cadenza.conditioners.clap import ClapSpec, _random_weight, _tiny
from cadenza.core.errors import CheckpointError
from cadenza.dsp.audio import Audio

HEADS = 2


@torch.no_grad()
def model(*, fusion: bool = False) -> ClapModel:
    config = json.loads((Path(_tiny().name) / "config.json").read_text())
    audio = config["audio_config"] | {"depths": [1, 2, 1, 1], "num_mel_bins": 64, "spec_size": 256, "window_size": 8}
    audio |= {"enable_fusion": True, "fusion_type": "aff_2d", "aff_block_r": 2} if fusion else {}
    text = config["text_config"] | {"layer_norm_eps": 1e-5, "num_attention_heads": HEADS}
    made = ClapModel(ClapConfig(text_config=text, audio_config=audio, projection_dim=12)).eval()
    for name, x in [*made.named_parameters(), *made.named_buffers()]:
        if x.is_floating_point():
            x.copy_(_random_weight(name, x.shape, torch.Generator().manual_seed(len(name) + x.numel())))
    return made


def laion(made: ClapModel, *, fusion: bool = False) -> dict[str, torch.Tensor]:
    """The weights of a model by LAION's names, stage by stage, with all else that its files hold."""
    ours, state = made.state_dict(), dict[str, torch.Tensor]()
    ends = ("weight", "bias")

    def take(theirs: str, *names: str) -> None:
        state[theirs] = torch.cat([ours.pop(name) for name in names]) if len(names) > 1 else ours.pop(*names)

    a, b = "audio_branch.", "audio_model.audio_encoder."
    for end in (*ends, "running_mean", "running_var", "num_batches_tracked"):
        take(f"{a}bn0.{end}", f"{b}batch_norm.{end}")
    for part in ("patch_embed.proj", "patch_embed.norm", "norm", *(["patch_embed.mel_conv2d"] if fusion else [])):
        for end in ends:
            take(f"{a}{part}.{end}", f"{b}{part}.{end}")
    for name in [name for name in ours if "fusion_model" in name or ".downsample." in name]:
        take(name.replace(b, a), name)
    for stage, depth in enumerate(made.config.audio_config.depths):
        for block in range(depth):
            x, y = f"{a}layers.{stage}.blocks.{block}.", f"{b}layers.{stage}.blocks.{block}."
            for end in ends:
                take(f"{x}norm1.{end}", f"{y}layernorm_before.{end}")
                take(f"{x}norm2.{end}", f"{y}layernorm_after.{end}")
                take(f"{x}attn.qkv.{end}", *(f"{y}attention.self.{part}.{end}" for part in ("query", "key", "value")))
                take(f"{x}attn.proj.{end}", f"{y}attention.output.dense.{end}")
                take(f"{x}mlp.fc1.{end}", f"{y}intermediate.dense.{end}")
                take(f"{x}mlp.fc2.{end}", f"{y}output.dense.{end}")
            for end in ("relative_position_bias_table", "relative_position_index"):
                take(f"{x}attn.{end}", f"{y}attention.self.{end}")
    for side in ("audio", "text"):
        for end in ends:
            take(f"{side}_projection.0.{end}", f"{side}_projection.linear1.{end}")
            take(f"{side}_projection.2.{end}", f"{side}_projection.linear2.{end}")
            state |= {f"{side}_transform.sequential.{i}.{end}": torch.ones(3) for i in (0, 3)}
    for name in list(ours):
        take(name.replace("text_model.", "text_branch."), name)
    state |= {f"{a}{name}": torch.ones(3) for name in ("tscam_conv.bias", "head.weight", "logmel_extractor.melW")}
    state |= {
        f"{a}spectrogram_extractor.stft.conv_real.weight": torch.ones(3),
        f"{a}layers.1.blocks.1.attn_mask": torch.ones(3),
    }
    return state


def saved(path: Path, state: dict[str, torch.Tensor], **beside: Any) -> Path:
    torch.save({"epoch": 15, "name": "run", "state_dict": state, **beside}, path)
    return path


@pytest.mark.parametrize("fusion", [False, True])
def test_a_checkpoint_gives_the_vectors_of_its_model(tmp_path: Path, fusion: bool) -> None:
    made = model(fusion=fusion)
    state = {f"module.{name}": x for name, x in laion(made, fusion=fusion).items()}
    path = saved(tmp_path / "music.pt", state, best=np.float64(0.5), step=np.int64(3), optimizer={"state": {}, "lr": 0.1})
    convert_laion_clap(path, tmp_path / "clap", tokenizer=_tiny().name, heads=HEADS)
    config = json.loads((tmp_path / "clap/config.json").read_text())
    assert config["audio_config"]["depths"] == [1, 2, 1, 1] and config["audio_config"]["enable_fusion"] == fusion
    again = ClapModel.from_pretrained(tmp_path / "clap").eval()
    wanted = made.state_dict()
    assert wanted.keys() == again.state_dict().keys()
    assert all(torch.equal(x, wanted[name]) for name, x in again.state_dict().items())
    part = ClapSpec(model=str(tmp_path / "clap"), output_dim=12, project="auto", null_embedding="zeros").build().eval()
    sound = Audio(torch.randn(1, 1, 60000, generator=torch.Generator().manual_seed(0)), 48000)
    prepared = part.prepare(["drums", sound])
    assert prepared.tensors["mel"].shape == (2, 1, 1001, 64)
    with torch.no_grad():
        x = part(part.encode(prepared)).embeddings[:, 0]
        said = made.get_text_features(prepared.tensors["ids"][:1]).pooler_output[0]
        mel = prepared.tensors["mel"][1, :, None]
        heard = made.get_audio_features(
            mel.expand(-1, 4, -1, -1) if fusion else mel, is_longer=torch.zeros(1, 1)
        ).pooler_output[0]
    torch.testing.assert_close(x, torch.stack([said, heard]), atol=2e-5, rtol=1e-4)


class Trap:
    def __reduce__(self) -> Any:
        return print, ("run",)


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = laion(model())

    def refused(said: str, held: dict[str, torch.Tensor], heads: int | None = HEADS, **beside: Any) -> None:
        path = saved(tmp_path / "a.pt", held, **beside)
        with pytest.raises(CheckpointError, match=said):
            convert_laion_clap(path, tmp_path / "out", tokenizer=_tiny().name, heads=heads)
        assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))

    lost = "audio_branch.layers.0.blocks.0.attn.proj.bias"
    refused("1 missing: audio_model.*attention.output.dense.bias", {k: x for k, x in state.items() if k != lost})
    refused("1 unknown: text_model.embeddings.more", state | {"text_branch.embeddings.more": torch.ones(1)})
    refused("1 unknown: more.weight", state | {"more.weight": torch.ones(1)})
    refused("misshapen", state | {lost: torch.ones(9)})
    refused("not finite", state | {lost: state[lost] * torch.nan})
    refused("heads of another width than 64; give their number", state, heads=None)
    refused("no CLAP with HTS-AT and RoBERTa.*it holds audio_branch", {"audio_branch.conv_block1.weight": torch.ones(1)})
    refused("could run its code", state, trap=Trap())
    assert "run" not in capsys.readouterr().out
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(CheckpointError, match="exists already"):
        convert_laion_clap(tmp_path / "a.pt", tmp_path / "full", tokenizer=_tiny().name)
