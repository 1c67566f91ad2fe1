"""MusicGen and MusicGen Melody (arXiv:2306.05284) in the layout of transformers."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cadenza.core.checkpoint import check_finite, check_state_dict, strip_prefix, to_float32_copy
from cadenza.core.errors import CheckpointError
from cadenza.core.hub import read_folder, read_json_object
from cadenza.importers import audiocraft_conditioners, encodec
from cadenza.importers.audiocraft_conditioners import MELODY
from cadenza.importers.base import ConfigReader, expected_state_dict, merge_tied_embedding, musicgen_key_map
from cadenza.importers.encodec import inner_encodec
from cadenza.importers.license import model_card_for
from cadenza.nn.rope import sinusoidal_embedding
from cadenza.nn.t5 import T5Config, T5Encoder
from cadenza.system.spec import SystemSpec
from cadenza.system.store import ModelCard, ModelFolder, SavedSystem

SETTINGS = frozenset(  # of a T5; its weights are checked against them
    "classifier_dropout d_ff d_kv d_model dense_act_fn dropout_rate feed_forward_proj initializer_factor is_gated_act "
    "layer_norm_epsilon n_positions num_decoder_layers num_heads num_layers output_past relative_attention_max_distance "
    "relative_attention_num_buckets scale_decoder_outputs use_cache vocab_size".split()
)
TOKENIZER = ("tokenizer.json", "spiece.model")  # one of them is needed
# Keys of any config of transformers, old or new: bookkeeping, and generation defaults of other models.
GENERAL = frozenset(
    {*encodec.CONFIG_KEYS, "model_type", "use_cache"} - {"_attn_implementation", "attn_implementation", "auto_map"}
)
_TRAINING = ("layerdrop", "attention_dropout", "activation_dropout", "classifier_dropout", "initializer_factor")
_PUBLISHED = {"do_sample": True, "guidance_scale": 3.0, "max_length": 1500}  # without generation_config.json
_UNSUPPORTED_SAMPLING = {  # unsupported generation settings -> the value without effect
    **dict.fromkeys(("num_beams", "num_beam_groups", "repetition_penalty", "encoder_repetition_penalty", "typical_p"), 1),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "epsilon_cutoff", "eta_cutoff"), 0),
    **dict.fromkeys(("min_length", "diversity_penalty", "min_p", "top_h", "penalty_alpha"), 0),
    **dict.fromkeys(("bad_words_ids", "force_words_ids", "constraints", "sequence_bias", "suppress_tokens"), None),
    **dict.fromkeys(("begin_suppress_tokens", "forced_bos_token_id", "forced_eos_token_id", "stop_strings"), None),
    **dict.fromkeys(("exponential_decay_length_penalty", "min_new_tokens", "max_time", "watermarking_config"), None),
    **dict.fromkeys(("dola_layers", "eos_token_id", "forced_decoder_ids"), None),
}
_WITHOUT_EFFECT = frozenset(  # of a generation config; these do not change the result
    "_from_model_config assistant_confidence_threshold assistant_early_exit assistant_ensemble_weight assistant_lookbehind "
    "cache_config cache_implementation compile_config continuous_batching_config disable_compile is_assistant "
    "low_memory max_cache_len max_matching_ngram_size num_assistant_tokens num_assistant_tokens_schedule output_attentions "
    "output_hidden_states output_logits output_scores prefill_chunk_size prompt_lookup_num_tokens remove_invalid_values "
    "renormalize_logits return_dict_in_generate return_legacy_cache speculation_type target_lookbehind token_healing "
    "transformers_version "
    "use_cache use_mtp early_stopping length_penalty num_return_sequences".split()
)


def check_t5_weights(state: Mapping[str, Tensor], config: Mapping[str, Any], *, source: str) -> None:
    """Raise CheckpointError unless `state` is the T5 encoder; the embedding may have either name or both."""
    with torch.device("meta"):
        encoder = T5Encoder(T5Config.from_dict(config)).state_dict()
    expected = {f"encoder.{name}": x for name, x in encoder.items()}
    check_state_dict(merge_tied_embedding(state), merge_tied_embedding(expected), source=source)


def check_tokenizer(folder: Path) -> None:
    """Raise CheckpointError if the folder of a T5 has no tokenizer."""
    if not any((folder / name).exists() for name in TOKENIZER):
        raise CheckpointError(
            f"{folder} has no tokenizer ({' or '.join(TOKENIZER)}), which texts need; copy it from the source of the "
            "model, or from its text encoder's repository (google-t5/t5-base for MusicGen)"
        )


def inspect_musicgen(folder: Path, config: Mapping[str, Any], *, name: str | None = None) -> ModelFolder:
    """Return the MusicGen in a folder from its configs; raise CheckpointError with every unsupported setting."""
    spec = _spec(folder, config)
    inputs = "Text and melody" if MELODY in spec.conditioners else "Text"
    card = model_card_for(folder, name=name, summary=f"{inputs} to music: MusicGen, imported from the layout of transformers.")
    return ModelFolder(folder, "transformers MusicGen", spec, card, partial(_read, folder, config, spec, card))


def _spec(folder: Path, config: Mapping[str, Any]) -> SystemSpec:
    root = ConfigReader(config, source=str(folder / "config.json"))
    root.ignore({*GENERAL, "initializer_factor"})
    melody = config.get("model_type") == "musicgen_melody"
    chroma = (root.get("num_chroma", int, 12), root.get("chroma_length", int, 235)) if melody else None
    text, audio = root.subsection("text_encoder"), root.subsection("audio_encoder")
    decoder = root.subsection("decoder")
    root.reject_unread()
    generator, channels = _generator(decoder)
    text.require_value("model_type", "t5", why="is not a supported text encoder")
    text_width = text.get("d_model", int, 512)
    text.require_value("pruned_heads", {}, None)
    text.ignore({*GENERAL, *SETTINGS})
    text.reject_unread()
    if chroma is not None:
        generator["attend_padding"] = True  # of the prefix
    elif decoder.data.get("cross_attention_hidden_size") not in (None, text_width):
        decoder.unsupported("cross_attention_hidden_size", f"must be null, or the text encoder's width {text_width}")
    elif decoder.data.get("cross_attention_hidden_size") is not None and text_width != generator["width"]:
        decoder.unsupported("cross_attention_hidden_size", "omits the projection between two different widths; use null")
    audio.require_value("normalize", False, None, why="gives clips a loudness factor that a language model cannot write")
    audio.require_value("audio_channels", 1, why="channels are not supported: stereo uses a mono codec")
    root.raise_errors()
    in_one = {"chunk_length_s": None, "overlap": None}  # transformers decodes generated codes root, too
    codec = encodec.spec_from_transformers({**audio.data, **in_one}, source=audio.source)
    rows = codec.frame_format.channels * channels
    if rows != generator.pop("rows") or codec.frame_format.cardinality != generator.pop("bins"):
        decoder.unsupported(
            "num_codebooks", f"and vocab_size must be {rows} and {codec.frame_format.cardinality}, as audio_encoder has them"
        )
    defaults, context = _defaults(folder, decoder, codec.frame_format.frame_rate, rows // channels)
    conditioners: dict[str, Any] = {
        "prompt": {
            "type": "t5",
            "model": str(folder),
            "subconfig": "text_encoder",
            "dim": text_width,
            "output_dim": generator["width"],
            "null_embedding": "zeros",
            "empty_text": "encode",
            "project": "auto",
        }
    }
    if chroma is not None:
        sizes = dict(zip(("bins", "frames"), chroma, strict=True))
        conditioners[MELODY] = audiocraft_conditioners.chroma_spec_from_transformers(
            folder, **sizes, width=generator["width"], mistakes=root.mistakes
        )
    root.raise_errors()
    return SystemSpec.parse(
        {
            "codec": codec.to_dict() if channels == 1 else {"type": "stereo", "codec": codec.to_dict()},
            "conditioners": conditioners,
            "fusion": {"prepend": [MELODY, "prompt"]} if chroma else {"cross": ["prompt"]},
            "generator": {**generator, "max_frames": context},
            "defaults": defaults,
        },
        source=str(folder),
    )


def _generator(decoder: ConfigReader) -> tuple[dict[str, Any], int]:
    """Return the spec of the language model with `rows` and `bins`, and its audio channels."""
    decoder.ignore({*GENERAL, *_TRAINING, "max_position_embeddings", "scale_embedding"} - {"tie_word_embeddings"})
    decoder.require_value("activation_function", "gelu")
    decoder.require_value("pruned_heads", {}, None)
    decoder.require_value("tie_word_embeddings", False, None)
    bins = decoder.get("vocab_size", int, 2048)
    for key in ("pad_token_id", "bos_token_id"):
        decoder.require_value(key, bins, None, why="is not the id after the last code")
    decoder.require_value("eos_token_id", None)
    channels = decoder.get("audio_channels", int, 1)
    if channels not in (1, 2):
        decoder.unsupported("audio_channels", f"must be 1 or 2, got {channels}")
    rows, width = decoder.get("num_codebooks", int, 4), decoder.get("hidden_size", int, 1024)
    spec = {
        "type": "codec_lm",
        "width": width,
        "depth": decoder.get("num_hidden_layers", int, 24),
        "heads": decoder.get("num_attention_heads", int, 16),
        "mlp_ratio": decoder.get("ffn_dim", int, 4096) / max(width, 1),
        "dropout": decoder.get("dropout", float, 0.1),
        "pattern": {"type": "delay", "delays": [k // channels for k in range(rows)]},
        "positions": "sinusoidal",
        "end_of_sequence": False,
        "attend_padding": False,
        "rows": rows,
        "bins": bins,
    }
    decoder.reject_unread()
    return spec, channels


def _defaults(folder: Path, decoder: ConfigReader, rate: float, delayed: int) -> tuple[dict[str, Any], int]:
    """Return the defaults of a request, and the largest number of frames of a window."""
    path = folder / "generation_config.json"
    settings = read_json_object(path) if path.exists() else _PUBLISHED
    settings = {key: value for key, value in settings.items() if value is not None}  # null means absent
    section = ConfigReader(settings, source=str(path), mistakes=decoder.mistakes)
    for key, default in _UNSUPPORTED_SAMPLING.items():
        section.require_value(key, default, None, why="is an unsupported sampling setting")
    bins = decoder.get("vocab_size", int, 2048)
    for key in ("pad_token_id", "bos_token_id", "decoder_start_token_id"):
        section.require_value(key, bins, None, why="is not the id after the last code")
    section.ignore(_WITHOUT_EFFECT)
    steps = section.get("max_length", int, None) or _PUBLISHED["max_length"]
    new = section.get("max_new_tokens", int, None)
    frames = max(1, (steps if new is None else new + 1) - delayed)  # without the start token and the delay
    sampling = {
        "temperature": section.get("temperature", float, None) or 1.0,
        "top_k": section.get("top_k", int, 50) or 0,
        "top_p": section.get("top_p", float, None) or 0.0,
    }
    if not section.get("do_sample", bool, False):
        sampling = {"temperature": 0.0}
    elif sampling["top_p"] == 1.0:
        sampling["top_p"] = 0.0
    guidance = section.get("guidance_scale", float, None)
    section.reject_unread()
    return {"seconds": frames / rate, "guidance": guidance or 1.0, "sampling": sampling}, max(steps, frames)


def _read(folder: Path, config: Mapping[str, Any], spec: SystemSpec, card: ModelCard) -> SavedSystem:
    state = read_folder(folder)
    check_finite(state, source=str(folder))
    bridges = {"prompt": "enc_to_dec_proj."} | ({MELODY: "audio_enc_to_dec_proj."} if MELODY in spec.conditioners else {})
    parts = ("decoder.", "audio_encoder.", "text_encoder.")
    if others := [name for name in state if not name.startswith((*parts, *bridges.values()))]:
        raise CheckpointError(f"{folder}: {len(others)} weights belong to no part of MusicGen: {', '.join(others[:4])}")
    lm, audio, text = (strip_prefix(state, prefix) for prefix in parts)
    _check_positions(lm, spec, folder)
    check_t5_weights(text, config["text_encoder"], source=f"{folder}, text_encoder")
    check_tokenizer(folder)
    expected = expected_state_dict(spec)
    ours = {}
    for name, prefix in bridges.items():
        stem, projection = f"conditioners.{name}.out.", strip_prefix(state, prefix)
        bridge = {end: x.shape for end, x in strip_prefix(expected, stem).items()}  # empty if the widths are equal
        check_state_dict(projection, bridge, source=f"{folder}, {prefix.rstrip('.')}")
        ours |= {f"{stem}{end}": x for end, x in to_float32_copy(projection).items()}
    cross = MELODY not in spec.conditioners
    layout = musicgen_key_map(spec.generator.depth, spec.codec.frame_format.channels, cross=cross)  # type: ignore[union-attr]  # a codec_lm
    decoder = layout.import_weights(lm, strip_prefix(expected, "generator."), source=f"{folder}, decoder")
    ours |= {f"generator.{name}": x for name, x in decoder.items()}
    mono, stem = inner_encodec(spec.codec)
    codec = encodec.weights_from_transformers(audio, mono, source=f"{folder}, audio_encoder")
    ours |= {f"{stem}{name}": x for name, x in to_float32_copy(codec).items()}
    check_state_dict(ours, expected, str(folder))
    return SavedSystem(spec, card, ours)


def _check_positions(lm: dict[str, Tensor], spec: SystemSpec, folder: Path) -> None:
    """Remove the table of positions that old releases store; raise CheckpointError unless it is the sinusoids."""
    name = "model.decoder.embed_positions.weights"
    table = lm.pop(name, None)
    if table is None:
        return
    width = spec.generator.width  # type: ignore[union-attr]  # a codec_lm
    if table.ndim != 2 or table.shape[1] != width:
        raise CheckpointError(f"{folder}: decoder.{name} is {list(table.shape)} instead of [n, {width}]; copy the folder again")
    computed = sinusoidal_embedding(torch.arange(len(table))[None], width)[0]
    if not torch.allclose(table.float(), computed, atol=2e-3):  # stored in half precision, computed in another order
        raise CheckpointError(f"{folder}: decoder.{name} are not the sinusoidal positions; only these are supported")
