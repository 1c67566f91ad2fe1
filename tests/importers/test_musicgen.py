"""MusicGen in geometries that the conformance kit lacks, compared with transformers; errors of configs and weights."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from foreign import change, musicgen, musicgen_folder, tree
from safetensors.torch import load_file, save_file
from torch import Tensor

import cadenza
from cadenza.core.errors import CheckpointError
from cadenza.core.types import Codes
from cadenza.nn.patterns import build_sequence
from cadenza.system.system import System

WIDE = {"text__d_model": 16, "text__feed_forward_proj": "gated-gelu", "decoder__ffn_dim": 40}
STEREO = {
    "decoder__num_codebooks": 6,
    "decoder__audio_channels": 2,
    "decoder__num_attention_heads": 4,
    "audio__pad_mode": "constant",
}
DEEP = {"text__num_layers": 3, "decoder__hidden_size": 24, "decoder__num_hidden_layers": 3, "decoder__num_attention_heads": 3}
ODD = {  # odd widths of heads and model, one codebook for each channel, and settings without effect
    **{"decoder__hidden_size": 15, "decoder__num_attention_heads": 3, "decoder__ffn_dim": 37, "decoder__scale_embedding": True},
    **{"text__feed_forward_proj": "gated-silu", "text__relative_attention_num_buckets": 8, "text__d_kv": 2},
    **{"text__relative_attention_max_distance": 16, "text__tie_word_embeddings": False, "text__layer_norm_epsilon": 1e-5},
    **{"decoder__num_codebooks": 2, "decoder__audio_channels": 2, "audio__target_bandwidths": [0.4]},
    **{"audio__use_causal_conv": True, "audio__chunk_length_s": 0.05, "audio__overlap": 0.01},
}


def theirs(model: Any, system: System, texts: list[str], codes: Tensor) -> Tensor:
    """Return logits [b k s v] of the whole sequence, with the padding of texts masked."""
    prepared = system.prepare([{"prompt": text} for text in texts])["prompt"].tensors
    spec: Any = system.spec.generator
    sequence, _ = build_sequence(spec.pattern.pattern(*codes.shape[1:]), codes, system.codec.frame_format.cardinality)
    with torch.no_grad():
        out = model(input_ids=prepared["ids"], attention_mask=prepared["mask"].long(), decoder_input_ids=sequence.flatten(0, 1))
    return out.logits.unflatten(0, (len(codes), -1))


def ours(system: System, texts: list[str], codes: Tensor) -> Tensor:
    spec: Any = system.spec.generator
    pattern = spec.pattern.pattern(*codes.shape[1:])
    sequence, _ = build_sequence(pattern, codes, system.codec.frame_format.cardinality)
    conditions = system.encode_conditions(system.prepare([{"prompt": text} for text in texts]))
    fused = system.fuse(conditions, frames=codes.shape[-1])
    assert system.generator is not None
    return system.generator(sequence, fused, pattern.frame_at_step.expand(len(codes), -1, -1)).transpose(1, 2)


@pytest.mark.parametrize("changes", [{}, WIDE, STEREO, DEEP, ODD], ids=["plain", "wide text", "stereo", "deep", "odd"])
def test_logits_and_audio_equal_transformers(tmp_path: Path, changes: dict[str, Any]) -> None:
    model = musicgen_folder(tmp_path / "m", **changes)
    system = cadenza.load(tmp_path / "m", device="cpu")
    texts = ["sad piano", "drums, 90"]
    rows, rng = system.codec.frame_format.channels, torch.Generator().manual_seed(1)
    codes = torch.randint(16, (2, rows, 7), generator=rng)
    torch.testing.assert_close(ours(system, texts, codes), theirs(model, system, texts, codes), atol=2e-4, rtol=1e-3)
    prepared = system.prepare([{"prompt": texts[0]}])["prompt"].tensors
    with torch.no_grad():
        wave = model.generate(
            input_ids=prepared["ids"],
            attention_mask=prepared["mask"].long(),
            do_sample=False,
            max_new_tokens=11,
            guidance_scale=3.0,
        )
    frames = 12 - rows // system.spec.codec.channels
    generated = system.generate(
        texts[0], seconds=frames / system.codec.frame_format.frame_rate, sampling={"temperature": 0}, guidance=3.0
    )
    torch.testing.assert_close(generated.wave, wave, atol=1e-4, rtol=1e-3)


def test_generation_defaults(tmp_path: Path) -> None:
    musicgen_folder(tmp_path)
    system = cadenza.load(tmp_path, device="cpu")
    assert system.spec.defaults.seconds == pytest.approx((43 - 3) / 100)  # 8000 Hz / (4 * 4 * 5); the start and the delay count
    assert system.spec.defaults.guidance == 3.0
    assert system.spec.defaults.sampling == {"temperature": 1.0, "top_k": 50, "top_p": 0.0}
    assert system.spec.generator.max_frames >= 40 and not system.spec.generator.attend_padding
    change(tmp_path / "generation_config.json", do_sample=False, top_k=7, max_new_tokens=20, guidance_scale=None)
    system = cadenza.load(tmp_path, device="cpu")
    assert system.spec.defaults.sampling == {"temperature": 0.0} and system.spec.defaults.guidance == 1.0
    assert system.spec.defaults.seconds == pytest.approx((20 + 1 - 3) / 100)
    change(tmp_path / "generation_config.json", forced_decoder_ids=None, return_legacy_cache=True)  # as older releases wrote
    assert cadenza.load(tmp_path, device="cpu").spec.defaults == system.spec.defaults
    (tmp_path / "generation_config.json").unlink()
    assert cadenza.load(tmp_path, device="cpu").spec.defaults.guidance == 3.0


@pytest.mark.parametrize("form", ["shards", "pickle", "pickled shards", "half"])
def test_formats_of_weight_files(tmp_path: Path, form: str) -> None:
    model = musicgen_folder(tmp_path / "a")
    state = load_file(tmp_path / "a/model.safetensors")
    before = cadenza.load(tmp_path / "a", device="cpu").state_dict()
    (tmp_path / "a/model.safetensors").unlink()
    if form == "shards":
        model.save_pretrained(tmp_path / "a", max_shard_size="20kB")
        assert len(list((tmp_path / "a").glob("model-*.safetensors"))) > 2
    elif form == "pickle":
        torch.save(state, tmp_path / "a/pytorch_model.bin")
    elif form == "half":
        save_file({name: x.half() for name, x in state.items()}, tmp_path / "a/model.safetensors")
        before = {name: x.half().float() for name, x in before.items()}
    else:
        names = sorted(state)
        files = {name: f"pytorch_model-{i % 2 + 1:05d}-of-00002.bin" for i, name in enumerate(names)}
        for file in set(files.values()):
            torch.save({name: state[name] for name in names if files[name] == file}, tmp_path / "a" / file)
        (tmp_path / "a/pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": files}))
    after = cadenza.load(tmp_path / "a", device="cpu").state_dict()
    assert after.keys() == before.keys() and all(x.dtype == torch.float32 for x in after.values())
    for name, x in after.items():
        torch.testing.assert_close(
            x, before[name], msg=name, rtol=2e-3 if form == "half" else 0, atol=1e-3 if form == "half" else 0
        )


def test_stored_position_table(tmp_path: Path) -> None:
    model = musicgen_folder(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    table = model.decoder.model.decoder.embed_positions.weights.clone()
    name = "decoder.model.decoder.embed_positions.weights"
    save_file({**state, name: table}, tmp_path / "model.safetensors")
    cadenza.load(tmp_path, device="cpu")
    save_file({**state, name: table + 0.1}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="not the sinusoidal positions"):
        cadenza.load(tmp_path, device="cpu")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("decoder__activation_function", "relu", "decoder.activation_function: 'relu'"),
        ("decoder__num_codebooks", 4, "num_codebooks"),
        ("decoder__vocab_size", 32, "decoder.pad_token_id: 16 is not the id after the last code; only 32"),
        ("decoder__pad_token_id", 0, "decoder.pad_token_id: 0"),
        ("decoder__audio_channels", 3, "decoder.audio_channels"),
        ("decoder__num_hidden_layers", "two", "decoder.num_hidden_layers: must be int, got 'two'"),
        ("decoder__sliding_window", 128, "decoder.sliding_window: 128 is a setting that this release does not know"),
        ("decoder__cross_attention_hidden_size", 13, "decoder.cross_attention_hidden_size"),
        ("decoder__pruned_heads", {"0": [1]}, "decoder.pruned_heads"),
        ("text_encoder__model_type", "roberta", "text_encoder.model_type: 'roberta'"),
        ("text_encoder__adapters", 2, "text_encoder.adapters: 2 is a setting"),
        ("audio_encoder__normalize", True, "audio_encoder.normalize: True"),
        ("audio_encoder__audio_channels", 2, "audio_encoder.audio_channels: 2"),
        ("audio_encoder__model_type", "dac", "dac"),
        ("audio_encoder__norm_type", "layer_norm", "norm_type: 'layer_norm'"),
        ("prompt_encoder", {}, "prompt_encoder"),
    ],
)
def test_unsupported_settings_are_named(tmp_path: Path, key: str, value: Any, message: str) -> None:
    musicgen_folder(tmp_path)
    change(tmp_path / "config.json", **{key: value})
    with pytest.raises(CheckpointError) as error:
        cadenza.load(tmp_path, device="cpu")
    assert message in str(error.value)


def test_all_mistakes_are_reported_at_once(tmp_path: Path) -> None:
    musicgen_folder(tmp_path)
    change(
        tmp_path / "config.json",
        decoder__activation_function="relu",
        decoder__tie_word_embeddings=True,
        text_encoder__model_type="x",
    )
    with pytest.raises(CheckpointError, match="3 settings cannot be honoured"):
        cadenza.load(tmp_path, device="cpu")
    change(tmp_path / "generation_config.json", num_beams=4, eos_token_id=3)
    change(
        tmp_path / "config.json",
        decoder__activation_function="gelu",
        decoder__tie_word_embeddings=False,
        text_encoder__model_type="t5",
    )
    with pytest.raises(CheckpointError, match="(?s)generation_config.json.num_beams: 4.*eos_token_id: 3"):
        cadenza.load(tmp_path, device="cpu")


def test_configs_of_transformers_4(tmp_path: Path) -> None:
    """The general keys that transformers 4 wrote into every section are ignored."""
    from transformers import PretrainedConfig

    musicgen_folder(tmp_path)
    config = tree(tmp_path / "config.json")
    old = {
        "tie_encoder_decoder": False,
        "torch_dtype": "float16",
        "top_k": 50,
        "num_beams": 1,
        "max_length": 20,
        "pruned_heads": {},
    }
    general = {**PretrainedConfig().to_dict(), **old}
    for part in (config, config["decoder"], config["audio_encoder"], config["text_encoder"]):
        for name, value in general.items():
            part.setdefault(name, value)
    (tmp_path / "config.json").write_text(json.dumps(config))
    cadenza.load(tmp_path, device="cpu")


@pytest.mark.parametrize(
    "part", ["decoder.lm_heads.1.weight", "enc_to_dec_proj.bias", "text_encoder.encoder.final_layer_norm.weight"]
)
@pytest.mark.parametrize("wrong", ["missing", "more", "misshapen", "nan"])
def test_weights_must_match_the_config(tmp_path: Path, part: str, wrong: str) -> None:
    musicgen_folder(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    x = state.pop(part)
    if wrong == "more":
        state |= {part: x, f"{part}s": x.clone()}
    elif wrong == "misshapen":
        state[part] = torch.cat([x, x])
    elif wrong == "nan":
        state[part] = x * torch.nan
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError) as error:
        cadenza.load(tmp_path, device="cpu")
    name = part.partition(".")[2] + ("s" if wrong == "more" else "")
    assert name in str(error.value)
    assert {"missing": "missing", "more": "unknown", "misshapen": "instead of", "nan": "not finite"}[wrong] in str(error.value)


def test_weights_of_an_unknown_part(tmp_path: Path) -> None:
    musicgen_folder(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    save_file({**state, "audio_enc_to_dec_proj.weight": torch.zeros(2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="belong to no part of MusicGen: audio_enc_to_dec_proj.weight"):
        cadenza.load(tmp_path, device="cpu")


def test_missing_files(tmp_path: Path) -> None:
    musicgen_folder(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"no tokenizer \(tokenizer.json or spiece.model\).*copy it from"):
        cadenza.load(tmp_path, device="cpu")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="has no weights"):
        cadenza.load(tmp_path, device="cpu")


def test_missing_or_truncated_shard(tmp_path: Path) -> None:
    musicgen().save_pretrained(tmp_path, max_shard_size="20kB")
    shard = sorted(tmp_path.glob("model-*.safetensors"))[1]
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match=f"{shard.name} is not a whole safetensors file.*again"):
        cadenza.load(tmp_path, device="cpu")
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"weight files; copy {shard.name}"):
        cadenza.load(tmp_path, device="cpu")


def test_codec_equals_transformers(tmp_path: Path) -> None:
    model = musicgen_folder(tmp_path / "whole")
    model.audio_encoder.save_pretrained(tmp_path / "codec")
    codec = cadenza.load(tmp_path / "codec", device="cpu").codec
    codes = torch.randint(16, (1, 3, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        wave = model.audio_encoder.decode(codes[None], [None]).audio_values
    torch.testing.assert_close(codec.decode(Codes(codes)).wave, wave, atol=1e-4, rtol=1e-3)
