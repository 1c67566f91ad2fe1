"""Texts and sounds through a CLAP, against transformers' with weights of chance."""

import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import normalize
from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, PreTrainedTokenizerFast

from cadenza.conditioners.base import ConditionerSet, ConditionerSpec
from cadenza.conditioners.clap import CLAPConditioner, ClapSpec, _random_weight, _tiny
from cadenza.core.errors import CheckpointError, RequestError, SpecError
from cadenza.dsp.audio import Audio
from cadenza.nn.clap import COMPUTED_BUFFERS

TEXTS = ["slow piano, 80 bpm", "drums", "a choir that sings for a very long time, 12 voices"]
RATE = 8000


def sound(seconds: float, seed: int = 0) -> Audio:
    return Audio(torch.randn(1, 1, int(seconds * RATE), generator=torch.Generator().manual_seed(seed)) * 0.3, RATE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLAP saved by transformers, with the tokenizer of the example."""
    return written(tmp_path_factory.mktemp("clap"))


def written(folder: Path, *, fusion: bool = False) -> Path:
    config = json.loads((Path(_tiny().name) / "config.json").read_text())
    audio = config["audio_config"] | ({"enable_fusion": True, "fusion_type": "aff_2d", "aff_block_r": 2} if fusion else {})
    model = ClapModel(ClapConfig(text_config=config["text_config"], audio_config=audio, projection_dim=12)).eval()
    with torch.no_grad():
        for name, x in [*model.named_parameters(), *model.named_buffers()]:
            if x.is_floating_point():
                x.copy_(_random_weight(name, x.shape, torch.Generator().manual_seed(len(name) + x.numel())))
    model.save_pretrained(folder)
    extractor(fusion).save_pretrained(folder)
    (folder / "tokenizer.json").write_bytes((Path(_tiny().name) / "tokenizer.json").read_bytes())
    return folder


def extractor(fusion: bool = False) -> ClapFeatureExtractor:
    return ClapFeatureExtractor(
        feature_size=32, sampling_rate=RATE, hop_length=80, max_length_s=1, fft_window_size=256, frequency_max=4000,
        truncation="fusion" if fusion else "rand_trunc",
    )  # fmt: skip


def part_of(folder: Path | str, **fields: Any) -> CLAPConditioner:
    spec = ClapSpec.parse(
        {"type": "clap", "model": str(folder), "output_dim": 12, "project": "auto", "null_embedding": "zeros"} | fields
    )
    return spec.build().eval()


@torch.no_grad()
def vectors(part: CLAPConditioner, values: list[Any]) -> torch.Tensor:
    return part(part.encode(part.prepare(values))).embeddings[:, 0]


@torch.no_grad()
def theirs(folder: Path, value: str | torch.Tensor, *, fusion: bool = False) -> torch.Tensor:
    """Return the embedding of transformers for one text, or for one sound of at most one window."""
    model = ClapModel.from_pretrained(folder).eval()
    if isinstance(value, str):
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
        return model.get_text_features(torch.tensor([tokenizer.encode(value)])).pooler_output[0]
    mel = torch.as_tensor(extractor(fusion)(value.numpy(), sampling_rate=RATE, return_tensors="pt")["input_features"])
    return model.get_audio_features(mel.float(), is_longer=torch.zeros(1, 1, dtype=torch.bool)).pooler_output[0]


def test_a_batch_gives_what_transformers_gives_each_value(folder: Path) -> None:
    short, exact = sound(0.4, 1), sound(1.0, 2)
    made = vectors(part_of(folder), [*TEXTS, short, exact])
    for value, x in zip([*TEXTS, short.wave[0, 0], exact.wave[0, 0]], made, strict=True):
        torch.testing.assert_close(x, theirs(folder, value), atol=2e-5, rtol=1e-4)
    assert (made @ made.T - torch.eye(5)).abs().max() < 0.98, "different values, different vectors"


def test_models_that_fuse_hear_one_window_at_a_time(tmp_path: Path) -> None:
    folder = written(tmp_path / "fused", fusion=True)
    assert any("fusion_model" in key for key in load_file(folder / "model.safetensors"))
    made = vectors(part_of(folder), [sound(0.7), TEXTS[0]])
    torch.testing.assert_close(made[0], theirs(folder, sound(0.7).wave[0, 0], fusion=True), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(made[1], theirs(folder, TEXTS[0]), atol=2e-5, rtol=1e-4)
    part_of(folder).save_assets(tmp_path / "kept", "it")
    assert torch.equal(vectors(part_of(tmp_path / "kept" / "it"), [sound(0.7), TEXTS[0]]), made)


@pytest.mark.parametrize("normalized", [True, False])
def test_a_long_sound_is_the_mean_of_its_windows(folder: Path, normalized: bool) -> None:
    part = part_of(folder, stride=0.5, normalize=normalized)
    long = sound(2.2)
    parts = [Audio(long.wave[..., i : i + RATE], RATE) for i in (0, 4000, 8000)]
    alone = vectors(part, parts)
    if normalized:
        torch.testing.assert_close(alone.norm(dim=-1), torch.ones(3))
    else:
        assert (alone.norm(dim=-1) - 1).abs().min() > 0.01
    expected = normalize(alone.mean(0), dim=-1) if normalized else alone.mean(0)
    torch.testing.assert_close(vectors(part, [parts[0], long, parts[1]])[1], expected, atol=1e-5, rtol=1e-4)
    other = long.resample(16000)
    stereo = Audio(torch.cat([other.wave * 1.5, other.wave * 0.5], 1), 16000)
    assert torch.cosine_similarity(vectors(part, [stereo])[0], expected, dim=0) > 0.99, "any rate and any channels"


def test_layers_of_the_text(folder: Path) -> None:
    """As stable-audio-tools takes them: 0 are the embeddings, -1 is the last."""
    model = ClapModel.from_pretrained(folder).eval().text_model
    for layer in (-3, -2, -1, 0, 1, 2):
        part = part_of(folder, modalities="text", layer=layer, output_dim=16)
        assert part.spec.output_kind == "tokens"
        assert not part.pretrained.weights().keys() & {"audio_projection.linear1.weight"}
        out = part(part.encode(part.prepare([*TEXTS, None])))
        assert out.mask.sum(1).tolist() == [len(text) + 2 for text in TEXTS] + [0]
        for row, mask, text in zip(out.embeddings, out.mask, TEXTS, strict=False):
            ids = torch.tensor([part.pretrained.tokenizer.encode(text).ids])
            with torch.no_grad():
                states = model(input_ids=ids, output_hidden_states=True).hidden_states[layer][0]
            torch.testing.assert_close(row[mask], states, atol=1e-5, rtol=1e-4)
            assert not row[~mask].any()
    padded = part_of(folder, modalities="text", layer=-1, output_dim=16, pad_to="max_length", max_length=60)
    assert padded(padded.encode(padded.prepare(["drums"]))).embeddings.shape == (1, 60, 16)
    with pytest.raises(SpecError, match="Set modalities: text and no codebooks"):
        part_of(folder, layer=-1)
    with pytest.raises(CheckpointError, match="has 2 text layers. Expected a layer from -3 to 2, not 3"):
        part_of(folder, modalities="text", layer=3)


def test_values(folder: Path, tmp_path: Path) -> None:
    part, file = part_of(folder), tmp_path / "hum.wav"
    sound(0.5).save(file, subtype="FLOAT")
    heard, said = vectors(part, [sound(0.5), "drums"])
    for value in (str(file), file, {"audio": file}, {"audio": sound(0.5), "text": None}):
        torch.testing.assert_close(vectors(part, [value])[0], heard, atol=1e-5, rtol=1e-4)
    for value in ({"text": "drums"}, {"text": "drums", "audio": file}):
        torch.testing.assert_close(vectors(part, [value])[0], said, atol=1e-6, rtol=1e-4)
    first = part_of(folder, prefer="audio")
    torch.testing.assert_close(vectors(first, [{"text": "drums", "audio": file}, "drums"]), torch.stack([heard, said]))
    ears, eyes = part_of(folder, modalities="audio"), part_of(folder, modalities="text")
    torch.testing.assert_close(vectors(ears, [str(file), {"text": "drums", "audio": file}]), heard.expand(2, -1))
    torch.testing.assert_close(vectors(eyes, ["drums", {"text": "drums", "audio": file}]), said.expand(2, -1))
    assert not part.prepare([None, "", "  ", {"text": ""}, {}]).present.any()
    assert ears.prepare([None, sound(0.5)]).present.tolist() == [False, True]
    assert part_of(folder, empty_text="encode").prepare(["", None]).present.tolist() == [True, False]
    for value in (3, ("a",), {"text": 1}):
        with pytest.raises(RequestError, match="it: a text or a sound is needed, got"):
            ConditionerSet({"it": part}).prepare([{"it": value}])
    with pytest.raises(RequestError, match=r"may have a 'text' and an 'audio', not \['melody'\]"):
        part.prepare([{"melody": 1}])
    with pytest.raises(RequestError, match="reads no sound; give a text"):
        eyes.prepare([sound(0.5)])
    with pytest.raises(RequestError, match="reads no text; give a sound"):
        ears.prepare([{"text": "drums"}])
    with pytest.raises(RequestError, match="no such file|cannot|not"):
        ears.prepare(["nowhere.wav"])


def test_training_goes_by_the_text_with_a_chance(folder: Path) -> None:
    part = part_of(folder, text_probability=0.3)
    both = {"text": "drums", "audio": sound(0.2)}
    prepared = part.prepare([both] * 300 + ["drums", sound(0.2)])
    assert prepared.tensors["by_text"].tolist() == [True] * 301 + [False]
    varied = part.augment(prepared, torch.Generator().manual_seed(0))
    again = part.augment(prepared, torch.Generator().manual_seed(0))
    chosen = varied.tensors["by_text"]
    assert torch.equal(chosen, again.tensors["by_text"]) and chosen[300:].tolist() == [True, False]
    assert abs(float(chosen[:300].float().mean()) - 0.3) < 4 * (0.21 / 300) ** 0.5
    few = part.augment(part.prepare([both] * 4), torch.Generator().manual_seed(3))
    said, heard = vectors(part, ["drums", sound(0.2)])
    made = part(part.encode(few)).embeddings[:, 0]
    torch.testing.assert_close(made, torch.where(few.tensors["by_text"][:, None], said, heard), atol=1e-5, rtol=1e-4)
    assert part_of(folder).augment(prepared, torch.Generator()).tensors["by_text"][:301].tolist() == [False] * 300 + [True]


def test_codebooks_are_fitted_to_the_values(folder: Path) -> None:
    part = part_of(folder, codebooks=2, bins=3)
    values = [*TEXTS, {"text": "drums", "audio": sound(0.3)}, None]
    exact = vectors(part_of(folder), [*TEXTS, sound(0.3)])
    part.prepare_training(values)
    made = vectors(part, [*TEXTS, sound(0.3)])
    books = part.quantizer.codebooks
    sums = (books[0].embed[:, None] + books[1].embed).flatten(0, 1)
    assert torch.cdist(made, sums).min(1).values.max() < 1e-5, "each is a sum of one entry of each codebook"
    coarse = part_of(folder, codebooks=1, bins=3)
    coarse.prepare_training(values)
    error, less = ((vectors(x, [*TEXTS, sound(0.3)]) - exact).norm() for x in (coarse, part))
    assert less < 0.5 * error and error < exact.norm()
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(vectors(part, [*TEXTS, sound(0.3)]), made)
    other = part_of(folder, codebooks=2, bins=3)
    other.load_state_dict(part.state_dict())
    assert torch.equal(vectors(other, [*TEXTS, sound(0.3)]), made)


def test_long_texts_are_cut_before_their_end_mark(folder: Path) -> None:
    with pytest.warns(UserWarning, match=r"a text has \d+ tokens, 9 are read"):
        ids = part_of(folder, max_length=9).prepare(["drums, drums", "drums"]).tensors["ids"]
    assert ids.shape == (2, 9) and ids[0, -1] == 2
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        part_of(folder, max_length=9).prepare(["drums, "])
    with pytest.warns(UserWarning, match="64 are read"):
        vectors(part_of(folder, max_length=500), ["drums " * 40])  # no more than it has positions


def test_frozen_towers_are_no_part_of_training(folder: Path) -> None:
    part = part_of(folder, output_dim=5).train()
    assert set(part.state_dict()) == {"out.weight", "out.bias"}
    towers = part.pretrained.get(torch.device("cpu"))
    assert not towers.training and not any(x.requires_grad for x in towers.parameters())
    assert len(pickle.dumps(part)) < 5000
    expected = vectors(part, [*TEXTS, sound(0.5)])
    assert torch.equal(vectors(pickle.loads(pickle.dumps(part)), [*TEXTS, sound(0.5)]), expected)
    part.to(torch.bfloat16)
    assert {x.dtype for x in towers.parameters()} == {torch.float32}
    half = vectors(part, [*TEXTS, sound(0.5)])
    assert half.dtype == torch.bfloat16 and 1e-5 < (half - expected).norm() / expected.norm() < 0.05


@pytest.mark.parametrize("reads", ["text", "audio", "both"])
def test_trained_towers_learn_and_are_saved(folder: Path, tmp_path: Path, reads: str) -> None:
    values: list[Any] = {"text": TEXTS, "audio": [sound(0.3), sound(1.6)], "both": [TEXTS[0], sound(0.3)]}[reads]
    part = part_of(folder, modalities=reads, train=True, null_embedding="learned", stride=0.5).train()
    frozen = vectors(part_of(folder, modalities=reads, stride=0.5), values)
    torch.testing.assert_close(vectors(part, values), frozen, atol=1e-5, rtol=1e-4)
    before = {key: x.clone() for key, x in part.named_buffers()}
    part(part.encode(part.prepare([*values, None]))).embeddings.square().sum().backward()
    assert all(torch.equal(x, before[key]) for key, x in part.named_buffers()), "nor do running means move"
    for name, x in part.encoder.named_parameters():
        assert x.grad is not None, name
    with torch.device("meta"):
        other = part.spec.build()
    assert other(other.encode(part.prepare([*values, None]).to("meta"))).embeddings.is_meta, "the host never looks at a value"
    other.to_empty(device="cpu").load_state_dict(part.state_dict())
    torch.testing.assert_close(vectors(other.eval(), values), frozen, atol=1e-5, rtol=1e-4)
    kept = part.save_assets(tmp_path, "it")
    assert not (tmp_path / "it" / "model.safetensors").exists()
    again = kept.resolve_paths(tmp_path).build()
    again.load_state_dict(part.state_dict())
    torch.testing.assert_close(vectors(again.eval(), values), frozen, atol=1e-5, rtol=1e-4)


def test_kept_with_the_system(folder: Path, tmp_path: Path) -> None:
    part = part_of(folder, output_dim=7)
    spec = part.save_assets(tmp_path, "conditioners/it")
    assert spec.model == "./conditioners/it" and spec.dim == 12
    again = ConditionerSpec.parse(json.loads(spec.to_json())).resolve_paths(tmp_path).build()
    again.load_state_dict(part.state_dict())
    assert torch.equal(vectors(again, [*TEXTS, sound(0.5)]), vectors(part, [*TEXTS, sound(0.5)]))
    assert not any(key.endswith(COMPUTED_BUFFERS) for key in load_file(tmp_path / "conditioners/it/model.safetensors"))


def test_what_is_no_clap(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "t5"}')
    with pytest.raises(CheckpointError, match=r"is not a CLAP \(model_type = 't5'\)"):
        part_of(tmp_path)
    with pytest.raises(CheckpointError, match="has a width of 12, not 13; fix `dim`"):
        _ = part_of(folder, dim=13).pretrained.config
    (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
    (tmp_path / "tokenizer.json").write_bytes((folder / "tokenizer.json").read_bytes())
    with pytest.raises(
        CheckpointError, match="no preprocessor_config.json or processor_config.json, so it is not a CLAP for audio"
    ):
        part_of(tmp_path).prepare([sound(0.2)])
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match="no tokenizer.json, so it is not a CLAP with its tokenizer"):
        part_of(tmp_path, modalities="text").prepare(["drums"])
