"""Released models: each weight of a published geometry maps to one of ours by shape, and parameter counts agree."""

from typing import Any

import pytest
import torch
from torch import Tensor

from cadenza.core.checkpoint import check_state_dict, strip_prefix
from cadenza.importers import encodec, musicgen
from cadenza.importers.audiocraft import rename_to_transformers
from cadenza.importers.audiocraft_conditioners import extract_conditioner_weights
from cadenza.importers.base import expected_state_dict, musicgen_key_map
from cadenza.importers.catalog import CODECS, MERT, MODELS, TEXTS, LMGeometry
from cadenza.system.spec import SystemSpec

LANGUAGES = {name: model for name, model in MODELS.items() if model.language}
COUNTED = {  # millions of parameters of the language model with its projection, as the study of AudioCraft counted them
    "facebook/musicgen-small": 420,
    "facebook/musicgen-medium": 1840,
    "facebook/musicgen-large": 3260,
    "facebook/musicgen-stereo-small": 420 + 17,
    "facebook/musicgen-stereo-medium": 1840 + 25,
    "facebook/musicgen-stereo-large": 3260 + 34,
    "facebook/musicgen-melody": 1390,
    "facebook/musicgen-melody-large": 2450,
    "facebook/musicgen-stereo-melody": 1390 + 25,
    "facebook/musicgen-stereo-melody-large": 2450 + 34,
}
AUDIO: dict[int, dict[str, Any]] = {  # their configs, without the defaults of transformers
    16000: {"sampling_rate": 16000, "upsampling_ratios": [8, 5, 4, 2]},
    32000: {"sampling_rate": 32000, "upsampling_ratios": [8, 5, 4, 4]},
    24000: {},
    48000: {"sampling_rate": 48000, "audio_channels": 2, "normalize": True, "chunk_length_s": 1.0, "overlap": 0.01},
}
AUDIO_CONDITIONS: dict[str, dict[str, Any]] = {
    "melody": {"type": "chroma", "max_frames": 235, "stems": "vocals+other"},
    "style": {"type": "style", "model": "m-a-p/MERT-v1-95M", "dim": 768, "null_embedding": "zeros"},
}
for rate in (16000, 32000):
    AUDIO[rate] |= {"num_filters": 64, "codebook_size": 2048, "target_bandwidths": [2.2], "use_causal_conv": False}
    AUDIO[rate] |= {"use_conv_shortcut": False}
AUDIO[48000] |= {"norm_type": "time_group_norm", "use_causal_conv": False, "target_bandwidths": [3.0, 6.0, 12.0, 24.0]}


def system_of(language: LMGeometry, sample_rate: int) -> SystemSpec:
    mono = encodec.spec_from_transformers(AUDIO[sample_rate], source="published").to_dict()
    return SystemSpec.parse(
        {
            "codec": mono if language.sides == 1 else {"type": "stereo", "codec": mono},
            "conditioners": {
                "prompt": {
                    "type": "t5",
                    "model": language.text,
                    "dim": TEXTS[language.text][0],
                    "output_dim": language.width,
                    "null_embedding": "zeros",
                }
            }
            | (
                {language.audio_condition: AUDIO_CONDITIONS[language.audio_condition] | {"output_dim": language.width}}
                if language.audio_condition
                else {}
            ),
            "fusion": {"prepend": [language.audio_condition, "prompt"]} if language.audio_condition else {"cross": ["prompt"]},
            "generator": {
                **{"type": "codec_lm", "width": language.width, "depth": language.depth, "heads": language.heads},
                **{"positions": "sinusoidal", "end_of_sequence": False, "max_frames": language.seconds * 50},
            },
        }
    )


def audiocraft_manifest(language: LMGeometry) -> dict[str, list[int]]:
    """Return names and shapes of a released package of AudioCraft, from the tables of its study."""
    d, bins, text = language.width, language.bins, TEXTS[language.text][0]
    manifest = {"out_norm.weight": [d], "out_norm.bias": [d]}
    for k in range(language.codebooks):
        manifest |= {f"emb.{k}.weight": [bins + 1, d], f"linears.{k}.weight": [bins, d]}
    for i in range(language.depth):
        stem = f"transformer.layers.{i}."
        cross_attended = not language.audio_condition
        for attention in ("self_attn", "cross_attention") if cross_attended else ("self_attn",):
            manifest |= {f"{stem}{attention}.in_proj_weight": [3 * d, d], f"{stem}{attention}.out_proj.weight": [d, d]}
        manifest |= {f"{stem}linear1.weight": [4 * d, d], f"{stem}linear2.weight": [d, 4 * d]}
        norms = ("norm1", "norm_cross", "norm2") if cross_attended else ("norm1", "norm2")
        manifest |= {f"{stem}{norm}.{end}": [d] for norm in norms for end in ("weight", "bias")}
    stem = "condition_provider.conditioners.description.output_proj."
    manifest |= {f"{stem}weight": [d, text], f"{stem}bias": [d]}
    stem = "condition_provider.conditioners.self_wav."
    if language.audio_condition == "melody":
        manifest |= {f"{stem}output_proj.weight": [d, 12], f"{stem}output_proj.bias": [d]}
    elif language.audio_condition == "style":
        manifest |= {f"{stem}{name}": shape for name, shape in style_manifest(d).items()}
    return manifest


def style_manifest(width: int) -> dict[str, list[int]]:
    """Return names and shapes of MusicGen-Style's conditioner without MERT, from its modules, as no file was at hand."""
    manifest = {
        "embed.weight": [512, 768],
        "embed.bias": [512],
        "output_proj.weight": [width, 512],
        "output_proj.bias": [width],
    }
    for i in range(8):
        stem = f"transformer.layers.{i}."
        manifest |= {f"{stem}self_attn.in_proj_weight": [1536, 512], f"{stem}self_attn.out_proj.weight": [512, 512]}
        manifest |= {f"{stem}linear1.weight": [2048, 512], f"{stem}linear2.weight": [512, 2048]}
        manifest |= {f"{stem}{norm}.{end}": [512] for norm in ("norm1", "norm2") for end in ("weight", "bias")}
    return manifest


def count(weights: dict[str, Tensor]) -> int:
    return sum(x.numel() for x in weights.values())


@pytest.mark.parametrize("name", LANGUAGES)
def test_weights_of_audiocraft(name: str) -> None:
    language: Any = MODELS[name].language
    expected = expected_state_dict(system_of(language, MODELS[name].sample_rate))
    manifest = audiocraft_manifest(language)
    assert sum(torch.Size(shape).numel() for shape in manifest.values()) == language.parameters
    state = {key: torch.empty(shape, device="meta") for key, shape in manifest.items()}
    spec = system_of(language, MODELS[name].sample_rate)
    if language.audio_condition == "style":
        books = {"inited": (1,), "cluster_size": (1024,), "embed": (1024, 512), "embed_avg": (1024, 512)}
        stem = "condition_provider.conditioners.self_wav."
        state |= {
            f"{stem}rvq.vq.layers.{k}._codebook.{key}": torch.ones(shape) for k in range(6) for key, shape in books.items()
        }
        state |= {f"{stem}batch_norm.{key}": torch.ones(512) for key in ("running_mean", "running_var")}
        state[f"{stem}batch_norm.num_batches_tracked"] = torch.ones(())
    elif language.audio_condition == "melody":
        state["condition_provider.conditioners.self_wav.chroma.spec.window"] = torch.hann_window(16384)
    ours = extract_conditioner_weights(state, spec, expected, source=name)
    assert {key: x.shape for key, x in ours.items()} == {
        f"conditioners.{key}": x.shape for key, x in strip_prefix(expected, "conditioners.").items()
    }
    layout = musicgen_key_map(language.depth, language.codebooks, cross=not language.audio_condition)
    ours = layout.import_weights(
        rename_to_transformers(state, forward=False, attention=False, source=name),
        strip_prefix(expected, "generator."),
        source=name,
    )
    assert {key: x.shape for key, x in ours.items()} == {
        key: x.shape for key, x in strip_prefix(expected, "generator.").items()
    }


@pytest.mark.parametrize("name", [name for name, model in LANGUAGES.items() if model.language.audio_condition != "style"])
def test_weights_of_transformers(name: str) -> None:
    """Each weight of the model that transformers builds from the published config is one of ours, or of the T5."""
    import transformers
    from transformers import EncodecConfig, T5Config

    language: Any = MODELS[name].language
    kind = "MusicgenMelody" if language.audio_condition else "Musicgen"
    whole, part_of, model_of = (
        getattr(transformers, f"{kind}{end}") for end in ("Config", "DecoderConfig", "ForConditionalGeneration")
    )
    texts = {"google-t5/t5-base": {"d_model": 768, "d_ff": 3072, "num_heads": 12, "num_layers": 12}}
    texts["google-t5/t5-large"] = {"d_model": 1024, "d_ff": 4096, "num_heads": 16, "num_layers": 24}
    decoder = {"hidden_size": language.width, "num_hidden_layers": language.depth, "num_attention_heads": language.heads}
    decoder |= {"ffn_dim": 4 * language.width, "num_codebooks": language.codebooks, "audio_channels": language.sides}
    config = whole(
        text_encoder=T5Config(**texts[language.text]).to_dict(),
        audio_encoder=EncodecConfig(**AUDIO[MODELS[name].sample_rate]).to_dict(),
        decoder=part_of(**decoder).to_dict(),
    )
    with torch.device("meta"):
        model = model_of(config)
    state = model.state_dict()
    expected = expected_state_dict(system_of(language, MODELS[name].sample_rate))
    layout = musicgen_key_map(language.depth, language.codebooks, cross=not language.audio_condition)
    check_state_dict(strip_prefix(state, "decoder."), layout.shapes(strip_prefix(expected, "generator.")), source=name)
    musicgen.check_t5_weights(strip_prefix(state, "text_encoder."), model.config.text_encoder.to_dict(), source=name)
    for part_name, prefix in (("prompt", "enc_to_dec_proj."), ("melody", "audio_enc_to_dec_proj.")):
        bridge = {key: x.shape for key, x in strip_prefix(expected, f"conditioners.{part_name}.out.").items()}
        check_state_dict(strip_prefix(state, prefix), bridge, source=name)
    parameters = sum(x.numel() for x in model.parameters())
    assert MODELS[name].parameters == parameters
    assert TEXTS[language.text][1] == sum(x.numel() for x in model.text_encoder.parameters())


def test_parameters_of_mert() -> None:
    """MERT has the geometry of HuBERT base."""
    from transformers import HubertConfig, HubertModel

    with torch.device("meta"):
        assert sum(x.numel() for x in HubertModel(HubertConfig()).parameters()) == MERT


@pytest.mark.parametrize("rate", AUDIO)
def test_codecs(rate: int) -> None:
    from transformers import EncodecConfig, EncodecModel

    with torch.device("meta"):
        model = EncodecModel(EncodecConfig(**AUDIO[rate]))
    assert sum(x.numel() for x in model.parameters()) == CODECS[rate]
    state = {key: torch.zeros(x.shape) for key, x in model.state_dict().items()}
    for key, x in state.items():
        x.fill_(1.0) if key.endswith("inited") else None
    spec = encodec.spec_from_transformers(AUDIO[rate], source="published")
    ours = encodec.weights_from_transformers(state, spec, source="published")
    assert {key: x.shape for key, x in ours.items()} == {
        key.removeprefix("codec."): x.shape for key, x in expected_state_dict(SystemSpec(codec=spec)).items()
    }
    known = {16000: (50, 4), 24000: (75, 32), 32000: (50, 4), 48000: (150, 16)}
    assert (spec.frame_format.frame_rate, spec.frame_format.channels) == known[rate]


@pytest.mark.parametrize(("name", "millions"), COUNTED.items())
def test_parameter_counts(name: str, millions: int) -> None:
    language: Any = MODELS[name].language
    assert language.parameters / 1e6 == pytest.approx(millions, rel=0.005)
    expected = expected_state_dict(system_of(language, MODELS[name].sample_rate))
    own = {key: x for key, x in expected.items() if not key.startswith("codec.")}
    assert count(own) == language.parameters
