"""The T5 inside another library's model: its weights must be exactly those of its config, its tokenizer beside it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from cadenza.core.errors import CheckpointError
from cadenza.importers.layout import compare

SETTINGS = frozenset(  # of a T5, which transformers reads itself
    "classifier_dropout d_ff d_kv d_model dense_act_fn dropout_rate feed_forward_proj initializer_factor is_gated_act "
    "layer_norm_epsilon n_positions num_decoder_layers num_heads num_layers output_past relative_attention_max_distance "
    "relative_attention_num_buckets scale_decoder_outputs use_cache vocab_size".split()
)
TOKENIZER = ("tokenizer.json", "spiece.model")  # one of them is needed


def check_t5_weights(state: Mapping[str, Tensor], config: Mapping[str, Any], *, source: str) -> None:
    """Raises CheckpointError unless these are the weights of the encoder; the embedding may be there under both its names."""
    held = dict(state)
    if "shared.weight" in held:
        held.pop("encoder.embed_tokens.weight", None)
    elif "encoder.embed_tokens.weight" in held:
        held["shared.weight"] = held.pop("encoder.embed_tokens.weight")
    compare(held, expected_t5_shapes(config), source=source)


def expected_t5_shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The weights of a T5 encoder (arXiv:1910.10683) by transformers' names; a gate makes the feed-forward two matrices."""
    width, hidden = config.get("d_model", 512), config.get("d_ff", 2048)
    heads = config.get("num_heads", 8)
    inner = heads * config.get("d_kv", 64)
    gated = str(config.get("feed_forward_proj", "relu")).startswith("gated")
    found: dict[str, tuple[int, ...]] = {"shared.weight": (config.get("vocab_size", 32128), width)}
    for i in range(config.get("num_layers", 6)):
        attention, forward = f"encoder.block.{i}.layer.0.", f"encoder.block.{i}.layer.1."
        found |= {f"{attention}SelfAttention.{x}.weight": (inner, width) for x in "qkv"}
        found |= {f"{attention}SelfAttention.o.weight": (width, inner), f"{attention}layer_norm.weight": (width,)}
        found |= {f"{forward}DenseReluDense.{x}.weight": (hidden, width) for x in (("wi_0", "wi_1") if gated else ("wi",))}
        found |= {f"{forward}DenseReluDense.wo.weight": (width, hidden), f"{forward}layer_norm.weight": (width,)}
        if i == 0:
            biases = (config.get("relative_attention_num_buckets", 32), heads)
            found[f"{attention}SelfAttention.relative_attention_bias.weight"] = biases
    return found | {"encoder.final_layer_norm.weight": (width,)}


def check_tokenizer(folder: Path) -> None:
    """Raises CheckpointError where a folder with a T5 has no tokenizer."""
    if not any((folder / name).exists() for name in TOKENIZER):
        raise CheckpointError(
            f"{folder} has no tokenizer ({' or '.join(TOKENIZER)}), without which no text can be read; copy it from where the "
            "model came from, or from its text encoder's repository (google-t5/t5-base for MusicGen)"
        )
