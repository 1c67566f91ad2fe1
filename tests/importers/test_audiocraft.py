"""Packages of AudioCraft: weights equal those of transformers; unsupported settings and damaged files are errors."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from foreign import CODEC, audiocraft_folder, audiocraft_lm, musicgen_folder, save_package

import cadenza
from cadenza.core.errors import CheckpointError

TEXT = "sad piano"


def repack(folder: Path, file: str = "state_dict.bin", **keys: Any) -> None:
    """Set keys of a package; None removes a key."""
    content = torch.load(folder / file, weights_only=True)
    torch.save({name: value for name, value in {**content, **keys}.items() if value is not None}, folder / file)


def assert_refused(folder: Path, *words: str) -> None:
    with pytest.raises(CheckpointError) as error:
        cadenza.load(folder, device="cpu")
    for word in words:
        assert word in str(error.value)


def test_package_equals_the_model_of_transformers(tmp_path: Path) -> None:
    """A single text has no padding, so AudioCraft's attention to padding makes no difference."""
    model = musicgen_folder(tmp_path / "theirs")
    audiocraft_folder(tmp_path / "package")
    for parameter in model.decoder.parameters():
        assert parameter.dtype == torch.float32
    system = cadenza.load(tmp_path / "package", device="cpu")
    other = cadenza.load(tmp_path / "theirs", device="cpu")
    ours, expected = system.state_dict(), other.state_dict()
    assert ours.keys() == expected.keys()
    for name, x in ours.items():
        half = x.dtype == torch.float32 and not name.startswith("codec")
        torch.testing.assert_close(x, expected[name].half().float() if half else expected[name], msg=name)
    spec: Any = system.spec.generator
    assert spec.attend_padding and not other.spec.generator.attend_padding
    assert spec.max_frames == 200 and system.spec.defaults.guidance == 2.5  # 2 seconds of 100 frames
    assert system.spec.conditioners["prompt"].word_dropout == 0.3
    other.generator.load_state_dict(system.generator.state_dict())
    other.conditioners.load_state_dict(system.conditioners.state_dict())
    same = {"seconds": 0.2, "sampling": {"temperature": 0}, "guidance": 2.5}
    assert torch.equal(system.generate_frames(TEXT, **same).ids, other.generate_frames(TEXT, **same).ids)


def test_codec_given_by_name(tmp_path: Path) -> None:
    """The name of a released codec is resolved to a folder next to the model."""
    model = audiocraft_folder(tmp_path)
    before = cadenza.load(tmp_path, device="cpu").codec.state_dict()
    torch.save(
        {"pretrained": "facebook/encodec_8khz", "exported": True, "version": "1.4.0a2"}, tmp_path / "compression_state_dict.bin"
    )
    model.audio_encoder.save_pretrained(tmp_path / "encodec_8khz")
    after = cadenza.load(tmp_path, device="cpu").codec.state_dict()
    assert all(torch.equal(x, after[name]) for name, x in before.items())
    (tmp_path / "compression_state_dict.bin").unlink()
    assert_refused(tmp_path, "holds no compression_state_dict.bin", "//sig/0123abcd")
    audiocraft_folder(tmp_path, compression_model_checkpoint="//pretrained/facebook/encodec_8khz")
    (tmp_path / "compression_state_dict.bin").unlink()
    assert cadenza.load(tmp_path, device="cpu").codec.state_dict().keys() == before.keys()
    torch.save({"pretrained": "dac_44khz", "exported": True, "version": "1"}, tmp_path / "compression_state_dict.bin")
    assert_refused(tmp_path, "dac_44khz", "cannot load yet")


def test_codec_that_cannot_be_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def absent(*_: Any, **__: Any) -> str:
        raise LocalEntryNotFoundError("outgoing traffic has been disabled")

    audiocraft_folder(tmp_path)
    torch.save(
        {"pretrained": "facebook/encodec_8khz", "exported": True, "version": "1"}, tmp_path / "compression_state_dict.bin"
    )
    monkeypatch.setattr(huggingface_hub, "snapshot_download", absent)
    assert_refused(tmp_path, "facebook/encodec_8khz", "hf download facebook/encodec_8khz --local-dir encodec_8khz")


def test_fewer_codebooks_than_the_codec(tmp_path: Path) -> None:
    model = audiocraft_folder(tmp_path)
    state = {name: x for name, x in audiocraft_lm(model).items() if name not in ("emb.2.weight", "linears.2.weight")}
    config = yaml.safe_load(torch.load(tmp_path / "state_dict.bin", weights_only=True)["xp.cfg"])
    config["compression_model_n_q"] = config["transformer_lm"]["n_q"] = 2
    config["codebooks_pattern"] = {"modeling": None}
    config["transformer_lm"]["q_modeling"] = "delay"  # as old releases wrote it
    save_package(tmp_path / "state_dict.bin", state, yaml.safe_dump(config))
    system = cadenza.load(tmp_path, device="cpu")
    assert system.codec.frame_format.channels == 2 and system.spec.generator.pattern.delays == (0, 1)
    assert system.generate_frames(TEXT, seconds=0.1).ids.shape == (1, 2, 10)


def test_biases_and_names_of_torch_attention(tmp_path: Path) -> None:
    """Models with biases in some layers, and with the weight names of torch.nn.MultiheadAttention."""
    model = audiocraft_folder(tmp_path)
    state = audiocraft_lm(model)
    before = cadenza.load(tmp_path, device="cpu")
    config = yaml.safe_load(torch.load(tmp_path / "state_dict.bin", weights_only=True)["xp.cfg"])
    config["transformer_lm"] |= {"bias_ff": True, "memory_efficient": False}
    added = {f"transformer.layers.{i}.linear1.bias": torch.full((24,), 0.25) for i in range(2)}
    added |= {f"transformer.layers.{i}.linear2.bias": torch.zeros(16) for i in range(2)}
    renamed = {name.replace("_attn.", "_attn.mha.").replace("attention.", "attention.mha."): x for name, x in state.items()}
    save_package(tmp_path / "state_dict.bin", renamed | added, yaml.safe_dump(config))
    weights = cadenza.load(tmp_path, device="cpu").generator.state_dict()
    assert torch.equal(weights["transformer.blocks.1.up.bias"], torch.full((24,), 0.25))
    assert not weights["transformer.blocks.1.attention.qkv.bias"].any()
    for name, x in before.generator.state_dict().items():
        torch.testing.assert_close(weights[name], x, atol=1e-3, rtol=2e-3)  # the first package stores float16


@pytest.mark.parametrize(("flag", "bias"), [("bias_ff", "self_attn.in_proj"), ("bias_attn", "linear1")])
def test_biases_must_match_the_config(tmp_path: Path, flag: str, bias: str) -> None:
    model = audiocraft_folder(tmp_path, **{f"transformer_lm__{flag}": True})
    assert_refused(tmp_path, "is missing", f"{flag} (True)")
    extra = f"transformer.layers.0.{bias}{'.' if 'linear' in bias else '_'}bias"
    state = audiocraft_lm(model)
    ours = {"bias_ff": ("linear1", "linear2"), "bias_attn": ("self_attn.in_proj_weight", "self_attn.out_proj")}[flag]
    ours += ("cross_attention.in_proj_weight", "cross_attention.out_proj") if flag == "bias_attn" else ()
    for i in range(2):
        for name in ours:
            weight = f"transformer.layers.{i}.{name if name.endswith('weight') else f'{name}.weight'}"
            state[weight.removesuffix("weight") + "bias"] = torch.zeros(len(state[weight]))
    repack(tmp_path, best_state=state)
    cadenza.load(tmp_path, device="cpu")
    repack(tmp_path, best_state=state | {extra: torch.zeros(48 if "in_proj" in bias else 24)})
    assert_refused(tmp_path, "is unknown")


@pytest.mark.parametrize("key", ["norm_first", "causal", "activation"])
def test_required_keys_of_the_language_model(tmp_path: Path, key: str) -> None:
    audiocraft_folder(tmp_path)
    config = yaml.safe_load(torch.load(tmp_path / "state_dict.bin", weights_only=True)["xp.cfg"])
    del config["transformer_lm"][key]
    repack(tmp_path, **{"xp.cfg": yaml.safe_dump(config)})
    assert_refused(tmp_path, f"transformer_lm.{key}: is missing")


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ({"modeling": "parallel"}, {"type": "parallel"}),
        (
            {"modeling": "unroll", "unroll": {"flattening": [0, 1, 1], "delays": [0, 2, 2]}},
            {"type": "unroll", "delays": (0, 2, 2)},
        ),
        ({"modeling": "coarse_first", "coarse_first": {"delays": [0, 1]}}, {"type": "coarse_first", "delays": (0, 1)}),
        ({"modeling": "valle", "valle": {"delays": [0, 0]}}, {"type": "coarse_first", "delays": (0, 0)}),
        ({"modeling": "delay", "delay": {"delays": [0, 0, 2], "flatten_first": 1, "empty_initial": 2}}, {"flatten_first": 1}),
    ],
)
def test_patterns(tmp_path: Path, pattern: dict[str, Any], expected: dict[str, Any]) -> None:
    audiocraft_folder(tmp_path, codebooks_pattern=pattern)
    spec = cadenza.load(tmp_path, device="cpu").spec.generator.pattern
    assert spec.model_dump().items() >= expected.items()


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("lm_model", "transformer_lm_magnet", "MAGNeT"),
        ("transformer_lm__norm_first", False, "transformer_lm.norm_first: False"),
        ("transformer_lm__positional_embedding", "rope", "transformer_lm.positional_embedding: 'rope'"),
        ("transformer_lm__bias_proj", True, "transformer_lm.bias_proj: True"),
        ("transformer_lm__layer_scale", 1e-4, "transformer_lm.layer_scale"),
        ("transformer_lm__qk_layer_norm", True, "transformer_lm.qk_layer_norm: True"),
        ("transformer_lm__kv_repeat", 2, "transformer_lm.kv_repeat: 2"),
        ("transformer_lm__past_context", 0, "transformer_lm.past_context: 0"),
        ("transformer_lm__past_context", 100, "transformer_lm.past_context: 100"),
        ("transformer_lm__activation", "relu", "transformer_lm.activation: 'relu'"),
        ("transformer_lm__rotary_magic", 3, "transformer_lm.rotary_magic: 3 is a setting that this release does not know"),
        ("transformer_lm__spectral_norm_attn_iters", 2, "spectral_norm_attn_iters: 2"),
        ("transformer_lm__n_q", 5, "transformer_lm.n_q"),
        ("transformer_lm__card", 64, "transformer_lm.card"),
        ("codebooks_pattern__modeling", "spiral", "'spiral' is not a pattern"),
        ("codebooks_pattern__helix", {}, "codebooks_pattern.helix"),
        ("fuser__sum", ["description"], "fuser.sum"),
        ("fuser__cross", ["melody"], "fuser.cross: names 'melody'"),
        ("fuser__crossed", ["description"], "fuser.crossed"),
        (
            "conditioners__mood",
            {"model": "lut", "lut": {"n_bins": 3}},
            "conditioners.mood: needs the embedding table of words, 'lut'",
        ),
        ("conditioners__description__t5__layers", 3, "conditioners.description.t5.layers: 3"),
        ("interleave_stereo_codebooks__use", True, "channels"),
        ("sample_rate", 16000, "sample_rate: 16000 is not the sample rate of the codec"),
        ("dataset__segment_duration", None, "segment_duration"),
        ("transformer_lm__dim", "${transformer_lm.heads}", "'${transformer_lm.heads}', which does not exist"),
        ("transformer_lm__dim", "${oc.env:HOME}", "never run"),
        ("compression_model_n_q", 9, "compression_model_n_q: 9 are more codebooks"),
    ],
)
def test_unsupported_settings_are_named(tmp_path: Path, key: str, value: Any, message: str) -> None:
    audiocraft_folder(tmp_path, **{key: value})
    assert_refused(tmp_path, message)


def test_positions_of_cross_attended_tokens(tmp_path: Path) -> None:
    """The conformance kit's fuser cases test their numbers."""
    audiocraft_folder(tmp_path, fuser__cross_attention_pos_emb=True, fuser__cross_attention_pos_emb_scale=0.5)
    spec: Any = cadenza.load(tmp_path, device="cpu").spec
    assert spec.generator.cross_attention_pos_emb_scale == 0.5 and [route.id for route in spec.fusion.cross] == ["prompt"]


def test_unused_sections_give_a_warning(tmp_path: Path) -> None:
    audiocraft_folder(tmp_path, novelty={"on": True})
    with pytest.warns(UserWarning, match="which do not change the model: novelty"):
        cadenza.load(tmp_path, device="cpu")


class Evil:
    """Object whose pickle runs a command."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("file", ["state_dict.bin", "compression_state_dict.bin", "pytorch_model.bin"])
@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_not_run(tmp_path: Path, file: str, zipped: bool) -> None:
    trace = tmp_path / "ran"
    if file == "pytorch_model.bin":
        musicgen_folder(tmp_path / "m")
        (tmp_path / "m/model.safetensors").unlink()
    else:
        audiocraft_folder(tmp_path / "m")
    evil = {"best_state": Evil(trace), "xp.cfg": CODEC, "version": "1", "exported": True}
    torch.save(evil, tmp_path / "m" / file, _use_new_zipfile_serialization=zipped)
    assert_refused(tmp_path / "m", file, "'posix.system'" if os.name == "posix" else "'nt.system'", "could run its code")
    assert not trace.exists()
    torch.load(tmp_path / "m" / file, weights_only=False)
    assert trace.exists(), "the pickle would have run"


@pytest.mark.parametrize("file", ["state_dict.bin", "compression_state_dict.bin"])
@pytest.mark.parametrize("left", [0, 7, 5000])
def test_truncated_files(tmp_path: Path, file: str, left: int) -> None:
    audiocraft_folder(tmp_path)
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:left])
    assert_refused(tmp_path, file, "empty" if left == 0 else "damaged or cut short", "again")


def test_training_checkpoints_are_recognised(tmp_path: Path) -> None:
    audiocraft_folder(tmp_path / "m")
    content = torch.load(tmp_path / "m/state_dict.bin", weights_only=True)
    for name, checkpoint in (
        ("nested", {"best_state": {"model": content["best_state"]}, "xp.cfg": content["xp.cfg"]}),
        (
            "whole",
            {"model": content["best_state"], "optimizer": {}, "history": [], "xp.cfg": content["xp.cfg"], "xp.sig": "abc"},
        ),
    ):
        audiocraft_folder(tmp_path / name)
        torch.save(checkpoint, tmp_path / name / "state_dict.bin")
        assert_refused(tmp_path / name, "training run of AudioCraft", "export_lm")


def test_incomplete_packages(tmp_path: Path) -> None:
    audiocraft_folder(tmp_path)
    repack(tmp_path, **{"xp.cfg": None})
    assert_refused(tmp_path, "has no 'xp.cfg'", "export_lm")
    audiocraft_folder(tmp_path)
    repack(tmp_path, **{"xp.cfg": "transformer_lm: [1,"})
    assert_refused(tmp_path, "xp.cfg is not YAML")
    audiocraft_folder(tmp_path)
    repack(tmp_path, surprise=torch.zeros(3))
    assert_refused(tmp_path, "holds 'surprise'")


@pytest.mark.parametrize("wrong", ["missing", "more", "misshapen", "nan", "projection"])
def test_weights_must_match_the_config(tmp_path: Path, wrong: str) -> None:
    audiocraft_folder(tmp_path)
    state = torch.load(tmp_path / "state_dict.bin", weights_only=True)["best_state"]
    name = "transformer.layers.1.linear1.weight"
    projection = "condition_provider.conditioners.description.output_proj."
    if wrong == "missing":
        del state[name]
    elif wrong == "more":
        state["transformer.layers.2.linear1.weight"] = state[name].clone()
    elif wrong == "misshapen":
        state[name] = state[name][:5]
    elif wrong == "nan":
        state[name][3, 4] = torch.inf
    else:
        del state[f"{projection}bias"]
    repack(tmp_path, best_state=state)
    messages = {"missing": "missing", "more": "layers.2", "misshapen": "instead of", "nan": "not finite"}
    assert_refused(tmp_path, messages.get(wrong, "output_proj.bias"))


def test_codec_of_another_model(tmp_path: Path) -> None:
    audiocraft_folder(tmp_path)
    repack(tmp_path, "compression_state_dict.bin", **{"xp.cfg": CODEC.replace("n_q: 3", "n_q: 4")})
    assert_refused(tmp_path, "transformer_lm.n_q: is 3, but the codec gives 4 codebooks")


def test_missing_text_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    audiocraft_folder(tmp_path, conditioners__description__t5__name="t5-missing")
    system = cadenza.load(tmp_path, device="cpu")  # encoding and decoding audio needs no T5
    with pytest.raises(CheckpointError, match="t5-missing.*hf download"):
        system.generate(TEXT, seconds=0.1)


def test_finetuned_text_encoder(tmp_path: Path) -> None:
    model = audiocraft_folder(tmp_path, conditioners__description__t5__finetune=True)
    state = audiocraft_lm(model)
    stem = "condition_provider.conditioners.description.t5."
    text = {name: 2 * x for name, x in model.text_encoder.state_dict().items()}
    repack(tmp_path, best_state=state | {f"{stem}{name}": x.clone() for name, x in text.items()})
    system = cadenza.load(tmp_path, device="cpu")
    weights = system.conditioners["prompt"].state_dict()
    name = "encoder.block.1.layer.1.DenseReluDense.wo.weight"
    assert torch.equal(weights[name], text[name])
    assert torch.equal(weights["encoder.embed_tokens.weight"], text["shared.weight"])
    repack(tmp_path, best_state=state)
    assert_refused(tmp_path, "missing: t5.encoder.block.0")
