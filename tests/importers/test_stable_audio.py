"""Configs of stable-audio-tools: each documented key has an effect, each documented example loads, mistakes name their key."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from cadenza.codecs.base import CodecSpec
from cadenza.codecs.oobleck_vae import OobleckSpec
from cadenza.conditioners.base import ConditionerSet
from cadenza.conditioners.t5 import T5Spec
from cadenza.core.errors import CheckpointError
from cadenza.dsp.audio import Audio
from cadenza.importers.stable_audio import ConditioningConfig, load_conditioning
from cadenza.importers.stable_audio_weights import convert_conditioner_weights
from cadenza.system.spec import SystemSpec

STAGES = {"channels": 4, "c_mults": [1, 2], "strides": [2, 4], "use_snake": True}
AUTOENCODER = {
    "type": "autoencoder",
    "config": {
        "encoder": {"type": "oobleck", "config": {"in_channels": 2, "latent_dim": 8, **STAGES}},
        "decoder": {"type": "oobleck", "config": {"out_channels": 2, "latent_dim": 4, "final_tanh": False, **STAGES}},
        "bottleneck": {"type": "vae"},
        "latent_dim": 4,
        "downsampling_ratio": 8,
        "io_channels": 2,
    },
}
CLAP: dict[str, Any] = {"clap_ckpt_path": "/path/to/clap/model.ckpt", "audio_model_type": "HTSAT-base", "enable_fusion": True}
EXAMPLES: list[dict[str, Any]] = [  # of their guide to conditioning
    {"id": "prompt", "type": "t5", "config": {"t5_model_name": "t5-base", "max_length": 77, "project_out": True}},
    {"id": "prompt", "type": "t5gemma", "config": {"model_name": "google/t5gemma-b-b-ul2", "max_length": 128}},
    {"id": "prompt", "type": "clap_text", "config": {**CLAP, "use_text_features": True, "feature_layer_ix": -2}},
    {"id": "phonemes", "type": "phoneme", "config": {"max_length": 512}},
    {"id": "prompt", "type": "lut", "config": {"tokenizer_name": "t5-base", "max_length": 256, "use_abs_pos_emb": True}},
    {"id": "seconds_start", "type": "int", "config": {"min_val": 0, "max_val": 512}},
    {"id": "seconds_total", "type": "number", "config": {"min_val": 0, "max_val": 512}},
    {"id": "genre", "type": "list", "config": {"options": ["rock", "jazz", "classical", "electronic"]}},
    {"id": "audio_prompt", "type": "clap_audio", "config": CLAP},
    {
        "id": "audio_cond",
        "type": "pretransform",
        "config": {"sample_rate": 44100, "use_model_pretransform": True, "save_pretransform": False},
    },
    {
        "id": "source_mix",
        "type": "source_mix",
        "config": {
            "sample_rate": 44100,
            "source_keys": ["vocals", "drums", "bass", "other"],
            "use_model_pretransform": True,
            "allow_null_source": True,
            "source_length": 512,
        },
    },
]
OURS = {"list": "category", "pretransform": "waveform", "clap_text": "clap", "clap_audio": "clap", "t5gemma": "t5"}
WHOLE = {
    "configs": [EXAMPLES[0], EXAMPLES[5], EXAMPLES[6]],
    "cond_dim": 768,
    "default_keys": {},
    "pre_encoded_keys": [],
}


def model(*configs: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Return the config of a model with these conditioners; `fields` are of its `conditioning` and its `diffusion`."""
    block = {"configs": list(configs), "cond_dim": 768}
    block |= {key: fields.pop(key) for key in list(fields) if not key.endswith("ids")}
    parts = {"pretransform": AUTOENCODER, "conditioning": block, "diffusion": {"type": "dit", **fields}}
    return copy.deepcopy({"model_type": "diffusion_cond", "sample_rate": 44100, "model": parts})


def load_error(config: Any) -> str:
    with pytest.raises(CheckpointError) as error:
        load_conditioning(config)
    return str(error.value)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example["type"])
def test_examples_of_the_guide(example: dict[str, Any]) -> None:
    conditioning = load_conditioning(model(example))
    (name, spec), *more = conditioning.conditioners.items()
    assert not more and name == example["id"] and spec.type == OURS.get(example["type"], example["type"])  # type: ignore[attr-defined]
    assert spec.output_dim == 768 and conditioning.fusion is not None and conditioning.fusion.ignore == (name,)


def test_forms_of_a_config(tmp_path: Path) -> None:
    conditioning = load_conditioning({"conditioning": WHOLE})
    assert load_conditioning(WHOLE) == conditioning
    assert {name: spec.type for name, spec in conditioning.conditioners.items()} == {  # type: ignore[attr-defined]
        "prompt": "t5",
        "seconds_start": "int",
        "seconds_total": "number",
    }
    assert conditioning.fusion is None and conditioning.checkpoints == {}
    assert conditioning.conditioners["prompt"] == T5Spec(
        model="google-t5/t5-base",
        output_dim=768,
        max_length=77,
        pad_to="max_length",
        empty_text="encode",
        null_embedding="zeros",
    )
    (tmp_path / "model_config.json").write_text(json.dumps({"model": {"conditioning": WHOLE}}))
    (tmp_path / "t5-base").mkdir()
    local = load_conditioning(tmp_path / "model_config.json").conditioners["prompt"]
    assert local.model == str(tmp_path / "t5-base")  # type: ignore[attr-defined]


AUDIO = {"sample_rate": 44100, "pretransform_config": AUTOENCODER}
OTHER = {**AUTOENCODER, "scale": 2.0}
KEYS: list[tuple[str, dict[str, Any], str, Any]] = [
    ("t5", {}, "t5_model_name", "flan-t5-base"),
    ("t5", {}, "max_length", 64),
    ("t5", {}, "project_out", True),
    ("t5", {}, "enable_grad", True),
    ("t5", {}, "output_dim", 512),
    ("t5gemma", {}, "model_name", "google/t5gemma-2b-2b-ul2"),
    ("t5gemma", {}, "enable_grad", True),
    ("clap_text", CLAP, "clap_ckpt_path", "/another.ckpt"),
    ("clap_text", CLAP, "audio_model_type", "HTSAT-tiny"),
    ("clap_text", CLAP, "enable_fusion", False),
    ("clap_text", CLAP, "use_text_features", True),
    ("clap_text", {**CLAP, "use_text_features": True}, "feature_layer_ix", -2),
    ("clap_text", CLAP, "project_out", True),
    ("clap_text", CLAP, "finetune", True),
    ("clap_audio", CLAP, "clap_ckpt_path", "/another.ckpt"),
    ("clap_audio", CLAP, "audio_model_type", "HTSAT-tiny"),
    ("clap_audio", CLAP, "enable_fusion", False),
    ("clap_audio", CLAP, "project_out", True),
    ("phoneme", {}, "max_length", 512),
    ("phoneme", {}, "project_out", True),
    ("int", {}, "min_val", 1),
    ("int", {}, "max_val", 511),
    ("int", {}, "output_dim", 2),
    ("number", {}, "min_val", -1.5),
    ("number", {}, "max_val", 2),
    ("list", {"options": ["a", "b"]}, "options", ["a", "c"]),
    ("lut", {"tokenizer_name": "t5-base"}, "tokenizer_name", "gpt2"),
    ("lut", {"tokenizer_name": "t5-base"}, "max_length", 16),
    ("lut", {"tokenizer_name": "t5-base"}, "use_abs_pos_emb", True),
    ("lut", {"tokenizer_name": "t5-base"}, "special_tokens", ["<verse>"]),
    ("lut", {"tokenizer_name": "t5-base"}, "project_out", True),
    ("pretransform", AUDIO, "sample_rate", 22050),
    ("pretransform", AUDIO, "pretransform_config", OTHER),
    ("pretransform", AUDIO, "pretransform_ckpt_path", "/vae.ckpt"),
    ("pretransform", {**AUDIO, "pretransform_config": OTHER}, "use_model_pretransform", True),
    ("source_mix", {**AUDIO, "source_keys": ["a"]}, "source_keys", ["a", "b"]),
    ("source_mix", {**AUDIO, "source_keys": ["a"]}, "allow_null_source", True),
    ("source_mix", {**AUDIO, "source_keys": ["a"]}, "pre_encoded", True),
    ("source_mix", {**AUDIO, "source_keys": ["a"]}, "pretransform_ckpt_path", "/vae.ckpt"),
]


@pytest.mark.parametrize(("kind", "config", "key", "value"), KEYS, ids=lambda x: x if isinstance(x, str) else "")
def test_each_key_has_an_effect(kind: str, config: dict[str, Any], key: str, value: Any) -> None:
    """The value of a key changes the conditioner, or the checkpoint of its weights."""
    conditioning = [
        load_conditioning(model({"id": "it", "type": kind, "config": each})) for each in (config, {**config, key: value})
    ]
    assert conditioning[0] != conditioning[1]
    files = key in ("audio_model_type", "enable_fusion", "pretransform_ckpt_path")
    assert (conditioning[0].conditioners == conditioning[1].conditioners) == files


def test_values_of_keys() -> None:
    spec = load_conditioning(model({"id": "it", "type": "number", "config": {"min_val": -2, "max_val": 10}})).conditioners["it"]
    assert (spec.min, spec.max, spec.bands, spec.frequencies, spec.outside) == (-2, 10, 128, "learned", "clamp")  # type: ignore[attr-defined]
    spec = load_conditioning(model({"id": "it", "type": "int", "config": {}})).conditioners["it"]
    assert (spec.min, spec.max) == (0, 512)  # type: ignore[attr-defined]
    conditioning = load_conditioning(model(EXAMPLES[2]))
    assert conditioning.conditioners["prompt"].layer == -2 and conditioning.conditioners["prompt"].output_kind == "tokens"  # type: ignore[attr-defined]
    checkpoint = conditioning.checkpoints["prompt"]
    assert (checkpoint.path, checkpoint.audio_model_type, checkpoint.enable_fusion) == tuple(CLAP.values())
    assert conditioning.conditioners["prompt"].model == CLAP["clap_ckpt_path"]  # type: ignore[attr-defined]
    converted = load_conditioning(model(EXAMPLES[2]), converted={CLAP["clap_ckpt_path"]: "my-clap"})
    assert converted.conditioners["prompt"].model == "my-clap"  # type: ignore[attr-defined]
    codec = load_conditioning(model(EXAMPLES[9])).conditioners["audio_cond"].codec  # type: ignore[attr-defined]
    assert (codec.sample_rate, codec.hop_length, codec.frame_format.channels, codec.bottleneck) == (44100, 8, 4, "vae")


NUMBERS = [{"id": name, "type": "number", "config": {"output_dim": width}} for name, width in (("a", 4), ("b", 4), ("c", 6))]
SOUND = {"id": "d", "type": "pretransform", "config": AUDIO}


def test_routes_become_slots() -> None:
    """Ids keep their order; those that the diffusion model sets are not conditions."""
    ids = {"cross_attention_cond_ids": ["b", "a"], "global_cond_ids": ["a", "c"], "prepend_cond_ids": ["a"]}
    config = model(*NUMBERS, SOUND, **ids, input_concat_ids=["inpaint_mask", "inpaint_masked_input", "d"])
    fusion = load_conditioning(config).fusion
    assert fusion is not None and fusion.ignore == ()
    routes = {slot: [route.id for route in routes] for slot, routes in fusion.routes_by_slot().items()}
    assert routes == {"cross": ["b", "a"], "global": ["a", "c"], "prepend": ["a"], "concat": ["d"]}
    assert fusion.concat[0].resize == "nearest"
    guided = {slot for slot, routes in fusion.routes_by_slot().items() for route in routes if route.guided}
    assert guided == {"cross", "prepend"}, "stable-audio-tools drops only these, in training and for guidance"
    assert load_conditioning(model(*NUMBERS)).fusion.ignore == ("a", "b", "c")  # type: ignore[union-attr]


def test_conditioning_in_a_system() -> None:
    conditioning = load_conditioning(model(NUMBERS[0], cross_attention_cond_ids=["a"]))
    spec = SystemSpec.parse(
        {
            "codec": CodecSpec.lookup("encodec").example().to_dict(),
            "conditioners": {name: part.to_dict() for name, part in conditioning.conditioners.items()},
            "fusion": conditioning.fusion.to_dict() if conditioning.fusion else {},
            "generator": {"type": "codec_lm", "width": 4, "depth": 1, "heads": 1},
        }
    )
    assert spec.conditioners == conditioning.conditioners and spec.slot_dims() == {"cross": 4}


def test_the_conditioning_of_stable_audio_open() -> None:
    """As released: cross-attention to text and seconds, and seconds in an unguided vector of 1536."""
    seconds = [{"id": f"seconds_{x}", "type": "number", "config": {"min_val": 0, "max_val": 512}} for x in ("start", "total")]
    prompt = {"id": "prompt", "type": "t5", "config": {"t5_model_name": "t5-base", "max_length": 128}}
    every, ends = ["prompt", "seconds_start", "seconds_total"], ["seconds_start", "seconds_total"]
    config = model(prompt, *seconds, cross_attention_cond_ids=every, global_cond_ids=ends)
    conditioning = load_conditioning(config)
    assert conditioning.fusion is not None
    parts = {name: part.to_dict() for name, part in conditioning.conditioners.items()}
    codec = OobleckSpec(sample_rate=44100).to_dict()
    spec = SystemSpec.parse({"codec": codec, "conditioners": parts, "fusion": conditioning.fusion.to_dict()})
    assert spec.slot_dims() == {"cross": 768, "global": 1536}
    assert [
        (slot, id) for slot, routes in spec.fusion.routes_by_slot().items() for id in [r.id for r in routes if not r.guided]
    ] == [
        ("global", "seconds_start"),
        ("global", "seconds_total"),
    ]
    assert conditioning.conditioners["prompt"].project == "auto", "no weights of its own"  # type: ignore[attr-defined]
    assert (
        sum(p.numel() for p in conditioning.conditioners["seconds_total"].build().parameters())
        == 128 + 768 * (2 * 128 + 1) + 768
    )


def test_fallback_keys_of_metadata() -> None:
    conditioning = load_conditioning(model(*NUMBERS[:2], default_keys={"b": "length"}))
    assert conditioning.conditioners["b"].fallback == "length" and conditioning.conditioners["a"].fallback is None
    assert conditioning.item({"a": [1], "length": 2, "path": "x"}) == {"a": 1, "length": 2}
    sound = load_conditioning(model(SOUND)).item({"d": torch.zeros(2, 9)})["d"]
    assert isinstance(sound, Audio) and sound.wave.shape == (1, 2, 9) and sound.sample_rate == 44100


def test_encoded_values() -> None:
    conditioning = load_conditioning(
        model(NUMBERS[0], SOUND, {**NUMBERS[1], "id": "t", "type": "t5"}, pre_encoded_keys=["a", "d", "t"])
    )
    specs = conditioning.conditioners
    assert {name: (spec.type, spec.output_kind, spec.output_dim) for name, spec in specs.items()} == {  # type: ignore[attr-defined]
        "a": ("encoded", "vector", 4),
        "d": ("encoded", "frames", 768),
        "t": ("encoded", "tokens", 4),
    }
    part = specs["d"].build()
    z = torch.randn(768, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(part(part.encode(part.prepare([z]))).embeddings[0].T, z)


@pytest.mark.parametrize(
    ("config", "mistake"),
    [
        ({**WHOLE, "cond_dim": "768"}, "conditioning.cond_dim: must be int, got '768'"),
        ({"configs": []}, "conditioning.cond_dim: is missing"),
        ({**WHOLE, "configs": [{"id": "a", "type": "number"}]}, r"conditioning.configs[0].config: is missing"),
        (
            model({**EXAMPLES[6], "config": {"min_value": 1}}),
            "model.conditioning.configs[0].config.min_value: 1 is a setting that this release does not know",
        ),
        (model(NUMBERS[0], {**EXAMPLES[6], "config": {"min_val": 5, "max_val": 5}}), "model.conditioning.configs[1].config: 1"),
        (model({**EXAMPLES[6], "config": {"min_val": "0"}}), "configs[0].config.min_val: must be float or int, got '0'"),
        (model({**EXAMPLES[6], "type": "nmber"}), "configs[0].type: 'nmber' is not a type. Did you mean 'number'?"),
        (model({**EXAMPLES[6], "type": "causal_lm"}), "configs[0].type: 'causal_lm' needs a causal language model as a text"),
        (
            model({**EXAMPLES[6], "type": "sat_clap_text"}),
            "configs[0].type: 'sat_clap_text' needs the CLAP of stable-audio-tools",
        ),
        (model({**EXAMPLES[6], "extra": 1}), "configs[0].extra: 1 is a setting"),
        (model(NUMBERS[0], NUMBERS[0]), "configs[1].id: 'a' is the id of another conditioner too"),
        (
            model({**EXAMPLES[0], "config": {"padding_mode": "learned"}}),
            "configs[0].config.padding_mode: 'learned' is not a supported padding",
        ),
        (
            model({**EXAMPLES[6], "config": {"fourier_features_type": "expo"}}),
            "configs[0].config.fourier_features_type: 'expo'",
        ),
        (model(NUMBERS[0], default_keys={"A": "x"}), "model.conditioning.default_keys.A: is not the id of a conditioner."),
        (
            model(NUMBERS[0], pre_encoded_keys=["aa"]),
            "conditioning.pre_encoded_keys.aa: is not the id of a conditioner. Did you",
        ),
        (model(NUMBERS[0], defaults={}), "conditioning.defaults: {} is a setting"),
        (model(NUMBERS[0], global_cond_ids=["aa"]), "model.diffusion.global_cond_ids: names 'aa', which is not the id of a"),
        (
            model(NUMBERS[0], cross_attention_cond_ids=["inpaint_mask"]),
            "model.diffusion.cross_attention_cond_ids: names 'inpaint_mask'",
        ),
        (
            {"cond_dim": 4, "configs": [EXAMPLES[9]]},
            "conditioning.configs[0].config.use_model_pretransform: needs the pretransform of the model, which is missing",
        ),
        (
            model({**EXAMPLES[9], "config": {**EXAMPLES[9]["config"], "sample_rate": 48000}}),
            "configs[0].config.sample_rate: 48000 is not the sample rate of the model, 44100",
        ),
        (
            model({**SOUND, "config": {**AUDIO, "pretransform_config": {**AUTOENCODER, "type": "wavelet"}}}),
            "configs[0].config.pretransform_config.type: 'wavelet' is not a supported pretransform",
        ),
    ],
    ids=str,
)
def test_mistakes_name_their_key(config: dict[str, Any], mistake: str) -> None:
    assert mistake in load_error(config)


def test_all_mistakes_are_reported_at_once() -> None:
    message = load_error(
        model({**EXAMPLES[6], "config": {"min_val": "0"}}, {**EXAMPLES[5], "type": "x"}, global_cond_ids=["z"])
    )
    assert message.startswith("3 settings cannot be honoured")


def test_contradictory_autoencoders() -> None:
    for path, value, mistake in (
        (("downsampling_ratio",), 16, "pretransform_config.config.downsampling_ratio: 16 is not the product"),
        (("encoder", "config", "latent_dim"), 4, "config.encoder.config.latent_dim: 4 does not suit the bottleneck"),
        (("decoder", "config", "out_channels"), 1, "config.decoder.config.out_channels: 1 differs from io_channels"),
        (("encoder", "type"), "dac", "config.encoder.type: 'dac' is not a supported autoencoder"),
        (("bottleneck", "type"), "tanh", "config.bottleneck.type: 'tanh' is not a supported bottleneck"),
    ):
        whole = copy.deepcopy(AUTOENCODER)
        inner: Any = whole["config"]
        for step in path[:-1]:
            inner = inner[step]
        inner[path[-1]] = value
        assert mistake in load_error(model({**SOUND, "config": {**AUDIO, "pretransform_config": whole}}))


def build(*configs: dict[str, Any], **fields: Any) -> tuple[ConditioningConfig, ConditionerSet]:
    conditioning = load_conditioning(model(*configs, **fields))
    return conditioning, ConditionerSet({name: spec.build() for name, spec in conditioning.conditioners.items()})


def test_weights_must_match_the_config() -> None:
    conditioning, parts = build(NUMBERS[0], pre_encoded_keys=[])
    state = {"a.embedder.embedding.0.weights": torch.ones(128)}
    state |= {"a.embedder.embedding.1.weight": torch.ones(4, 257), "a.embedder.embedding.1.bias": torch.ones(4)}
    ours = convert_conditioner_weights(conditioning, parts, state, source="model.ckpt", codec={})
    parts.load_state_dict(ours)
    for wrong, mistake in (
        ({**state, "z.x": torch.ones(1)}, "holds weights of a conditioner 'z'"),
        ({**state, "a.x": torch.ones(1)}, "model.ckpt: a: the weights do not match the config: 1 unknown: x"),
        ({name: x for name, x in state.items() if not name.endswith("bias")}, "1 missing: embedder.embedding.1.bias"),
        (
            {**state, "a.embedder.embedding.0.weights": torch.ones(64)},
            r"1 misshapen: embedder.embedding.0.weights is \[64\] instead of \[128\]",
        ),
        ({**state, "a.embedder.embedding.0.weights": torch.full((128,), torch.nan)}, "not finite"),
    ):
        with pytest.raises(CheckpointError, match=mistake):
            convert_conditioner_weights(conditioning, parts, wrong, source="model.ckpt", codec={})


def test_codec_of_the_model() -> None:
    conditioning, parts = build({**EXAMPLES[9], "config": {**EXAMPLES[9]["config"], "output_dim": 4}})
    theirs, own = build({**SOUND, "id": "audio_cond", "config": {**AUDIO, "output_dim": 4}})
    codec = {_foreign_name(name): x for name, x in own["audio_cond"].codec.state_dict().items()}  # type: ignore[union-attr]
    ours = convert_conditioner_weights(conditioning, parts, {}, source="model.ckpt", codec=codec)
    saved = convert_conditioner_weights(
        theirs, own, {f"audio_cond.pretransform.{n}": x for n, x in codec.items()}, source="model.ckpt", codec={}
    )
    assert ours.keys() == saved.keys() == parts.state_dict().keys()
    assert all(torch.equal(ours[name], saved[name]) for name in ours)
    with pytest.raises(
        CheckpointError, match="the weights of its pretransform are missing; save the model with save_pretransform"
    ):
        convert_conditioner_weights(conditioning, parts, {}, source="model.ckpt", codec={})


def _foreign_name(name: str) -> str:
    """Return the name of a codec weight in stable-audio-tools, which numbers the layers of a sequence."""
    name = name.replace("parametrizations.weight.original0", "weight_g")
    words = name.replace("parametrizations.weight.original1", "weight_v").split(".")
    return ".".join(["model", words[0], *(f"layers.{word}" if word.isdigit() else word for word in words[1:])])


def test_finetuned_text_encoder(tmp_path: Path) -> None:
    folder = Path(T5Spec.example()[0].model)
    config = {"id": "p", "type": "t5", "config": {"t5_model_name": str(folder), "enable_grad": True, "output_dim": 8}}
    conditioning, parts = build(config)
    weights = {f"p.model.{name}": 2 * x for name, x in load_file(folder / "model.safetensors").items()}
    weights |= {"p.model.encoder.embed_tokens.weight": weights["p.model.shared.weight"]}
    weights |= {"p.proj_out.weight": torch.ones(8, 16), "p.proj_out.bias": torch.zeros(8)}
    ours = convert_conditioner_weights(conditioning, parts, weights, source="model.ckpt", codec={})
    parts.load_state_dict(ours)
    assert torch.equal(parts["p"].encoder.state_dict()["embed_tokens.weight"], weights["p.model.shared.weight"])  # type: ignore[union-attr]
