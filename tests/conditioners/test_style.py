"""Style: its excerpt, encoder, bottleneck and training."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, HubertConfig, HubertModel

from cadenza.conditioners.base import PreparedInputs
from cadenza.conditioners.style import StyleConditioner, StyleSpec
from cadenza.core.errors import CheckpointError, RequestError, SpecError
from cadenza.dsp.audio import Audio
from cadenza.nn.vector_quantize import MaskedBatchNorm, VariableRVQ


def noise(samples: int, seed: int = 0) -> Audio:
    return Audio(torch.randn(1, 1, samples, generator=torch.Generator().manual_seed(seed)), 800)


def style(**fields: Any) -> StyleConditioner:
    torch.manual_seed(0)
    part = StyleSpec.parse({**StyleSpec.example()[0].to_dict(), **fields}).build().eval()
    for book in part.bottleneck.quantizer.codebooks:
        nn.init.normal_(book.embed, std=0.5)
    return part


def run(part: StyleConditioner, value: Any) -> Tensor:
    return part(part.encode(part.prepare([value]))).embeddings[0]


def test_an_excerpt_becomes_a_few_vectors() -> None:
    """100 frames a second: 0.4 seconds are 40, of which every 5th is kept; a shorter sound is used whole."""
    part = style()
    out = part(part.encode(part.prepare([noise(900), noise(170), noise(5)])))
    assert out.mask.sum(1).tolist() == [8, 5, 2]  # 40 frames, 22 frames, and 10 of a tenth of a second
    assert not out.embeddings[1, 5:].any()


def test_the_middle_is_heard_unless_a_place_is_told() -> None:
    part, sound = style(), noise(1000)
    middle = Audio(sound.wave[..., 340:660], 800)
    torch.testing.assert_close(run(part, sound), run(part, middle))
    later = {"audio": sound, "start": 0.75, "seconds": 0.3}
    torch.testing.assert_close(run(part, later), run(part, {"audio": Audio(sound.wave[..., 600:840], 800), "seconds": 0.3}))
    assert not torch.allclose(run(part, sound)[:6], run(part, later)[:6])
    with pytest.raises(RequestError, match="starts at 9 s, but the sound ends at 1.25 s"):
        part.prepare([{"audio": sound, "start": 9}])
    with pytest.raises(RequestError, match="whole number from 1 to 3, not 4"):
        part.prepare([{"audio": sound, "levels": 4}])
    with pytest.raises(RequestError, match="a mapping of audio to it, and of start, seconds, levels"):
        part.prepare([{"audio": sound, "strength": 4}])


def test_strength_is_the_number_of_codebooks() -> None:
    """What comes out is a sum of one entry of each codebook that is used, and of no other."""
    part, sound = style(output_dim=16), noise(900)
    with torch.no_grad():
        part.out.weight.copy_(torch.eye(16))
        part.out.bias.zero_()
    first, second, third = (book.embed for book in part.bottleneck.quantizer.codebooks)
    sums = {1: first, 2: (first[:, None] + second).flatten(0, 1)}
    sums[3] = (sums[2][:, None] + third).flatten(0, 1)
    for levels, entries in sums.items():
        found = run(part, {"audio": sound, "levels": levels})
        assert (found[:, None] - entries).norm(dim=-1).min(1).values.max() < 1e-4
    torch.testing.assert_close(run(part, sound), run(part, {"audio": sound, "levels": 2}))


def test_excerpts_are_drawn_in_training() -> None:
    part = style()
    prepared = part.prepare([noise(900), noise(90)] * 50)
    one, again, other = (part.augment(prepared, torch.Generator().manual_seed(seed)).tensors for seed in (1, 1, 2))
    assert all(torch.equal(one[name], again[name]) for name in one) and not torch.equal(one["start"], other["start"])
    long, short = one["length"][::2], one["length"][1::2]
    assert ((long >= 160) & (long <= 400)).all() and long.unique().numel() > 20 and (short == 90).all()
    assert (one["start"] >= 0).all() and (one["start"] + one["length"] <= one["samples"]).all()
    assert one["start"][::2].min() < 100 and one["start"][::2].max() > 450
    assert set(one["levels"].tolist()) == {1, 2, 3}


def test_the_norm_is_torchs_over_what_is_real() -> None:
    ours, theirs = MaskedBatchNorm(6), nn.BatchNorm1d(6, affine=False)
    rng = torch.Generator().manual_seed(0)
    batches = [(3 * torch.randn(4, 9, 6, generator=rng) + 2, torch.rand(4, 9, generator=rng) > 0.4) for _ in range(3)]
    for x, mask in batches:
        torch.testing.assert_close(ours(x, mask)[mask], theirs(x[mask]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    torch.testing.assert_close(ours.running_var, theirs.running_var)
    x, mask = batches[-1]
    torch.testing.assert_close(ours.eval()(x, mask)[mask], theirs.eval()(x[mask]), atol=1e-5, rtol=1e-5)


def test_codebooks_learn_of_real_vectors_in_training_alone() -> None:
    torch.manual_seed(0)
    centres = torch.randn(4, 8)
    bottleneck = VariableRVQ(8, codebooks=2, bins=4)

    def batch(seed: int) -> tuple[Tensor, Tensor]:
        rng = torch.Generator().manual_seed(seed)
        x = centres[torch.randint(4, (6, 20), generator=rng)] + 0.05 * torch.randn(6, 20, 8, generator=rng)
        mask = torch.arange(20).expand(6, -1) < 15
        return torch.where(mask[..., None], x, 1e4), mask

    def missed() -> float:
        x, mask = batch(99)
        normal = bottleneck.eval().norm(x, mask)
        return float((bottleneck(x, mask, torch.full((6,), 2)) - normal)[mask].square().mean())

    before = missed()
    rng = torch.Generator().manual_seed(0)
    for seed in range(150):
        x, mask = batch(seed)
        bottleneck.train()(x, mask, torch.full((6,), 2), rng=rng)
    after = missed()
    assert before > 0.3 and after < 0.1
    held = [book.embed.clone() for book in bottleneck.quantizer.codebooks]
    bottleneck.eval()(*batch(1), torch.full((6,), 2), rng=rng)
    assert all(torch.equal(a, book.embed) for a, book in zip(held, bottleneck.quantizer.codebooks, strict=True))
    x = batch(1)[0].requires_grad_(True)
    bottleneck(x, batch(1)[1], torch.full((6,), 2)).sum().backward()
    assert x.grad is not None and x.grad[:, :15].all()  # straight through


@pytest.fixture
def mert(tmp_path: Path) -> tuple[Path, HubertModel]:
    """A tiny HuBERT in the files of a MERT, whose convolutions have weights by their old names."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "conv_dim": (8, 8)}
    config = HubertConfig(
        **sizes, conv_stride=(5, 2), conv_kernel=(10, 3), num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2
    )
    model = HubertModel(config).eval()
    folder = tmp_path / "mert"
    folder.mkdir()
    said = {**config.to_dict(), "model_type": "mert_model", "feature_extractor_cqt": False, "deepnorm": False}
    (folder / "config.json").write_text(json.dumps(said))
    old = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
    state = dict(model.state_dict())
    for new, name in old.items():
        state = {key.replace(new, name): x.contiguous() for key, x in state.items()}
    save_file({**state, "final_proj.weight": torch.zeros(2)}, folder / "model.safetensors")
    return folder, model


def test_a_mert_of_a_folder(mert: tuple[Path, HubertModel], tmp_path: Path) -> None:
    """Excerpts of two lengths in one batch, each equal to transformers alone; saved next to the system's weights."""
    folder, model = mert
    fields = {"codec": None, "model": str(folder), "sample_rate": 800, "seconds": 0.4}
    part = style(**fields)
    values = [noise(900), noise(200, 1)]
    features = part.encode(part.prepare(values))
    for row, wave in enumerate((values[0].wave[0, :, 290:610], values[1].wave[0])):
        with torch.no_grad():
            want = model(wave).last_hidden_state[0]
        assert features.tensors["mask"][row].sum() == len(want)
        torch.testing.assert_close(features.tensors["x"][row, : len(want)], want, atol=1e-5, rtol=1e-4)
    whole = part(features)
    assert "listener" not in " ".join(part.state_dict()) and part.up.weight.shape == (16, 16)
    torch.testing.assert_close(run(part, values[1]), whole.embeddings[1][whole.mask[1]], atol=1e-5, rtol=1e-4)
    loud = style(**fields, normalize=True)
    torch.testing.assert_close(run(loud, values[1]), run(loud, Audio(7 * values[1].wave + 1, 800)), atol=1e-3, rtol=1e-3)
    kept = part.save_assets(tmp_path / "saved", "conditioners/it").resolve_paths(tmp_path / "saved")
    assert kept.dim == 16 and kept.model == str(tmp_path / "saved/./conditioners/it")  # type: ignore[attr-defined]
    again = kept.build().eval()
    again.load_state_dict(part.state_dict())
    torch.testing.assert_close(run(again, values[1]), run(part, values[1]))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["hubert", "wav2vec2", "wavlm"])
def test_speech_encoders_equal_transformers(kind: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24, "conv_dim": (8, 8)}
    positions = {"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2}
    config = AutoConfig.for_model(kind, **sizes, **positions, conv_stride=(5, 2), conv_kernel=(10, 3), num_buckets=8)
    model = AutoModel.from_config(config).eval()
    model.save_pretrained(tmp_path)
    part, wave = style(codec=None, model=str(tmp_path), sample_rate=800, seconds=0.4), noise(320)
    with torch.no_grad():
        expected = model(wave.wave[0]).last_hidden_state[0]
    features = part.encode(part.prepare([wave]))
    torch.testing.assert_close(features.tensors["x"][0], expected, atol=1e-5, rtol=1e-4)


def test_what_is_no_mert_is_said(mert: tuple[Path, HubertModel]) -> None:
    folder, _ = mert
    config = json.loads((folder / "config.json").read_text())
    for change, said in (
        ({"model_type": "bert"}, "has model_type 'bert'. Expected one of hubert, mert_model"),
        ({"feature_extractor_cqt": True}, "feature_extractor_cqt: True, which is not supported"),
        ({"num_hidden_layers": 3}, "do not match the config"),
    ):
        (folder / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(CheckpointError, match=said):
            run(style(codec=None, model=str(folder), sample_rate=800), noise(900))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"codec": None}, r"set `model` \(for example m-a-p/MERT-v1-95M\) or `codec`"),
        ({"eval_q": 4}, r"eval_q \(4\) cannot be more than levels \(3\)"),
        ({"heads": 3}, r"heads \(3\) must divide hidden \(16\)"),
        ({"train_seconds_range": [2, 1]}, "the lesser first"),
    ],
)
def test_specs_that_cannot_be(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(SpecError, match=said):
        StyleSpec.parse({**StyleSpec.example()[0].to_dict(), **fields})


def test_values_that_are_absent_do_not_move_the_norm() -> None:
    part = style(output_dim=8).train()
    prepared = part.prepare([noise(900), None])
    part(part.encode(prepared))
    moved = part.bottleneck.norm.running_mean.clone()
    other = style(output_dim=8).train()
    other(other.encode(PreparedInputs(other.prepare([noise(900)]).tensors, torch.tensor([True]))))
    torch.testing.assert_close(moved, other.bottleneck.norm.running_mean)


def test_the_frozen_encoder_moves_with_the_module() -> None:
    part, devices = style(), list[torch.device]()

    class Encoder:
        def move_to(self, device: torch.device) -> None:
            devices.append(device)

    part.model = Encoder()  # type: ignore[assignment]
    part.to("cpu")
    assert devices == [torch.device("cpu")]
