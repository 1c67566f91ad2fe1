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
from cadenza.core.checkpoint import check_finite, check_state_dict, to_float32_copy
from cadenza.core.errors import CheckpointError, SpecError
from cadenza.importers.audiocraft_package import CODEC, PACKAGE_FILES, AudiocraftPackage, load_package
from cadenza.importers.base import ConfigReader
from cadenza.importers.license import model_card_for
from cadenza.nn.conv import ConvTranspose1d
from cadenza.system.spec import SystemSpec
from cadenza.system.store import ModelCard, ModelFolder, SavedSystem

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
_PADDING = ("constant", "reflect", "replicate")
_BOOK = ("inited", "cluster_size", "embed", "embed_avg")


def spec_from_transformers(config: Mapping[str, Any], *, source: str) -> EncodecSpec:
    """Return the spec of a transformers EncodecConfig, with its defaults; raise CheckpointError with every unsupported key."""
    section = ConfigReader(config, source=source)
    section.ignore(CONFIG_KEYS)
    section.require_value("model_type", "encodec", why="is another codec")
    rate, bins = section.get("sampling_rate", int, 24000), section.get("codebook_size", int, 1024)
    strides = section.get("upsampling_ratios", (list, tuple), (8, 5, 4, 2))
    width, causal = section.get("hidden_size", int, 128), section.get("use_causal_conv", bool, True)
    bandwidths = section.get("target_bandwidths", (list, tuple), (1.5, 3.0, 6.0, 12.0, 24.0))
    chunk = _optional(section, "chunk_length_s")
    overlap = _optional(section, "overlap")
    section.require_value("codebook_dim", width, None, why="differs from hidden_size")
    fields = {
        "sample_rate": rate,
        "channels": section.get("audio_channels", int, 1),
        "strides": strides,
        "bins": bins,
        "filters": section.get("num_filters", int, 32),
        "dimension": width,
        "causal": causal,
        "norm": _one_of(section, "norm_type", ("time_group_norm",), "weight_norm"),
        "pad_mode": _one_of(section, "pad_mode", _PADDING, "reflect"),
        "lstm_layers": section.get("num_lstm_layers", int, 2),
        "residual_layers": section.get("num_residual_layers", int, 1),
        "residual_kernel": section.get("residual_kernel_size", int, 3),
        "kernel": section.get("kernel_size", int, 7),
        "last_kernel": section.get("last_kernel_size", int, 7),
        "dilation_base": section.get("dilation_growth_rate", int, 2),
        "compress": section.get("compress", int, 2),
        "shortcut": "conv" if section.get("use_conv_shortcut", bool, True) else "identity",
        "trim_right_ratio": section.get("trim_right_ratio", float, 1.0),
        "normalize": section.get("normalize", bool, False),
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
    _refuse_impossible(section, fields, causal="use_causal_conv")
    section.reject_unread()
    section.raise_errors()
    if chunk is not None:
        fields |= {"chunk_seconds": chunk, "chunk_overlap": overlap}
    return _spec({**fields, "bandwidths": bandwidths}, source)


def weights_from_transformers(state: Mapping[str, Tensor], spec: EncodecSpec, *, source: str) -> dict[str, Tensor]:
    """Return the weights of a transformers EncodecModel under our names, in float32; raise CheckpointError on any mismatch."""
    return _weights(state, spec, name=_in_transformers, book="quantizer.layers.{}.codebook.", source=source)


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
        _same_as(net, side)
    decoder.require_value("final_activation", None)
    decoder.ignore(["final_activation_params"])
    books.ignore(_IN_TRAINING)
    fields = {
        "sample_rate": rate,
        "channels": channels,
        "strides": net.get("ratios", list),
        "codebooks": books.get("n_q", int),
        "bins": books.get("bins", int),
        "filters": net.get("n_filters", int),
        "dimension": net.get("dimension", int),
        "causal": causal,
        "norm": _one_of(net, "norm", ("weight_norm", "time_group_norm"), "none"),
        "pad_mode": _one_of(net, "pad_mode", _PADDING, "reflect"),
        "lstm_layers": net.get("lstm", int),
        "residual_layers": net.get("n_residual_layers", int),
        "residual_kernel": net.get("residual_kernel_size", int),
        "kernel": net.get("kernel_size", int),
        "last_kernel": net.get("last_kernel_size", int),
        "dilation_base": net.get("dilation_base", int),
        "compress": net.get("compress", int),
        "shortcut": "identity" if net.get("true_skip", bool) else "conv",
        "trim_right_ratio": decoder.get("trim_right_ratio", float, 1.0),
        "normalize": model.get("renormalize", bool, False),
    }
    if causal and fields["norm"] == "time_group_norm":
        net.unsupported("norm", "'time_group_norm' normalizes over the whole clip, which is not causal")
    _refuse_impossible(net, fields, causal="causal")
    for section in (model, net, encoder, decoder, books):
        section.reject_unread()
    model.raise_errors()
    return _spec(fields, source)


def weights_from_audiocraft(state: Mapping[str, Tensor], spec: EncodecSpec, *, source: str) -> dict[str, Tensor]:
    """Return the weights of a compression model under our names, in float32; raise CheckpointError on any mismatch."""
    return _weights(state, spec, name=_in_audiocraft, book="quantizer.vq.layers.{}._codebook.", source=source)


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
        "num_filters": widths[0],
        "num_residual_layers": layers[0],
        "residual_kernel_size": spec.residual_kernel,
        "kernel_size": spec.kernel,
        "last_kernel_size": spec.last_kernel,
        "dilation_growth_rate": spec.dilation_base,
        "compress": spec.compress,
        "num_lstm_layers": spec.lstm_layers,
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
    for ours, value in state.items():
        if not ours.startswith("quantizer."):
            theirs[_in_transformers(ours, False)] = value.detach().clone()
    for k in range(sum(name.startswith("quantizer.levels.") and name.endswith(".embed") for name in state)):
        level, book = f"quantizer.levels.{k}.", f"quantizer.layers.{k}.codebook."
        embed = state[f"{level}embed"]
        counts = {"cluster_size": state[f"{level}usage"], "embed_avg": state[f"{level}total"]}
        theirs |= {f"{book}{name}": value.detach() * len(embed) for name, value in counts.items()}
        theirs |= {f"{book}embed": embed.detach().clone(), f"{book}inited": torch.ones(1, dtype=embed.dtype)}
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


Naming = Callable[[str, bool], str]  # of our name, and whether it is in a transposed convolution


def _weights(state: Mapping[str, Tensor], spec: EncodecSpec, *, name: Naming, book: str, source: str) -> dict[str, Tensor]:
    with torch.device("meta"):
        codec = spec.build()
    transposed = tuple(f"{path}." for path, part in codec.named_modules() if isinstance(part, ConvTranspose1d))
    expected = codec.state_dict()
    names = {ours: name(ours, ours.startswith(transposed)) for ours in expected if not ours.startswith("quantizer.")}
    shapes = {theirs: tuple(expected[ours].shape) for ours, theirs in names.items()}
    each = dict(zip(_BOOK, [(1,), (spec.bins,), *[(spec.bins, spec.dimension)] * 2], strict=True))
    shapes |= {f"{book.format(k)}{part}": shape for k in range(spec.codebooks) for part, shape in each.items()}
    state = {_newer(key): value for key, value in state.items()}
    check_state_dict(state, shapes, source=source)
    check_finite(state, source=source)
    converted = {ours: state[theirs].float() for ours, theirs in names.items()}
    for k in range(spec.codebooks):
        inited, usage, embed, total = (state[f"{book.format(k)}{part}"].float() for part in _BOOK)
        if not bool(inited):
            raise CheckpointError(
                f"{source}: codebook {k} was never trained (inited is 0); take a checkpoint of a trained codec"
            )
        seen = usage.sum()
        if seen > 0:
            usage, total = usage / seen, total / seen
        else:  # the program that wrote it stores no averages
            usage, total = torch.full_like(usage, 1 / spec.bins), embed / spec.bins
        level = f"quantizer.levels.{k}."
        converted |= {f"{level}embed": embed, f"{level}usage": usage, f"{level}total": total}
    return converted


def _newer(key: str) -> str:
    """Return a key with torch's present names of weight normalization."""
    for old, new in (("weight_g", "parametrizations.weight.original0"), ("weight_v", "parametrizations.weight.original1")):
        if key.endswith(f".{old}"):
            return key.removesuffix(old) + new
    return key


def _in_transformers(ours: str, transposed: bool) -> str:
    theirs = ours
    return theirs.replace(".block.layers.", ".block.")


def _in_audiocraft(ours: str, transposed: bool) -> str:
    theirs = _in_transformers(ours, transposed).replace(".layers.", ".model.", 1)
    conv = "convtr" if transposed else "conv"
    for part, there in ((".conv.", f".{conv}.{conv}."), (".norm.", f".{conv}.norm.")):
        if part in theirs:
            return theirs.replace(part, there, 1)
    return theirs


def _bandwidth(spec: EncodecSpec) -> float:
    """Return the kbit/s from which transformers computes the same number of codebooks."""
    each = -(-spec.sample_rate // spec.hop_length) * round(math.log2(spec.bins))
    exact = spec.codebooks * each / 1000
    return exact if int(1000 * exact // each) == spec.codebooks else (spec.codebooks + 0.5) * each / 1000


def _optional(section: ConfigReader, key: str) -> float | None:
    """Return a number that may be null."""
    section.ignore([key])
    return None if section.data.get(key) is None else section.get(key, float)


def _one_of(section: ConfigReader, key: str, allowed: tuple[str, ...], default: str) -> str:
    section.require_value(key, default, *(one for one in allowed if one != default))
    return section.data.get(key, default)


def _same_as(net: ConfigReader, side: ConfigReader) -> None:
    """Note a mistake if AudioCraft's encoder or decoder differs from the shared settings."""
    for key in side.data.keys() & net.data.keys():
        side.ignore([key])
        if side.data[key] != net.data[key]:
            side.unsupported(
                key, f"{side.data[key]!r} differs from seanet.{key} ({net.data[key]!r}); both sides must be the same"
            )


def _refuse_impossible(section: ConfigReader, fields: Mapping[str, Any], *, causal: str) -> None:
    """Note a mistake, under foreign names, for values that exclude each other."""
    if not fields["causal"] and fields["trim_right_ratio"] != 1.0:
        section.unsupported("trim_right_ratio", f"{fields['trim_right_ratio']} is only defined where {causal} is true")


def _spec(fields: Mapping[str, Any], source: str) -> EncodecSpec:
    try:
        return EncodecSpec.parse(dict(fields), source=source)
    except SpecError as error:
        raise CheckpointError(f"the config does not describe a valid codec: {error}") from None


@dataclass(frozen=True)
class CompressionModel:
    """Codec of a model: its spec, and the package or folder of its weights."""

    spec: EncodecSpec
    package: AudiocraftPackage | None  # of AudioCraft
    folder: Path | None  # of transformers

    def load_weights(self) -> dict[str, Tensor]:
        """Load the weights under our names."""
        if self.package is not None:
            return weights_from_audiocraft(self.package.weights, self.spec, source=str(self.package.path))
        assert self.folder is not None
        return weights_from_transformers(hub.read_folder(self.folder), self.spec, source=str(self.folder))


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
        return CompressionModel(spec_from_audiocraft(package.config, source=package.config.source), package, None)
    name = (str(codec_name) if package is None or package.pretrained is None else package.pretrained).removeprefix(
        "//pretrained/"
    )
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
    return CompressionModel(spec_from_transformers(config, source=str(codec_folder / "config.json")), None, codec_folder)


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
    codec = CompressionModel(spec_from_transformers(config, source=str(folder / "config.json")), None, folder)
    return _foreign(folder, "transformers EnCodec", codec, name)


def inspect_audiocraft_encodec(folder: Path, *, name: str | None = None) -> ModelFolder:
    """Return the compression model that AudioCraft exported into a folder."""
    return _foreign(folder, "AudioCraft EnCodec", load_compression_model(folder, None), name)


def _foreign(folder: Path, layout: str, codec: CompressionModel, name: str | None) -> ModelFolder:
    spec = SystemSpec.parse({"codec": codec.spec.to_dict()}, source=str(folder))
    card = model_card_for(folder, name=name, summary="Audio to codes and back: EnCodec, imported.")
    return ModelFolder(folder, layout, spec, card, partial(_read, codec, spec, card))


def _read(codec: CompressionModel, spec: SystemSpec, card: ModelCard) -> SavedSystem:
    return SavedSystem(spec, card, to_float32_copy({f"codec.{name}": x for name, x in codec.load_weights().items()}))
