"""Text through the encoder of a pretrained T5 (arXiv:1910.10683), Flan-T5, T5 v1.1, mT5, UMT5 or T5Gemma."""

from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal, Self

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn

from cadenza.conditioners.base import ConditionerSpec, PreparedInputs, pad_ids, present_text, warn_truncated
from cadenza.conditioners.base_encoders import PretrainedConditioner, PretrainedConditionerSpec, load_tokenizer
from cadenza.core.checkpoint import LazyTensor
from cadenza.core.errors import CheckpointError
from cadenza.core.types import ConditionKind
from cadenza.nn.frozen import FrozenEncoder, load_weights_streaming, quantize_on_meta, save_model
from cadenza.nn.meta_init import init_empty_weights
from cadenza.nn.t5 import T5Config, T5Encoder
from cadenza.nn.tokenizers import lemmatize
from cadenza.nn.weight_quantization import QuantizedLinear

_GEMMA = "t5gemma"  # arXiv:2504.06225
_ENCODER_ONLY = {"is_encoder_decoder": False, "attention_dropout": 0.0}  # config of a T5Gemma without its decoder
_KINDS = ("t5", "mt5", "umt5", _GEMMA)
_TABLE = "embed_tokens.weight"  # token embeddings
_TOKENIZER = ("tokenizer.json", "spiece.model")  # one of them is required
_TOKENIZER_FILES = (*_TOKENIZER, "tokenizer_config.json", "special_tokens_map.json")
_END = "</s>"  # token at the end of a text
_IN_SYSTEM = "weights_in_system"  # config key: the weights of a trained T5 are in the system's checkpoint
_NARROW = "quantized"  # config key: weights are stored in 8 bits


class T5Spec(PretrainedConditionerSpec):
    """Last hidden states of the T5 `model` for a text, projected to `output_dim`.

    Texts longer than `max_length` tokens are truncated with a warning. The encoder's own dropout is not applied. An empty
    text is absent, or with `empty_text: encode` encoded as its end token alone.
    """

    type: Literal["t5"] = "t5"
    output_kind: ClassVar[ConditionKind] = "tokens"
    subconfig: str | None = None  # key of the T5 in the config and the weights of a larger model
    dtype: Literal["fp32", "bf16"] = "fp32"  # of the encoder's computations; float16 overflows
    max_length: int | None = Field(default=None, ge=1)
    normalize_text: bool = False  # lemmas, without stop words and punctuation, numbers in words
    word_dropout: float = Field(default=0.0, ge=0, le=1)  # probability of dropping a word in a training step

    @model_validator(mode="after")
    def _check_max_length(self) -> Self:
        if self.pad_to == "max_length" and self.max_length is None:
            raise ValueError("pad_to: max_length needs max_length, in tokens")
        return self

    @classmethod
    def example(cls) -> tuple["T5Spec", list[Any]]:
        values = ["slow piano in A minor, 80 bpm", "drums", "F# major — 120 BPM, très vite"]
        return cls(model=_tiny().name, output_dim=8, max_length=48, word_dropout=0.5), values

    def build(self) -> "T5Conditioner":
        return T5Conditioner(self)


class T5Conditioner(PretrainedConditioner):
    """Encode a text with a T5 and a linear layer; padding is exactly zero. Raises RequestError if a value is not a text."""

    placeholder = ""
    padding_masks = dict.fromkeys(("ids", "mask", "word", "x"), "mask")

    def __init__(self, spec: T5Spec) -> None:
        super().__init__(spec)
        self.pretrained = T5EncoderSource(spec)
        self.add_projection(self.pretrained.dim)

    def prepare_training(self, values: Any) -> None:
        """Load tokenizer and encoder; raises CheckpointError if one is missing."""
        _ = self.pretrained.tokenizer
        if not self.spec.train:
            self.pretrained.get(self.dtype_ref.device)

    def save_assets(self, folder: Path, subfolder: str) -> ConditionerSpec:
        spec: Any = super().save_assets(folder, subfolder)
        return spec.model_copy(update={"subconfig": None}) if spec.model == f"./{subfolder}" else spec

    def prepare(self, values: Sequence[Any]) -> PreparedInputs:
        prepared = super().prepare(values)
        mask = prepared.tensors["mask"] & prepared.present[:, None]  # absent texts have the ids of an empty one
        return PreparedInputs({**prepared.tensors, "mask": mask}, prepared.present)

    def parse_values(self, values: Sequence[Any]) -> list[str | None]:
        """Return the texts, normalized if `normalize_text`."""
        texts = [present_text(value, self.spec.empty_text) for value in values]
        if self.spec.normalize_text:
            texts = [None if text is None else present_text(lemmatize(text), self.spec.empty_text) for text in texts]
        return texts

    def preprocess(self, values: Sequence[str]) -> dict[str, Tensor]:
        """Return `ids` and `mask` [b, n]; with word dropout also `word` [b, n], the index of each token's word or -1."""
        rows = [self._tokens(value) for value in values]
        length = self.spec.max_length if self.spec.pad_to == "max_length" else None
        tensors = pad_ids([ids for ids, _ in rows], pad=self.pretrained.pad_token_id, length=length)
        if self.spec.word_dropout:
            tensors["word"] = pad_ids([words for _, words in rows], pad=-1, length=length)["ids"]
        return tensors

    def augment(self, prepared: PreparedInputs, rng: torch.Generator) -> PreparedInputs:
        """Drop words at random; a text that loses all of them is an empty text."""
        if not self.spec.word_dropout:
            return prepared
        ids, mask, word = (prepared.tensors[name] for name in ("ids", "mask", "word"))
        drawn = torch.rand(word.shape, generator=rng).to(word.device).gather(1, word.clamp(min=0))  # one draw per word
        keep = mask & ((word < 0) | (drawn >= self.spec.word_dropout))
        present = prepared.present
        if self.spec.empty_text == "null":
            present = present & (keep & (word >= 0)).any(1)
        order = torch.argsort((~keep).long(), dim=1, stable=True)
        keep, word = keep.gather(1, order), word.gather(1, order)
        ids = torch.where(keep | ~mask, ids.gather(1, order), self.pretrained.pad_token_id)
        word = torch.where(keep, word, -1)
        return PreparedInputs({"ids": ids, "mask": keep & present[:, None], "word": word}, present)

    def run_encoder(self, encoder: nn.Module, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        ids, mask = tensors["ids"], tensors["mask"]
        with self.autocast(torch.bfloat16 if self.spec.train and self.spec.dtype == "bf16" else None):
            x = _run_gemma(encoder, ids, mask) if self.pretrained.is_t5gemma else encoder(ids, mask)
        return {"x": x * mask[..., None], "mask": mask}

    def _tokens(self, text: str) -> tuple[list[int], list[int]]:
        """Return token ids of a text, and the index of each token's word, -1 for special tokens."""
        encoding = self.pretrained.tokenizer.encode(text)
        ids, words = encoding.ids, [-1 if word is None else word for word in encoding.word_ids]
        if max(words, default=-1) == 0:  # the tokenizer does not split words
            before = [max(len(text[:end].split()) - 1, 0) for _, end in encoding.offsets]
            words = [number if word == 0 else -1 for word, number in zip(words, before, strict=True)]
        most = self.spec.max_length
        if most is not None and len(ids) > most:
            warn_truncated(len(ids), most)
            num_special = next(i for i, word in enumerate(reversed(words)) if word >= 0)  # at the end
            kept = [*range(max(most - num_special, 0)), *range(len(ids) - num_special, len(ids))][:most]
            ids, words = [ids[i] for i in kept], [words[i] for i in kept]
        return (ids, words) if ids else ([self.pretrained.pad_token_id], [-1])


class T5EncoderSource(FrozenEncoder[nn.Module]):
    """Load config, tokenizer and encoder of the pretrained T5 of a spec."""

    loads_per_tensor = True

    @property
    def dim(self) -> int:
        """Width of the hidden states."""
        return self.spec.dim or _width(self.config)

    @property
    def cheap_to_reload(self) -> bool:
        return bool(self.config.get(_NARROW))

    @property
    def pad_token_id(self) -> int:
        return self.config.get("pad_token_id") or self.config.get("encoder", {}).get("pad_token_id") or 0

    @cached_property
    def config(self) -> dict[str, Any]:
        """Return the T5's part of config.json; raises CheckpointError if it is not a T5."""
        full = self.source.read_json("config.json", of="a T5")
        config = full.get(self.spec.subconfig, {}) if self.spec.subconfig else full
        if config.get("model_type") not in _KINDS or not _width(config):
            inner = [name for name, value in full.items() if isinstance(value, dict) and value.get("model_type") in _KINDS]
            hint = f"Set subconfig: {inner[0]}" if inner else f"Expected one of {', '.join(_KINDS)}"
            key = f"{self.spec.subconfig}.model_type" if self.spec.subconfig else "model_type"
            raise CheckpointError(f"'{self.spec.model}' is not a T5 ({key} = {config.get('model_type')!r}). {hint}")
        if self.spec.dim not in (None, _width(config)):
            raise CheckpointError(f"'{self.spec.model}' has a width of {_width(config)}, not {self.spec.dim}; fix `dim`")
        return config

    @cached_property
    def tokenizer(self) -> Tokenizer:
        _ = self.config  # raises first if the model is not a T5
        path = self._tokenizer_path
        tokenizer = load_tokenizer(path)
        if path.suffix != ".json":
            if tokenizer.token_to_id(_END) is None:
                raise CheckpointError(f"{path} is not a tokenizer of a T5 ('{_END}' not found); copy it again")
            _append_end_token(tokenizer)
        return tokenizer

    @property
    def _tokenizer_path(self) -> Path:
        return self.source.required_file(*_TOKENIZER, of="a T5 with its tokenizer")

    def open_state_dict(self) -> dict[str, LazyTensor]:
        """Return the stored encoder weights by module name, loaded one by one on use."""
        prefix = f"{self.spec.subconfig}." if self.spec.subconfig else ""
        state_dict = self.source.open_state_dict(tuple(f"{prefix}{part}" for part in ("encoder.", "shared.", "model.encoder.")))
        named = {key.removeprefix(prefix).removeprefix("model."): x for key, x in state_dict.items()}
        tied = {"embed_tokens.weight": named.pop("shared.weight")} if "shared.weight" in named else {}
        return tied | {key.removeprefix("encoder."): x for key, x in named.items()}

    def weights(self) -> dict[str, Tensor]:
        """Return the encoder weights in floating point."""
        encoder = self.build_resident() if self.config.get(_NARROW) else nn.Module()
        layers = {key: part for key, part in encoder.named_modules() if isinstance(part, QuantizedLinear)}
        stored = {key: x.load() for key, x in self.open_state_dict().items() if key.rpartition(".")[0] not in layers}
        return stored | {f"{key}.weight": part.dequantize() for key, part in layers.items()}

    def build_resident(self) -> nn.Module:
        return self.build(narrow=self.quantized)

    def build(self, *, narrow: bool = False) -> nn.Module:
        """Return a new encoder with its weights, in 8 bits if `narrow`; on the meta device without them."""
        tables = () if self.is_t5gemma else (_TABLE,)
        dtype = torch.bfloat16 if self.spec.dtype == "bf16" and not self.spec.train else torch.float32
        stored = bool(self.config.get(_NARROW))
        if stored and self.spec.train:
            raise CheckpointError(f"'{self.spec.model}' has weights in 8 bits, which cannot be trained. Use the original T5")
        with torch.inference_mode(False):
            on_meta = torch.get_default_device().type == "meta"
            with init_empty_weights():
                encoder = (self._gemma() if self.is_t5gemma else T5Encoder(T5Config.from_dict(self.config)).eval()).to(dtype)
                if stored or (narrow and on_meta):
                    quantize_on_meta(encoder, tables)
            if on_meta:
                return encoder
            weights = self._placeholder_weights(encoder) if self.config.get(_IN_SYSTEM) else self.open_state_dict()
            load_weights_streaming(encoder, weights, source=self.spec.model, bfloat16=tables if narrow and not stored else None)
            if self.is_t5gemma:
                _init_rotary(encoder)
        return encoder

    @property
    def is_t5gemma(self) -> bool:
        """Whether the model is a T5Gemma, which transformers runs."""
        return self.config["model_type"] == _GEMMA

    def _gemma(self) -> nn.Module:
        from transformers import AutoConfig, AutoModelForTextEncoding

        config = AutoConfig.for_model(**{**self.config, "dropout_rate": 0.0, **_ENCODER_ONLY})
        model = AutoModelForTextEncoding.from_config(config, dtype=torch.float32, attn_implementation="eager")
        model.encoder.register_load_state_dict_post_hook(_init_rotary)
        return model.encoder.eval()

    def _placeholder_weights(self, encoder: nn.Module) -> dict[str, LazyTensor]:
        """Return zeros, which the system's checkpoint replaces."""
        if not self.spec.train:
            problem = "has a T5 whose weights are in the checkpoint of its system"
            raise CheckpointError(f"'{self.spec.model}' {problem}. Set train: true")
        return {key: LazyTensor.from_tensor(torch.zeros(x.shape)) for key, x in encoder.state_dict().items()}

    def save(self, folder: Path, *, weights: bool) -> None:
        """Write the T5 encoder and its tokenizer to a new folder, in 8 bits if it is quantized."""
        narrow = weights and (self.quantized or bool(self.config.get(_NARROW)))
        stored = {_NARROW: "int8"} if narrow else {} if weights else {_IN_SYSTEM: True}
        config = self.config | (_ENCODER_ONLY if self.is_t5gemma else {}) | stored
        tokenizer = self._tokenizer_path
        files = {tokenizer} | {tokenizer.with_name(name) for name in _TOKENIZER_FILES if self.source.folder}
        state_dict = self.build_resident().state_dict() if narrow else self.weights() if weights else {}
        save_model(folder, config, filter(Path.is_file, files), stored_weights(state_dict, shared=not self.is_t5gemma))


def stored_weights(weights: dict[str, Tensor], *, shared: bool = True) -> dict[str, Tensor]:
    """Return encoder weights by stored names; the embedding is named `shared` unless the model is a T5Gemma."""
    table = {_TABLE: "shared.weight"} if shared else {}
    return {table.get(key, f"encoder.{key}"): x for key, x in weights.items()}


def _run_gemma(encoder: Any, ids: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"]) -> Float[Tensor, "b n e"]:
    """Return the hidden states of a T5Gemma, some of whose layers use sliding-window attention."""
    at = torch.arange(mask.shape[1], device=mask.device)
    valid = (mask | (at == 0))[:, None, None]  # attention needs at least one key
    dtype = encoder.norm.weight.dtype
    lowest = torch.finfo(dtype).min
    bias = torch.where(valid, 0.0, lowest).to(dtype)  # a boolean mask would synchronize with the CPU
    local = bias.masked_fill((at[:, None] - at).abs() > (encoder.config.sliding_window or len(at)), lowest)
    both = {"full_attention": bias, "sliding_attention": local}
    return encoder(input_ids=ids, attention_mask=both).last_hidden_state


def _init_rotary(encoder: Any, _: Any = None) -> None:
    """Compute the rotary tables of a T5Gemma, which are not stored, after loading."""
    device = encoder.embed_tokens.weight.device
    if device.type != "meta":
        with torch.device(device):
            encoder.rotary_emb = type(encoder.rotary_emb)(encoder.config)


def _width(config: dict[str, Any]) -> int:
    """Return the encoder's width by its config; 0 if missing."""
    return config.get("d_model") or config.get("encoder", {}).get("hidden_size") or 0


def _append_end_token(tokenizer: Tokenizer) -> None:
    """Add T5's end token after each text."""
    end = (_END, tokenizer.token_to_id(_END))
    tokenizer.post_processor = processors.TemplateProcessing(single=f"$A {_END}", special_tokens=[end])  # type: ignore[assignment]


@cache
def _tiny() -> TemporaryDirectory[str]:
    """Return a temporary folder with a random T5, deleted at exit."""
    directory = TemporaryDirectory(prefix="cadenza-t5-", ignore_cleanup_errors=True)
    folder = Path(directory.name)
    pieces = [*"▁abcdefghijklmnopqrstuvwxyz0123456789#,", "▁piano", "▁drums", "an"]
    vocabulary = [("<pad>", 0.0), (_END, 0.0), ("<unk>", 0.0), *((piece, -float(i)) for i, piece in enumerate(pieces))]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])  # type: ignore[assignment]
    _append_end_token(tokenizer)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"model_type": "t5", "pad_token_id": 0, "vocab_size": len(vocabulary)}
    config |= {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_heads": 4, "num_layers": 2}
    with init_empty_weights():
        shapes = T5Encoder(T5Config.from_dict(config)).state_dict()
    rng = torch.Generator().manual_seed(0)
    weights = {key: torch.randn(x.shape, generator=rng) / x.shape[-1] ** 0.5 for key, x in shapes.items()}
    save_model(folder, config, [], stored_weights(weights))
    return directory
