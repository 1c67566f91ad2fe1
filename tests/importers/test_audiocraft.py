"""AudioCraft's packages: the same weights as transformers' give the same, and everything odd is refused by name."""

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


def repacked(folder: Path, file: str = "state_dict.bin", **keys: Any) -> None:
    """Sets keys of a package; None takes them out."""
    held = torch.load(folder / file, weights_only=True)
    held = {name: value for name, value in {**held, **keys}.items() if value is not None}
    torch.save(held, folder / file)


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(CheckpointError) as error:
        cadenza.load(folder, device="cpu")
    for word in words:
        assert word in str(error.value)


def test_the_same_weights_as_transformers_give_the_same(tmp_path: Path) -> None:
    """Alone in a batch no text is padded, so that it does not matter that AudioCraft attends to padding."""
    model = musicgen_folder(tmp_path / "theirs")
    audiocraft_folder(tmp_path / "package")
    for parameter in model.decoder.parameters():
        assert parameter.dtype == torch.float32
    system = cadenza.load(tmp_path / "package", device="cpu")
    other = cadenza.load(tmp_path / "theirs", device="cpu")
    mine, his = system.state_dict(), other.state_dict()
    assert mine.keys() == his.keys()
    for name, x in mine.items():
        half = x.dtype == torch.float32 and not name.startswith("codec")
        torch.testing.assert_close(x, his[name].half().float() if half else his[name], msg=name)
    spec: Any = system.spec.generator
    assert spec.attend_padding and not other.spec.generator.attend_padding
    assert spec.max_frames == 200 and system.spec.defaults.guidance == 2.5  # 2 seconds of 100 frames
    assert system.spec.conditioners["prompt"].word_dropout == 0.3
    other.generator.load_state_dict(system.generator.state_dict())
    other.conditioners.load_state_dict(system.conditioners.state_dict())
    same = {"seconds": 0.2, "sampling": {"temperature": 0}, "guidance": 2.5}
    assert torch.equal(system.generate_frames(TEXT, **same).ids, other.generate_frames(TEXT, **same).ids)


def test_a_codec_that_is_only_named(tmp_path: Path) -> None:
    """A pointer to a released codec is followed to the folder beside the model."""
    model = audiocraft_folder(tmp_path)
    before = cadenza.load(tmp_path, device="cpu").codec.state_dict()
    torch.save(
        {"pretrained": "facebook/encodec_8khz", "exported": True, "version": "1.4.0a2"}, tmp_path / "compression_state_dict.bin"
    )
    model.audio_encoder.save_pretrained(tmp_path / "encodec_8khz")
    after = cadenza.load(tmp_path, device="cpu").codec.state_dict()
    assert all(torch.equal(x, after[name]) for name, x in before.items())
    (tmp_path / "compression_state_dict.bin").unlink()
    refused(tmp_path, "holds no compression_state_dict.bin", "//sig/0123abcd")
    audiocraft_folder(tmp_path, compression_model_checkpoint="//pretrained/facebook/encodec_8khz")
    (tmp_path / "compression_state_dict.bin").unlink()
    assert cadenza.load(tmp_path, device="cpu").codec.state_dict().keys() == before.keys()
    torch.save({"pretrained": "dac_44khz", "exported": True, "version": "1"}, tmp_path / "compression_state_dict.bin")
    refused(tmp_path, "dac_44khz", "cannot load yet")


def test_a_codec_that_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def absent(*_: Any, **__: Any) -> str:
        raise LocalEntryNotFoundError("outgoing traffic has been disabled")

    audiocraft_folder(tmp_path)
    torch.save(
        {"pretrained": "facebook/encodec_8khz", "exported": True, "version": "1"}, tmp_path / "compression_state_dict.bin"
    )
    monkeypatch.setattr(huggingface_hub, "snapshot_download", absent)
    refused(tmp_path, "facebook/encodec_8khz", "hf download facebook/encodec_8khz --local-dir encodec_8khz")


def test_fewer_codebooks_than_the_codec_has(tmp_path: Path) -> None:
    model = audiocraft_folder(tmp_path)
    state = {name: x for name, x in audiocraft_lm(model).items() if name not in ("emb.2.weight", "linears.2.weight")}
    config = yaml.safe_load(torch.load(tmp_path / "state_dict.bin", weights_only=True)["xp.cfg"])
    config["compression_model_n_q"] = config["transformer_lm"]["n_q"] = 2
    config["codebooks_pattern"] = {"modeling": None}
    config["transformer_lm"]["q_modeling"] = "delay"  # as old releases said it
    save_package(tmp_path / "state_dict.bin", state, yaml.safe_dump(config))
    system = cadenza.load(tmp_path, device="cpu")
    assert system.codec.frame_format.channels == 2 and system.spec.generator.pattern.delays == (0, 1)
    assert system.generate_frames(TEXT, seconds=0.1).ids.shape == (1, 2, 10)


def test_biases_and_attention_of_torch(tmp_path: Path) -> None:
    """Models with biases in some layers, and with torch's own attention, whose weights are called otherwise."""
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
        torch.testing.assert_close(weights[name], x, atol=1e-3, rtol=2e-3)  # those before were half


@pytest.mark.parametrize(("flag", "bias"), [("bias_ff", "self_attn.in_proj"), ("bias_attn", "linear1")])
def test_biases_are_exactly_those_of_the_config(tmp_path: Path, flag: str, bias: str) -> None:
    model = audiocraft_folder(tmp_path, **{f"transformer_lm__{flag}": True})
    refused(tmp_path, "is missing", f"{flag} (True)")
    extra = f"transformer.layers.0.{bias}{'.' if 'linear' in bias else '_'}bias"
    state = audiocraft_lm(model)
    ours = {"bias_ff": ("linear1", "linear2"), "bias_attn": ("self_attn.in_proj_weight", "self_attn.out_proj")}[flag]
    ours += ("cross_attention.in_proj_weight", "cross_attention.out_proj") if flag == "bias_attn" else ()
    for i in range(2):
        for name in ours:
            weight = f"transformer.layers.{i}.{name if name.endswith('weight') else f'{name}.weight'}"
            state[weight.removesuffix("weight") + "bias"] = torch.zeros(len(state[weight]))
    repacked(tmp_path, best_state=state)
    cadenza.load(tmp_path, device="cpu")
    repacked(tmp_path, best_state=state | {extra: torch.zeros(48 if "in_proj" in bias else 24)})
    refused(tmp_path, "is unknown")


@pytest.mark.parametrize("key", ["norm_first", "causal", "activation"])
def test_what_means_another_model_when_it_is_missing(tmp_path: Path, key: str) -> None:
    audiocraft_folder(tmp_path)
    config = yaml.safe_load(torch.load(tmp_path / "state_dict.bin", weights_only=True)["xp.cfg"])
    del config["transformer_lm"][key]
    repacked(tmp_path, **{"xp.cfg": yaml.safe_dump(config)})
    refused(tmp_path, f"transformer_lm.{key}: is missing")


@pytest.mark.parametrize(
    ("pattern", "want"),
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
def test_patterns(tmp_path: Path, pattern: dict[str, Any], want: dict[str, Any]) -> None:
    audiocraft_folder(tmp_path, codebooks_pattern=pattern)
    found = cadenza.load(tmp_path, device="cpu").spec.generator.pattern
    assert found.model_dump().items() >= want.items()


@pytest.mark.parametrize(
    ("place", "value", "said"),
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
def test_settings_that_cannot_be_honoured_are_named(tmp_path: Path, place: str, value: Any, said: str) -> None:
    audiocraft_folder(tmp_path, **{place: value})
    refused(tmp_path, said)


def test_positions_of_what_is_attended_to_are_kept(tmp_path: Path) -> None:
    """What they do is proven by the fuser cases of the conformance kit."""
    audiocraft_folder(tmp_path, fuser__cross_attention_pos_emb=True, fuser__cross_attention_pos_emb_scale=0.5)
    spec: Any = cadenza.load(tmp_path, device="cpu").spec
    assert spec.generator.cross_attention_pos_emb_scale == 0.5 and [route.id for route in spec.fusion.cross] == ["prompt"]


def test_sections_of_which_nothing_is_built_are_said(tmp_path: Path) -> None:
    audiocraft_folder(tmp_path, novelty={"on": True})
    with pytest.warns(UserWarning, match="which do not change the model: novelty"):
        cadenza.load(tmp_path, device="cpu")


class Evil:
    """Runs when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.trace}",)


@pytest.mark.parametrize("file", ["state_dict.bin", "compression_state_dict.bin", "pytorch_model.bin"])
@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_is_refused_and_not_run(tmp_path: Path, file: str, zipped: bool) -> None:
    trace = tmp_path / "ran"
    if file == "pytorch_model.bin":
        musicgen_folder(tmp_path / "m")
        (tmp_path / "m/model.safetensors").unlink()
    else:
        audiocraft_folder(tmp_path / "m")
    evil = {"best_state": Evil(trace), "xp.cfg": CODEC, "version": "1", "exported": True}
    torch.save(evil, tmp_path / "m" / file, _use_new_zipfile_serialization=zipped)
    refused(tmp_path / "m", file, "'posix.system'" if os.name == "posix" else "'nt.system'", "could run its code")
    assert not trace.exists()
    torch.load(tmp_path / "m" / file, weights_only=False)
    assert trace.exists(), "the pickle would have run"


@pytest.mark.parametrize("file", ["state_dict.bin", "compression_state_dict.bin"])
@pytest.mark.parametrize("left", [0, 7, 5000])
def test_truncated_files(tmp_path: Path, file: str, left: int) -> None:
    audiocraft_folder(tmp_path)
    (tmp_path / file).write_bytes((tmp_path / file).read_bytes()[:left])
    refused(tmp_path, file, "empty" if left == 0 else "damaged or cut short", "again")


def test_training_checkpoints_are_recognised(tmp_path: Path) -> None:
    audiocraft_folder(tmp_path / "m")
    held = torch.load(tmp_path / "m/state_dict.bin", weights_only=True)
    for name, checkpoint in (
        ("nested", {"best_state": {"model": held["best_state"]}, "xp.cfg": held["xp.cfg"]}),
        ("whole", {"model": held["best_state"], "optimizer": {}, "history": [], "xp.cfg": held["xp.cfg"], "xp.sig": "abc"}),
    ):
        audiocraft_folder(tmp_path / name)
        torch.save(checkpoint, tmp_path / name / "state_dict.bin")
        refused(tmp_path / name, "training run of AudioCraft", "export_lm")


def test_a_package_without_what_it_needs(tmp_path: Path) -> None:
    audiocraft_folder(tmp_path)
    repacked(tmp_path, **{"xp.cfg": None})
    refused(tmp_path, "has no 'xp.cfg'", "export_lm")
    audiocraft_folder(tmp_path)
    repacked(tmp_path, **{"xp.cfg": "transformer_lm: [1,"})
    refused(tmp_path, "xp.cfg is not YAML")
    audiocraft_folder(tmp_path)
    repacked(tmp_path, surprise=torch.zeros(3))
    refused(tmp_path, "holds 'surprise'")


@pytest.mark.parametrize("wrong", ["missing", "more", "misshapen", "nan", "projection"])
def test_weights_are_exactly_those_of_the_config(tmp_path: Path, wrong: str) -> None:
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
    repacked(tmp_path, best_state=state)
    said = {"missing": "missing", "more": "layers.2", "misshapen": "instead of", "nan": "not finite"}
    refused(tmp_path, said.get(wrong, "output_proj.bias"))


def test_packages_that_do_not_belong_together(tmp_path: Path) -> None:
    audiocraft_folder(tmp_path)
    repacked(tmp_path, "compression_state_dict.bin", **{"xp.cfg": CODEC.replace("n_q: 3", "n_q: 4")})
    refused(tmp_path, "transformer_lm.n_q: is 3, but the codec gives 4 codebooks")


def test_a_text_encoder_that_is_not_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    audiocraft_folder(tmp_path, conditioners__description__t5__name="t5-of-nobody")
    system = cadenza.load(tmp_path, device="cpu")  # what only encodes and decodes audio needs no T5
    with pytest.raises(CheckpointError, match="t5-of-nobody.*hf download"):
        system.generate(TEXT, seconds=0.1)


def test_a_text_encoder_that_was_trained_too(tmp_path: Path) -> None:
    model = audiocraft_folder(tmp_path, conditioners__description__t5__finetune=True)
    state = audiocraft_lm(model)
    stem = "condition_provider.conditioners.description.t5."
    text = {name: 2 * x for name, x in model.text_encoder.state_dict().items()}
    repacked(tmp_path, best_state=state | {f"{stem}{name}": x.clone() for name, x in text.items()})
    system = cadenza.load(tmp_path, device="cpu")
    weights = system.conditioners["prompt"].state_dict()
    name = "encoder.block.1.layer.1.DenseReluDense.wo.weight"
    assert torch.equal(weights[name], text[name])
    assert torch.equal(weights["encoder.embed_tokens.weight"], text["shared.weight"])
    repacked(tmp_path, best_state=state)
    refused(tmp_path, "missing: t5.encoder.block.0")
