"""EnCodec (arXiv:2210.13438) of transformers and AudioCraft: import of configs and weights, export to transformers."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cadenza.codecs.base import CodecSpec
from cadenza.codecs.encodec import EncodecSpec
from cadenza.core import hub
from cadenza.core.checkpoint import check_finite, to_float32_copy
from cadenza.core.errors import CheckpointError, SpecError
from cadenza.importers.audiocraft_package import CODEC, PACKAGE_FILES, load_package
from cadenza.importers.base import CODEBOOK_NAMES, ConfigReader, KeyMap, modern_weight_norm_name
from cadenza.importers.license import model_card_for
from cadenza.nn.conv import ConvTranspose1d
from cadenza.system.spec import SystemSpec
from cadenza.system.store import ModelFolder, SavedSystem

# Keys of any config of transformers, old or new, that EnCodec does not use.
CONFIG_KEYS = """
_attn_implementation _attn_implementation_autoset _commit_hash _name_or_path add_cross_attention architectures
attn_implementation auto_map bad_words_ids begin_suppress_tokens bos_token_id chunk_size_feed_forward
cross_attention_hidden_size decoder_start_token_id diversity_penalty do_sample dtype early_stopping
encoder_no_repeat_ngram_size eos_token_id exponential_decay_length_penalty finetuning_task forced_bos_token_id
forced_eos_token_id id2label is_decoder is_encoder_decoder label2id length_penalty max_length min_length
no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions output_hidden_states output_scores
pad_token_id prefix problem_type pruned_heads remove_invalid_values repetition_penalty return_dict
return_dict_in_generate sep_token_id suppress_tokens task_specific_params temperature tf_legacy_loss
tie_encoder_decoder tie_word_embeddings tokenizer_class top_k top_p torch_dtype torchscript transformers_version
typical_p use_bfloat16
""".split()
_IN_TRAINING = """
q_dropout decay kmeans_init kmeans_iters threshold_ema_dead_code orthogonal_reg_weight
orthogonal_reg_active_codes_only orthogonal_reg_max_codes
""".split()  # training of AudioCraft's codebooks
_SIZES = {  # our field -> key of transformers, its default, key of AudioCraft's `seanet`
    "filters": ("num_filters", 32, "n_filters"),
    "lstm_layers": ("num_lstm_layers", 2, "lstm"),
    "residual_layers": ("num_residual_layers", 1, "n_residual_layers"),
    "residual_kernel": ("residual_kernel_size", 3, "residual_kernel_size"),
    "kernel": ("kernel_size", 7, "kernel_size"),
    "last_kernel": ("last_kernel_size", 7, "last_kernel_size"),
    "dilation_base": ("dilation_growth_rate", 2, "dilation_base"),
    "compress": ("compress", 2, "compress"),
}


def spec_from_transformers(config: Mapping[str, Any], *, source: str) -> EncodecSpec:
    """Return the spec of a transformers EncodecConfig, with its defaults; raise CheckpointError with every unsupported key."""
    section = ConfigReader(config, source=source)
    section.ignore(CONFIG_KEYS)
    section.require_value("model_type", "encodec", why="is another codec")
    rate, bins = section.get("sampling_rate", int, 24000), section.get("codebook_size", int, 1024)
    strides = section.get("upsampling_ratios", (list, tuple), (8, 5, 4, 2))
    width, causal = section.get("hidden_size", int, 128), section.get("use_causal_conv", bool, True)
    bandwidths = section.get("target_bandwidths", (list, tuple), (1.5, 3.0, 6.0, 12.0, 24.0))
    chunk, overlap = section.get("chunk_length_s", float, None), section.get("overlap", float, None)
    section.require_value("codebook_dim", width, None, why="differs from hidden_size")
    fields = {
        "sample_rate": rate,
        "channels": section.get("audio_channels", int, 1),
        "strides": strides,
        "bins": bins,
        "dimension": width,
        "causal": causal,
        "norm": section.require_value("norm_type", "weight_norm", "time_group_norm"),
        "pad_mode": section.require_value("pad_mode", "reflect", "constant", "replicate"),
        "shortcut": "conv" if section.get("use_conv_shortcut", bool, True) else "identity",
        "trim_right_ratio": section.get("trim_right_ratio", float, 1.0),
        "normalize": section.get("normalize", bool, False),
        **{field: section.get(key, int, default) for field, (key, default, _) in _SIZES.items()},
    }
    if chunk is not None and overlap is None:
        section.unsupported("overlap", "is missing, but chunk_length_s is set; add the overlap of chunks, such as 0.01")
    if bins < 2 or bins & (bins - 1):
        section.unsupported("codebook_size", f"must be a power of two, got {bins}")
    if not (strides and bandwidths and all(isinstance(each, int) and each > 0 for each in strides)):
        section.unsupported(
            "upsampling_ratios", f"and target_bandwidths must hold positive numbers, got {strides} and {bandwidths}"
        )
    else:
        whole_rate = -(-rate // math.prod(strides))
        fields["codebooks"] = int(1000 * bandwidths[-1] // (whole_rate * math.ceil(math.log2(max(bins, 2)))))
        if fields["codebooks"] < 1:
            section.unsupported("target_bandwidths", f"the last, {bandwidths[-1]} kbit/s, is not enough for one codebook")
    if not causal:
        section.require_value("trim_right_ratio", 1.0, why="is only defined where use_causal_conv is true")
    section.reject_unread()
    section.raise_errors()
    if chunk is not None:
        fields |= {"chunk_seconds": chunk, "chunk_overlap": overlap}
    return _spec({**fields, "bandwidths": bandwidths}, source)


def weights_from_transformers(state: Mapping[str, Tensor], spec: EncodecSpec, *, source: str) -> dict[str, Tensor]:
    """Return the weights of a transformers EncodecModel under our names, in float32; raise CheckpointError on any mismatch."""
    return _weights(state, spec, rename=_in_transformers, source=source)


def spec_from_audiocraft(config: Any, *, source: str) -> EncodecSpec:
    """Return the spec of a compression model from its `xp.cfg`; raise CheckpointError with every unsupported key.

    Only `compression_model`, `encodec`, `seanet` and `rvq` are read: AudioCraft builds the model from these.
    """
    mistakes: list[str] = []
    sections = {key: config[key] if key in config else {} for key in ("encodec", "seanet", "rvq")}
    kind = config["compression_model"] if "compression_model" in config else None
    if kind != "encodec":
        mistakes.append(f"{source}.compression_model: {kind!r} is not supported; only 'encodec' can be loaded")
    model, net, books = (ConfigReader(each, source=f"{source}.{key}", mistakes=mistakes) for key, each in sections.items())
    model.require_value("autoencoder", "seanet")
    model.require_value("quantizer", "rvq")
    model.ignore(["renorm"])  # deprecated and ignored in AudioCraft
    rate, channels, causal = model.get("sample_rate", int), model.get("channels", int), model.get("causal", bool)
    net.require_value("channels", channels, why="differs from encodec.channels")
    net.require_value("causal", causal, why="differs from encodec.causal")
    net.require_value("activation", "ELU")
    net.require_value("activation_params", {"alpha": 1.0}, {}, None)
    net.require_value("norm_params", {}, None)
    net.require_value("disable_norm_outer_blocks", 0)
    encoder, decoder = net.subsection("encoder", {}), net.subsection("decoder", {})
    for side in (encoder, decoder):
        for key in side.data.keys() & net.data.keys():
            side.require_value(key, net.data[key], why=f"differs from seanet.{key} ({net.data[key]!r})")
    decoder.require_value("final_activation", None)
    decoder.ignore(["final_activation_params"])
    books.ignore(_IN_TRAINING)
    fields = {
        "sample_rate": rate,
        "channels": channels,
        "strides": net.get("ratios", list),
        "codebooks": books.get("n_q", int),
        "bins": books.get("bins", int),
        "dimension": net.get("dimension", int),
        "causal": causal,
        "norm": net.require_value("norm", "none", "weight_norm", "time_group_norm"),
        "pad_mode": net.require_value("pad_mode", "reflect", "constant", "replicate"),
        "shortcut": "identity" if net.get("true_skip", bool) else "conv",
        "trim_right_ratio": decoder.get("trim_right_ratio", float, 1.0),
        "normalize": model.get("renormalize", bool, False),
        **{field: net.get(key, int) for field, (_, _, key) in _SIZES.items()},
    }
    if causal and fields["norm"] == "time_group_norm":
        net.unsupported("norm", "'time_group_norm' normalizes over the whole clip, which is not causal")
    if not causal:
        decoder.require_value("trim_right_ratio", 1.0, why="is only defined where causal is true")
    for section in (model, net, encoder, decoder, books):
        section.reject_unread()
    model.raise_errors()
    return _spec(fields, source)


def weights_from_audiocraft(state: Mapping[str, Tensor], spec: EncodecSpec, *, source: str) -> dict[str, Tensor]:
    """Return the weights of a compression model under our names, in float32; raise CheckpointError on any mismatch."""
    return _weights(state, spec, rename=_in_audiocraft, source=source)


def config_to_transformers(spec: Any) -> dict[str, Any]:
    """Return the transformers EncodecConfig of a codec; raise CheckpointError with everything it cannot express."""
    if not isinstance(spec, EncodecSpec):
        raise CheckpointError(f"codec '{spec.type}' is not an EnCodec, the only codec that can be exported to transformers")
    widths, layers = spec.seanet_config.widths, spec.seanet_config.residual_layers
    doubling = [widths[0] * 2**level for level in range(len(widths))]
    problems = {
        f"widths {list(widths)}; in transformers each is twice the one before": list(widths) != doubling,
        f"residual_layers {list(layers)}; in transformers they are as many at all rates": len(set(layers)) != 1,
        "no LSTM; in transformers it always has one": not spec.lstm_layers,
        f"norm '{spec.norm}'": spec.norm == "none",
        f"{spec.channels} channels; transformers has 1 or 2": spec.channels > 2,
        f"{spec.bins} entries a codebook; in transformers they are a power of two": spec.bins & (spec.bins - 1) != 0
        or spec.bins < 2,
    }
    if unsupported := [problem for problem, applies in problems.items() if applies]:
        raise CheckpointError(
            f"transformers' EnCodec cannot be this codec: {'; '.join(unsupported)}. Keep it in this library's format"
        )
    return {
        "architectures": ["EncodecModel"],
        "model_type": "encodec",
        "sampling_rate": spec.sample_rate,
        "audio_channels": spec.channels,
        "target_bandwidths": list(spec.bandwidths) or [_bandwidth(spec)],
        "upsampling_ratios": list(spec.strides),
        "codebook_size": spec.bins,
        "codebook_dim": spec.dimension,
        "hidden_size": spec.dimension,
        **{key: getattr(spec, field) for field, (key, _, _) in _SIZES.items()},
        "num_filters": widths[0],
        "num_residual_layers": layers[0],
        "norm_type": spec.norm,
        "pad_mode": spec.pad_mode,
        "use_causal_conv": spec.causal,
        "use_conv_shortcut": spec.shortcut == "conv",
        "trim_right_ratio": spec.trim_right_ratio,
        "normalize": spec.normalize,
        "chunk_length_s": spec.chunk_seconds,
        "overlap": spec.chunk_overlap if spec.uses_chunks else None,
    }


def weights_to_transformers(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return our codec's weights under transformers' names; usage counts are scaled to one per codebook entry."""
    theirs = {}
    for ours, x in state.items():
        name = _in_transformers(ours)
        theirs[name] = x.detach() * len(x) if name.endswith((".cluster_size", ".embed_avg")) else x.detach().clone()
        if name.endswith(".codebook.embed"):
            theirs[name.removesuffix("embed") + "inited"] = torch.ones(1, dtype=x.dtype)
    return theirs


def feature_extractor_config(spec: EncodecSpec) -> dict[str, Any]:
    """Return the `preprocessor_config.json` of an EnCodec in transformers."""
    return {
        "feature_extractor_type": "EncodecFeatureExtractor",
        "feature_size": spec.channels,
        "sampling_rate": spec.sample_rate,
        "chunk_length_s": spec.chunk_seconds,
        "overlap": spec.chunk_overlap if spec.uses_chunks else None,
        "padding_side": "right",
        "padding_value": 0.0,
        "return_attention_mask": True,
    }


def _weights(state: Mapping[str, Tensor], spec: EncodecSpec, *, rename: Callable[..., str], source: str) -> dict[str, Tensor]:
    """Return weights under our names; `rename` maps our name, and whether it is in a transposed convolution, to theirs."""
    with torch.device("meta"):
        codec = spec.build()
    transposed = tuple(f"{path}." for path, part in codec.named_modules() if isinstance(part, ConvTranspose1d))
    expected = codec.state_dict()
    names = KeyMap({ours: (rename(ours, ours.startswith(transposed)),) for ours in expected})
    state = {modern_weight_norm_name(name): x for name, x in state.items()}
    check_finite(state, source=source)
    return names.import_codebooks(state, expected, source=source)


def _in_transformers(ours: str, transposed: bool = False) -> str:
    if not ours.startswith("quantizer."):
        return ours.replace(".block.layers.", ".block.")
    level, _, part = ours.replace(".levels.", ".layers.").rpartition(".")
    return f"{level}.codebook.{CODEBOOK_NAMES[part]}"


def _in_audiocraft(ours: str, transposed: bool) -> str:
    theirs = _in_transformers(ours)
    if ours.startswith("quantizer."):
        return theirs.replace(".layers.", ".vq.layers.").replace(".codebook.", "._codebook.")
    theirs, conv = theirs.replace(".layers.", ".model.", 1), "convtr" if transposed else "conv"
    if ".norm." in theirs:
        return theirs.replace(".norm.", f".{conv}.norm.", 1)
    return theirs.replace(".conv.", f".{conv}.{conv}.", 1)


def _bandwidth(spec: EncodecSpec) -> float:
    """Return the kbit/s from which transformers computes the same number of codebooks."""
    each = -(-spec.sample_rate // spec.hop_length) * round(math.log2(spec.bins))
    exact = spec.codebooks * each / 1000
    return exact if int(1000 * exact // each) == spec.codebooks else (spec.codebooks + 0.5) * each / 1000


def _spec(fields: Mapping[str, Any], source: str) -> EncodecSpec:
    try:
        return EncodecSpec.parse(dict(fields), source=source)
    except SpecError as error:
        raise CheckpointError(f"the config does not describe a valid codec: {error}") from None


@dataclass(frozen=True)
class CompressionModel:
    """Codec of a model: its spec, and the function that loads its weights under our names."""

    spec: EncodecSpec
    load_weights: Callable[[], dict[str, Tensor]]

    @classmethod
    def from_transformers(cls, folder: Path, config: Mapping[str, Any]) -> "CompressionModel":
        """Return the EnCodec in a folder of transformers."""
        spec = spec_from_transformers(config, source=str(folder / "config.json"))
        return cls(spec, lambda: weights_from_transformers(hub.read_folder(folder), spec, source=str(folder)))


def load_compression_model(folder: Path, codec_name: object) -> CompressionModel:
    """Return the codec of the model in `folder`; `codec_name` is its name in the language model's config."""
    path = folder / CODEC
    if not path.exists() and not str(codec_name).startswith("//pretrained/"):
        raise CheckpointError(
            f"{folder} holds no {CODEC}, and its config names the codec '{codec_name}', a file of the training run; "
            f"copy {CODEC} from where the model came from"
        )
    package = load_package(path) if path.exists() else None
    if package is not None and package.pretrained is None:
        spec = spec_from_audiocraft(package.config, source=package.config.source)
        return CompressionModel(spec, partial(weights_from_audiocraft, package.weights, spec, source=str(path)))
    name = str(package.pretrained if package else codec_name).removeprefix("//pretrained/")
    if name.startswith("dac_"):
        raise CheckpointError(
            f"{folder}: its codec is '{name}' (DAC), which this release cannot load yet; use an EnCodec model"
        )
    codec_folder = _locate_codec(folder, name)
    config = hub.read_json_object(codec_folder / "config.json")
    if config.get("model_type") != "encodec":
        raise CheckpointError(
            f"{codec_folder}: the codec '{name}' is of type {config.get('model_type')!r}; only 'encodec' can be loaded"
        )
    return CompressionModel.from_transformers(codec_folder, config)


def keep_codebooks(weights: Mapping[str, Tensor], num_codebooks: int) -> dict[str, Tensor]:
    """Return a codec's weights with only the first `num_codebooks` codebooks."""
    kept = tuple(f"quantizer.levels.{k}." for k in range(num_codebooks))
    return {name: x for name, x in weights.items() if not name.startswith("quantizer.levels.") or name.startswith(kept)}


def _locate_codec(folder: Path, name: str) -> Path:
    """Return the folder of a released codec: next to the model, at the path `name`, or downloaded from the hub."""
    for candidate in (folder / name, folder / name.rpartition("/")[2], Path(name)):
        if (candidate / "config.json").exists():
            return candidate
    return hub.download_snapshot(name, of=f"the codec of {folder}", weight_files=PACKAGE_FILES)


def inner_encodec(codec: CodecSpec) -> tuple[EncodecSpec, str]:
    """Return the EnCodec of a mono or stereo system, and the prefix of its weights in the system."""
    inner = getattr(codec, "codec", codec)
    assert isinstance(inner, EncodecSpec), "every imported codec is an EnCodec"
    return inner, "codec." if inner is codec else "codec.codec."


def inspect_transformers_encodec(folder: Path, config: Mapping[str, Any], *, name: str | None = None) -> ModelFolder:
    """Return the EnCodec in a folder of transformers; raise CheckpointError with every unsupported setting."""
    return _model_folder(folder, "transformers EnCodec", CompressionModel.from_transformers(folder, config), name)


def inspect_audiocraft_encodec(folder: Path, *, name: str | None = None) -> ModelFolder:
    """Return the compression model that AudioCraft exported into a folder."""
    return _model_folder(folder, "AudioCraft EnCodec", load_compression_model(folder, None), name)


def _model_folder(folder: Path, layout: str, codec: CompressionModel, name: str | None) -> ModelFolder:
    spec = SystemSpec.parse({"codec": codec.spec.to_dict()}, source=str(folder))
    card = model_card_for(folder, name=name, summary="Audio to codes and back: EnCodec, imported.")

    def load() -> SavedSystem:
        return SavedSystem(spec, card, to_float32_copy({f"codec.{name}": x for name, x in codec.load_weights().items()}))

    return ModelFolder(folder, layout, spec, card, load)
