"""MusicGen and AudioGen as AudioCraft exports them: `state_dict.bin` and `compression_state_dict.bin`."""

import re
import warnings
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from cadenza.core.checkpoint import check_finite, check_state_dict, strip_prefix, to_float32_copy
from cadenza.core.errors import CheckpointError
from cadenza.importers.audiocraft_conditioners import convert_conditioners, extract_conditioner_weights
from cadenza.importers.audiocraft_package import LM, AudiocraftPackage, load_package
from cadenza.importers.base import ConfigReader, expected_state_dict, musicgen_key_map
from cadenza.importers.encodec import CompressionModel, inner_encodec, keep_codebooks, load_compression_model
from cadenza.importers.license import model_card_for
from cadenza.system.spec import SystemSpec
from cadenza.system.store import ModelCard, ModelFolder, SavedSystem

# Keys of the whole config that record training and running; AudioCraft does not build the model from them.
_RECORD = frozenset(
    "autocast autocast_dtype benchmark_no_load cache checkpoint continue_from datasource deadlock device dora dtype "
    "efficient_attention_backend evaluate execute_inplace execute_only fsdp generate label logging metrics mp_start_method "
    "num_threads optim profiler schedule seed show slurm solver tensorboard tokens wandb attribute_dropout special "
    "compression_model eval".split()
)
_USED = frozenset(
    "lm_model transformer_lm codebooks_pattern fuser conditioners classifier_free_guidance dataset sample_rate channels "
    "interleave_stereo_codebooks compression_model_checkpoint compression_model_n_q".split()
)
_TRAINING = ("emb_lr", "checkpointing", "weight_init", "depthwise_init", "zero_bias_init")
_COMPUTING = ("custom", "memory_efficient", "attention_as_float32", "dtype", "device", "cross_attention", "two_step_cfg")
_STRIDES = (18.0, 2.0)  # seconds; MusicGen and AudioGen
_OTHER_MODELS = {"transformer_lm_magnet": "MAGNeT", "flow_matching": "JASCO"}
_PATTERNS = ("parallel", "delay", "unroll", "musiclm", "coarse_first", "valle")  # the last is a former name of coarse_first
_PATTERN_FIELDS = {"delays": list, "flattening": list, "flatten_first": int, "empty_initial": int, "group_by": int}
_NAMES = {  # parts of AudioCraft's weight names -> transformers'
    "emb.": "model.decoder.embed_tokens.",
    "linears.": "lm_heads.",
    "out_norm.": "model.decoder.layer_norm.",
    "transformer.layers.": "model.decoder.layers.",
    ".mha.": ".",  # of torch.nn.MultiheadAttention
    ".cross_attention.": ".encoder_attn.",
    ".linear1.": ".fc1.",
    ".linear2.": ".fc2.",
    ".norm1.": ".self_attn_layer_norm.",
    ".norm2.": ".final_layer_norm.",
    ".norm_cross.": ".encoder_attn_layer_norm.",
}


def inspect_audiocraft_lm(folder: Path, *, name: str | None = None) -> ModelFolder:
    """Return the model in a folder from its configs; raise CheckpointError with every unsupported setting."""
    package = load_package(folder / LM)
    codec = load_compression_model(folder, package.config.get("compression_model_checkpoint"))
    spec = _spec(package, codec)
    card = model_card_for(folder, name=name, summary="Text to audio: a language model over codes, imported from AudioCraft.")
    return ModelFolder(folder, "AudioCraft", spec, card, partial(_read, package, codec, spec, card))


def _spec(package: AudiocraftPackage, codec: CompressionModel) -> SystemSpec:
    config = package.config
    if unknown := sorted(config.root.keys() - _USED - _RECORD):
        warnings.warn(f"{config.source}: ignored settings, which do not change the model: {', '.join(unknown)}", stacklevel=2)
    mistakes: list[str] = []
    root = ConfigReader({key: config[key] for key in _USED if key in config}, source=config.source, mistakes=mistakes)
    kind = root.get("lm_model", str)
    if kind != "transformer_lm":
        root.unsupported(
            "lm_model", f"'{kind}' is {_OTHER_MODELS.get(kind, 'not a language model')}, which this release cannot load"
        )
        root.raise_errors()
    classes = root.subsection("classifier_free_guidance")
    classes.ignore(["training_dropout"])
    guidance = classes.get("inference_coef", float, 3.0)
    dataset = root.subsection("dataset")
    seconds = dataset.get("segment_duration", (float, int))
    lm = root.subsection("transformer_lm")
    generator = _generator(lm)
    generator["pattern"] = _pattern(root.subsection("codebooks_pattern"), lm, generator["rows"])
    text, fusion, generator["cross_attention_pos_emb_scale"] = convert_conditioners(
        package, root, generator["width"], seconds=seconds
    )
    lm.reject_unread()
    sides = _count_sides(root, codec, generator)
    num_codebooks = generator.pop("rows") // sides
    generator.pop("bins")
    root.raise_errors()
    mono = codec.spec.model_copy(update={"codebooks": num_codebooks}) if num_codebooks != codec.spec.codebooks else codec.spec
    frames = round(seconds * mono.frame_format.frame_rate)
    return SystemSpec.parse(
        {
            "codec": mono.to_dict() if sides == 1 else {"type": "stereo", "codec": mono.to_dict()},
            "conditioners": text,
            "fusion": fusion,
            "generator": {**generator, "max_frames": frames},
            "defaults": {
                "seconds": frames / mono.frame_format.frame_rate,
                "guidance": guidance,
                "sampling": {"top_k": 250},
                "stride": next((stride for stride in _STRIDES if stride < seconds), None),
            },
        },
        source=str(package.path),
    )


def _generator(lm: ConfigReader) -> dict[str, Any]:
    """Return the spec of the language model, with `rows` (codebooks) and `bins` (their entries)."""
    lm.ignore((*_TRAINING, *_COMPUTING))
    for key, only in {"norm_first": True, "causal": True, "activation": "gelu"}.items():
        if key in lm:
            lm.require_value(key, only)
        else:
            lm.unsupported(key, f"is missing, and AudioCraft's default is not {only!r}, the only supported value")
    for key in ("layer_scale", "past_context"):
        lm.require_value(key, None)
    for key in ("attention_dropout", "layer_drop", "layer_dropout"):
        lm.require_value(key, None, 0.0, 0)
    for key in ("xpos", "qk_layer_norm", "qk_layer_norm_cross", "bias_proj", "cross_attention_pos_emb"):
        lm.require_value(key, False, None)
    lm.require_value("positional_embedding", "sin")
    lm.require_value("positional_scale", 1.0, 1)
    lm.require_value("max_period", 10000, 10000.0)
    lm.require_value("kv_repeat", 1)
    lm.require_value("norm", "layer_norm", "layer_norm_fp32")
    for key in [key for key in lm.unread_keys() if key.startswith(("spectral_norm_", "residual_balancer_"))]:
        lm.require_value(key, None, False, 0, 0.0)  # old exports
    return {
        "type": "codec_lm",
        "width": lm.get("dim", int),
        "depth": lm.get("num_layers", int),
        "heads": lm.get("num_heads", int),
        "mlp_ratio": float(lm.get("hidden_scale", (float, int), 4)),
        "bias": any(_biased(lm)),
        "dropout": lm.get("dropout", (float, int), 0.0),
        "positions": "sinusoidal",
        "end_of_sequence": False,
        "attend_padding": True,
        "rows": lm.get("n_q", int),
        "bins": lm.get("card", int),
    }


def _biased(lm: ConfigReader) -> tuple[bool, bool]:
    """Return whether the feed-forward has biases, and whether attention has."""
    return lm.get("bias_ff", bool, True), lm.get("bias_attn", bool, True)


def _pattern(section: ConfigReader, lm: ConfigReader, rows: int) -> dict[str, Any]:
    """Return the codebook pattern; the sections of other patterns are ignored."""
    legacy, chosen = lm.get("q_modeling", str, None), section.get("modeling", str, None)
    section.ignore([*_PATTERNS, "music_lm"])
    section.reject_unread()
    if chosen is None:
        if legacy is None:
            section.unsupported("modeling", f"is missing; choose from {', '.join(_PATTERNS)}")
        kind = legacy if legacy in _PATTERNS else "delay"
        return {"type": "coarse_first" if kind == "valle" else kind, "delays": list(range(rows))}
    if chosen not in _PATTERNS:
        section.unsupported("modeling", f"'{chosen}' is not a pattern; choose from {', '.join(_PATTERNS)}")
        return {"type": "delay"}
    block = section.subsection(chosen, {})
    values = {key: block.get(key, kind, None) for key, kind in _PATTERN_FIELDS.items()}
    block.reject_unread()
    kind = "coarse_first" if chosen == "valle" else chosen
    return {"type": kind, **{key: value for key, value in values.items() if value is not None}}


def _count_sides(root: ConfigReader, codec: CompressionModel, generator: Mapping[str, Any]) -> int:
    """Return 2 if a mono codec is used for left and right, else 1; check that the codec fits the language model."""
    stereo = root.subsection("interleave_stereo_codebooks", {})
    sides = 2 if stereo.get("use", bool, False) else 1
    if sides == 2:
        stereo.require_value("per_timestep", False, why="puts left and right into separate frames")
    stereo.ignore(["per_timestep"])
    stereo.reject_unread()
    root.get("compression_model_checkpoint", str, None)
    num_codebooks = root.get("compression_model_n_q", int, None) or codec.spec.codebooks
    root.require_value("sample_rate", codec.spec.sample_rate, why="is not the sample rate of the codec")
    root.require_value("channels", codec.spec.channels * sides, why="are not the channels of the codec")
    if num_codebooks > codec.spec.codebooks:
        root.unsupported("compression_model_n_q", f"{num_codebooks} are more codebooks than the codec's {codec.spec.codebooks}")
    elif num_codebooks * sides != generator["rows"]:
        root.unsupported("transformer_lm.n_q", f"is {generator['rows']}, but the codec gives {num_codebooks * sides} codebooks")
    if codec.spec.bins != generator["bins"]:
        root.unsupported(
            "transformer_lm.card", f"is {generator['bins']}, but the codec's codebooks have {codec.spec.bins} entries"
        )
    if codec.spec.normalize or codec.spec.uses_chunks:
        root.unsupported(
            "compression_model_checkpoint", "is a codec with loudness factors or chunks, which a language model cannot write"
        )
    return sides


def _read(package: AudiocraftPackage, codec: CompressionModel, spec: SystemSpec, card: ModelCard) -> SavedSystem:
    source = f"{package.path}: best_state"
    check_finite(package.weights, source=source)
    generator: Any = spec.generator
    expected, state = expected_state_dict(spec), dict(package.weights)
    ours = extract_conditioner_weights(state, spec, expected, source=source)
    forward, attention = _biased(ConfigReader(package.config["transformer_lm"], source=source))
    lm = rename_to_transformers(state, forward=forward, attention=attention, source=source)
    layout = musicgen_key_map(
        generator.depth, spec.codec.frame_format.channels, cross=bool(spec.fusion.cross), bias=generator.bias
    )
    ours |= {
        f"generator.{name}": x
        for name, x in layout.import_weights(lm, strip_prefix(expected, "generator."), source=source).items()
    }
    mono, stem = inner_encodec(spec.codec)
    ours |= {f"{stem}{name}": x for name, x in to_float32_copy(keep_codebooks(codec.load_weights(), mono.codebooks)).items()}
    check_state_dict(ours, expected, str(package.path.parent))
    return SavedSystem(spec, card, ours)


def rename_to_transformers(state: Mapping[str, Tensor], *, forward: bool, attention: bool, source: str) -> dict[str, Tensor]:
    """Return AudioCraft's weights under transformers' names, with zeros for the bias that only some layers have.

    Raise CheckpointError for double names, and for biases that are not those of the config.
    """
    renamed: dict[str, Tensor] = {}
    for old, x in state.items():
        name = old
        for theirs, target in _NAMES.items():
            name = name.replace(theirs, target)
        stem, fused, end = name.rpartition(".in_proj_")
        if fused and x.shape[0] % 3:
            raise CheckpointError(f"{source}: {old} is {list(x.shape)}, not queries, keys and values; export it again")
        names = [f"{stem}.{kind}_proj.{end}" for kind in "qkv"] if fused else [name]
        if renamed.keys() & set(names):
            raise CheckpointError(f"{source}: {old} exists under two names; export the model again")
        renamed |= dict(zip(names, x.chunk(len(names)), strict=True))
    biases = [name.removesuffix("weight") + "bias" for name in renamed if re.search(r"(_proj|fc\d)\.weight$", name)]
    own = [name for name in biases if (forward if ".fc" in name else attention)]
    if wrong := sorted(set(own) ^ (renamed.keys() & set(biases))):
        raise CheckpointError(
            f"{source}: {wrong[0]} {'is missing' if wrong[0] in own else 'is unknown'}: the weights are not those that bias_ff "
            f"({forward}) and bias_attn ({attention}) describe; take weights and config from one model"
        )
    if own:
        for name in biases:
            weight = renamed[name.removesuffix("bias") + "weight"]
            renamed.setdefault(name, weight.new_zeros(len(weight)))
    return renamed
