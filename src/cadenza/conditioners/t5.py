"""Text through the encoder of a pretrained T5 (arXiv:1910.10683), or of its kin: Flan-T5, T5 v1.1, mT5, UMT5, T5Gemma."""

import json
import warnings
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal, Self

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn

from cadenza.conditioners.base import Conditioner, ConditionerSpec, PreparedInputs
from cadenza.core.checkpoint import LazyTensor
from cadenza.core.errors import CheckpointError, RequestError
from cadenza.core.types import ConditionKind, MaskedSequence
from cadenza.nn.frozen import FrozenEncoder, FrozenEncoderMixin, load_weights_streaming, quantize_on_meta
from cadenza.nn.meta_init import init_empty_weights
from cadenza.nn.t5 import T5Config, T5Encoder
from cadenza.nn.tokenizers import lemmatize, load_sentencepiece
from cadenza.nn.weight_quantization import QuantizedLinear

_GEMMA = "t5gemma"  # arXiv:2504.06225
_KINDS = ("t5", "mt5", "umt5", _GEMMA)
_TABLE = "embed_tokens.weight"  # of what T5s read of each token
_TOKENIZER = ("tokenizer.json", "spiece.model")  # one of them is needed
_BESIDE = (*_TOKENIZER, "tokenizer_config.json", "special_tokens_map.json")
_ELSEWHERE = "weights_in_system"  # key of the config of a T5 that was trained: its weights are those of its system
_NARROW = "quantized"  # key of the config of a T5 whose weights are stored in 8 bits
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


class T5Spec(ConditionerSpec):
    """A text as the last hidden states of `model`, a folder or a repository of the hub, projected to `width`.

    Unless it is to `train` too, the encoder is frozen and no part of the saved weights: it is named, or copied beside
    them where it came from a folder. Texts longer than `max_length` tokens are cut. Its own dropout is never applied.
    """

    type: Literal["t5"] = "t5"
    widget: ClassVar[str] = "text"
    model: str = Field(min_length=1)
    revision: str | None = None  # of the repository
    subconfig: str | None = None  # where `model` is more than a T5: what its config and its weights call the T5
    dim: int | None = Field(default=None, ge=1)  # width of the encoder; looked up in its config where not given
    train: bool = False
    dtype: Literal["fp32", "bf16"] = "fp32"  # of the encoder's computations, whatever the rest has; half overflows
    max_length: int | None = Field(default=None, ge=1)
    pad_to: Literal["longest", "max_length"] = "longest"
    empty_text: Literal["absent", "read"] = "absent"  # an empty text is no value, or a text of its end mark alone
    normalize_text: bool = False  # lemmas, without stop words and punctuation, numbers in words
    word_dropout: float = Field(default=0.0, ge=0, le=1)  # of each word in a training step
    project: Literal["always", "auto"] = "always"  # auto: not where the encoder has that width already

    @model_validator(mode="after")
    def _has_an_end(self) -> Self:
        if self.pad_to == "max_length" and self.max_length is None:
            raise ValueError("pad_to: max_length needs max_length, in tokens")
        return self

    @property
    def output_kind(self) -> ConditionKind:
        return "tokens"

    @classmethod
    def example(cls) -> tuple["T5Spec", list[Any]]:
        values = ["slow piano in A minor, 80 bpm", "drums", "F# major — 120 BPM, très vite"]
        return cls(model=_tiny().name, output_dim=8, max_length=48, word_dropout=0.5), values

    def build(self) -> "T5Conditioner":
        return T5Conditioner(self)

    def resolve_paths(self, folder: Path) -> Self:
        return self.model_copy(update={"model": str(folder / self.model)}) if self.model.startswith("./") else self


class T5Conditioner(FrozenEncoderMixin, Conditioner[str]):
    """Tokens of a T5, its encoder, and a linear layer; what pads is exactly zero."""

    placeholder = ""
    padding_masks: ClassVar[dict[str, str]] = dict.fromkeys(("ids", "mask", "word", "x"), "mask")  # for a cache of features
    dtype_ref: Tensor  # of nothing, on the device and of the dtype of this module

    def __init__(self, spec: T5Spec) -> None:
        super().__init__(spec)
        self.pretrained = T5EncoderSource(spec)
        dim = self.pretrained.dim
        self.out = nn.Identity() if spec.project == "auto" and dim == spec.output_dim else nn.Linear(dim, spec.output_dim)
        self.register_buffer("dtype_ref", torch.empty(0), persistent=False)
        if spec.train:
            self.encoder = self.pretrained.build().requires_grad_(True)

    def prepare_training(self, values: Any) -> None:
        """Fetches what is needed, so that what is missing is said before the first step."""
        _ = self.pretrained.tokenizer
        if not self.spec.train:
            self.pretrained.get(self.dtype_ref.device)

    def cache_fingerprint(self) -> tuple[Any, Mapping[str, Tensor]] | None:
        """What features depend on beside the spec: the config and the weights of the encoder, where it is not trained."""
        return None if self.spec.train else (self.pretrained.config, self.pretrained.get(self.dtype_ref.device).state_dict())

    def save_assets(self, folder: Path, subfolder: str) -> ConditionerSpec:
        """A frozen encoder of the hub is named by its commit; of anything else the place gets what the weights lack."""
        here = {"dim": self.pretrained.dim}
        if self.pretrained.source.folder is None and not self.spec.train:
            return self.spec.model_copy(update=here | {"revision": self.pretrained.source.resolved_revision})
        self.pretrained.save(folder / subfolder, weights=not self.spec.train)
        return self.spec.model_copy(update=here | {"model": f"./{subfolder}", "revision": None, "subconfig": None})

    def prepare(self, values: Sequence[Any]) -> PreparedInputs:
        prepared = super().prepare([self._text(value) for value in values])
        mask = prepared.tensors["mask"] & prepared.present[:, None]
        return PreparedInputs({**prepared.tensors, "mask": mask}, prepared.present)

    def preprocess(self, values: Sequence[str]) -> dict[str, Tensor]:
        """The `ids` of tokens, the `mask` of those that are real, and where words may drop the `word` each is of [b n]."""
        rows = [self._tokens(value) for value in values]
        longest = max((len(ids) for ids, _ in rows), default=1)
        n = self.spec.max_length if self.spec.pad_to == "max_length" else longest
        ids, word = torch.full((len(rows), n), self.pretrained.pad_token_id), torch.full((len(rows), n), -1)
        for i, (row, of) in enumerate(rows):
            ids[i, : len(row)], word[i, : len(of)] = torch.tensor(row), torch.tensor(of)
        mask = torch.arange(n) < torch.tensor([len(row) for row, _ in rows], dtype=torch.long)[:, None]
        return {"ids": ids, "mask": mask, **({"word": word} if self.spec.word_dropout else {})}

    def augment(self, prepared: PreparedInputs, rng: torch.Generator) -> PreparedInputs:
        """Without some of the words; a text that loses all of them is an empty one."""
        if not self.spec.word_dropout:
            return prepared
        ids, mask, word = (prepared.tensors[name] for name in ("ids", "mask", "word"))
        drawn = torch.rand(word.shape, generator=rng).to(word.device).gather(1, word.clamp(min=0))  # one draw a word
        kept = mask & ((word < 0) | (drawn >= self.spec.word_dropout))
        present = prepared.present
        if self.spec.empty_text == "absent":
            present = present & (kept & (word >= 0)).any(1)
        order = torch.argsort((~kept).long(), dim=1, stable=True)
        kept, word = kept.gather(1, order), word.gather(1, order)
        ids = torch.where(kept | ~mask, ids.gather(1, order), self.pretrained.pad_token_id)
        word = torch.where(kept, word, -1)
        return PreparedInputs({"ids": ids, "mask": kept & present[:, None], "word": word}, present)

    def encode_frozen(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.spec.train:
            return tensors
        ids, mask = tensors["ids"], tensors["mask"]
        return {"x": self._hidden(self.pretrained.get(ids.device), ids, mask), "mask": mask}

    def project(self, tensors: dict[str, Tensor]) -> MaskedSequence:
        mask = tensors["mask"]
        x = self._hidden(self.encoder, tensors["ids"], mask) if self.spec.train else tensors["x"]
        return MaskedSequence(self.out(x.to(self.dtype_ref.dtype)) * mask[..., None], mask)

    def _hidden(self, encoder: nn.Module, ids: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"]) -> Float[Tensor, "b n e"]:
        with _computing(ids.device.type, self.spec.dtype, train=self.spec.train):
            x = _through_gemma(encoder, ids, mask) if self.pretrained.is_t5gemma else encoder(ids, mask)
        return x * mask[..., None]

    def _text(self, value: Any) -> str | None:
        if value is None:
            return None
        if not isinstance(value, str):
            raise RequestError(f"a text is needed, got {value!r} ({type(value).__name__}); put it in quotes")
        text = lemmatize(value) if self.spec.normalize_text else value
        return text if text.strip() or self.spec.empty_text == "read" else None

    def _tokens(self, text: str) -> tuple[list[int], list[int]]:
        """The ids of a text's tokens, and the number of the word that each is of; -1 for marks."""
        encoding = self.pretrained.tokenizer.encode(text)
        ids, words = encoding.ids, [-1 if word is None else word for word in encoding.word_ids]
        if max(words, default=-1) == 0:  # of a tokenizer to which the whole text is one word
            before = [max(len(text[:end].split()) - 1, 0) for _, end in encoding.offsets]
            words = [number if word == 0 else -1 for word, number in zip(words, before, strict=True)]
        most = self.spec.max_length
        if most is not None and len(ids) > most:
            marks = next(i for i, word in enumerate(reversed(words)) if word >= 0)  # at the end; they stay
            warnings.warn(
                f"a text has {len(ids)} tokens, {most} are read (`max_length` of its conditioner): "
                f"the last {len(ids) - most} of it are lost",
                stacklevel=2,
            )
            cut = max(most - marks, 0)
            ids, words = (ids[:cut] + ids[len(ids) - marks :])[:most], (words[:cut] + [-1] * marks)[:most]
        return (ids, words) if ids else ([self.pretrained.pad_token_id], [-1])


class T5EncoderSource(FrozenEncoder[nn.Module]):
    """The pretrained T5 of a spec."""

    loads_per_tensor = True

    @property
    def dim(self) -> int:
        """The width of its hidden states."""
        return self.spec.dim or _width(self.config)

    @property
    def cheap_to_reload(self) -> bool:
        return bool(self.config.get(_NARROW))

    @property
    def pad_token_id(self) -> int:
        return self.config.get("pad_token_id") or self.config.get("encoder", {}).get("pad_token_id") or 0

    @cached_property
    def config(self) -> dict[str, Any]:
        """What config.json says of the T5."""
        whole = self.source.read_json("config.json", of="a T5")
        config = whole.get(self.spec.subconfig, {}) if self.spec.subconfig else whole
        if config.get("model_type") not in _KINDS or not _width(config):
            inner = [name for name, value in whole.items() if isinstance(value, dict) and value.get("model_type") in _KINDS]
            hint = f"set inside: {inner[0]}" if inner else f"give a model of one of the types {', '.join(_KINDS)}"
            what = f"its '{self.spec.subconfig}'" if self.spec.subconfig else "it"
            raise CheckpointError(f"'{self.spec.model}' is no T5: {what} is of type {config.get('model_type')!r}; {hint}")
        if self.spec.dim not in (None, _width(config)):
            raise CheckpointError(f"'{self.spec.model}' has a width of {_width(config)}, not {self.spec.dim}; mend `dim`")
        return config

    @cached_property
    def tokenizer(self) -> Tokenizer:
        _ = self.config  # a folder that is no T5 is called that first
        path = self.source.required_file(*_TOKENIZER, of="a T5 with its tokenizer")
        try:
            tokenizer = Tokenizer.from_file(str(path)) if path.suffix == ".json" else _ended(load_sentencepiece(path))
        except Exception as error:  # `tokenizers` raises nothing narrower
            raise CheckpointError(f"{path} is no tokenizer ({error}); copy it again") from None
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    def open_state_dict(self) -> dict[str, LazyTensor]:
        """The encoder's weights as they are stored, to be read one by one, by the names of its own modules."""
        prefix = f"{self.spec.subconfig}." if self.spec.subconfig else ""
        found = self.source.open_state_dict(tuple(f"{prefix}{part}" for part in ("encoder.", "shared.", "model.encoder.")))
        named = {key.removeprefix(prefix).removeprefix("model."): x for key, x in found.items()}
        tied = {"embed_tokens.weight": named.pop("shared.weight")} if "shared.weight" in named else {}
        return tied | {key.removeprefix("encoder."): x for key, x in named.items()}

    def weights(self) -> dict[str, Tensor]:
        """The same, read, in floating point."""
        if not self.config.get(_NARROW):
            return {key: record.load() for key, record in self.open_state_dict().items()}
        layers = {key: part for key, part in self.build_resident().named_modules() if isinstance(part, QuantizedLinear)}
        dense = {f"{key}.weight": part.dequantize() for key, part in layers.items()}
        return dense | {
            key: record.load() for key, record in self.open_state_dict().items() if key.rpartition(".")[0] not in layers
        }

    def build(self) -> nn.Module:
        """An encoder of its own; on the meta device, to be filled later, its weights are not read."""
        return self._made(narrow=False)

    def build_resident(self) -> nn.Module:
        return self._made(narrow=self.quantized)

    def _made(self, *, narrow: bool) -> nn.Module:
        tables = () if self.is_t5gemma else (_TABLE,)
        dtype = torch.float32 if self.spec.train else _DTYPES[self.spec.dtype]
        stored = bool(self.config.get(_NARROW))
        if stored and self.spec.train:
            raise CheckpointError(
                f"'{self.spec.model}' has weights of 8 bits, which cannot be trained; give the T5 they are of"
            )
        with torch.inference_mode(False):
            outline = torch.get_default_device().type == "meta"
            with init_empty_weights():
                encoder = (self._gemma() if self.is_t5gemma else T5Encoder(T5Config.from_dict(self.config)).eval()).to(dtype)
                if stored or (narrow and outline):
                    quantize_on_meta(encoder, tables)
            if outline:
                return encoder
            weights = self._elsewhere(encoder) if self.config.get(_ELSEWHERE) else self.open_state_dict()
            load_weights_streaming(encoder, weights, source=self.spec.model, bfloat16=tables if narrow and not stored else None)
            if self.is_t5gemma:
                _turned(encoder)
        return encoder

    @property
    def is_t5gemma(self) -> bool:
        """Whether it is the encoder of a T5Gemma, which transformers computes."""
        return self.config["model_type"] == _GEMMA

    def _gemma(self) -> nn.Module:
        from transformers import AutoConfig, AutoModelForTextEncoding

        config = AutoConfig.for_model(**{**self.config, "dropout_rate": 0.0, **self._alone})
        model = AutoModelForTextEncoding.from_config(config, dtype=torch.float32, attn_implementation="eager")
        model.encoder.register_load_state_dict_post_hook(_turned)
        return model.encoder.eval()

    @property
    def _alone(self) -> dict[str, Any]:
        """What the config of a T5Gemma must say besides, where it is an encoder without its decoder."""
        return {"is_encoder_decoder": False, "attention_dropout": 0.0} if self.is_t5gemma else {}

    def _elsewhere(self, encoder: nn.Module) -> dict[str, LazyTensor]:
        """What stands for weights until those that were saved with the rest of the system are there."""
        if not self.spec.train:
            raise CheckpointError(
                f"'{self.spec.model}' has a T5 whose weights are among those of its system; set train: true, or give another T5"
            )
        return {key: LazyTensor.from_tensor(torch.zeros(x.shape)) for key, x in encoder.state_dict().items()}

    def save(self, folder: Path, *, weights: bool) -> None:
        """Writes a folder that is a T5 encoder with its tokenizer and nothing else, in 8 bits where it is `narrow`."""
        folder.mkdir(parents=True)
        narrow = weights and (self.quantized or bool(self.config.get(_NARROW)))
        config = self.config | self._alone | ({} if weights else {_ELSEWHERE: True}) | ({_NARROW: "int8"} if narrow else {})
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        tokenizer = self.source.required_file(*_TOKENIZER, of="a T5 with its tokenizer")
        for path in {tokenizer} | {tokenizer.with_name(name) for name in _BESIDE if self.source.folder}:
            if path.is_file():
                (folder / path.name).write_bytes(path.read_bytes())
        if weights:
            held = self.build_resident().state_dict() if narrow else self.weights()
            save_encoder_weights(held, folder, shared=not self._alone)


def save_encoder_weights(weights: dict[str, Tensor], folder: Path, *, shared: bool = True) -> None:
    """Writes the weights of an encoder as those of a model that is one; its table is `shared` unless it is a T5Gemma."""
    table = {"embed_tokens.weight": "shared.weight"} if shared else {}
    path = folder / "model.safetensors"
    save_file({table.get(key, f"encoder.{key}"): x.contiguous() for key, x in weights.items()}, path, {"format": "pt"})
    path.chmod((folder / "config.json").stat().st_mode)  # which safetensors makes its owner's alone


def _through_gemma(encoder: Any, ids: Int[Tensor, "b n"], mask: Bool[Tensor, "b n"]) -> Float[Tensor, "b n e"]:
    """The hidden states of a T5Gemma, of which some layers attend to what is near alone."""
    at = torch.arange(mask.shape[1], device=mask.device)
    seen = (mask | (at == 0))[:, None, None]  # attention to nothing is not defined
    dtype = encoder.norm.weight.dtype
    nothing = torch.finfo(dtype).min
    bias = torch.where(seen, 0.0, nothing).to(dtype)  # a mask would be looked at by the host
    near = bias.masked_fill((at[:, None] - at).abs() > (encoder.config.sliding_window or len(at)), nothing)
    both = {"full_attention": bias, "sliding_attention": near}
    return encoder(input_ids=ids, attention_mask=both).last_hidden_state


def _turned(encoder: Any, _: Any = None) -> None:
    """Computes the rotations of a T5Gemma, which are no part of its weights, once these are there."""
    device = encoder.embed_tokens.weight.device
    if device.type != "meta":
        with torch.device(device):
            encoder.rotary_emb = type(encoder.rotary_emb)(encoder.config)


def _width(config: dict[str, Any]) -> int:
    """The width of the encoder that a config describes; 0 where it describes none."""
    return config.get("d_model") or config.get("encoder", {}).get("hidden_size") or 0


def _ended(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer with the mark that T5 puts at the end of a text."""
    end = tokenizer.token_to_id("</s>")
    if end is None:
        raise ValueError("it has no '</s>'")
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", end)])  # type: ignore[assignment]
    return tokenizer


def _computing(device: str, dtype: str, *, train: bool) -> AbstractContextManager[Any]:
    """The precision of the encoder itself, where one for all the model may be in force."""
    if device == "meta":
        return nullcontext()
    return torch.autocast(device, torch.bfloat16, enabled=train and dtype == "bf16")


@cache
def _tiny() -> TemporaryDirectory[str]:
    """A folder with an untrained T5 of a few characters, for as long as this process lives."""
    place = TemporaryDirectory(prefix="cadenza-t5-", ignore_cleanup_errors=True)
    folder = Path(place.name)
    letters = [*"▁abcdefghijklmnopqrstuvwxyz0123456789#,", "▁piano", "▁drums", "an"]
    vocabulary = [(piece, 0.0) for piece in ("<pad>", "</s>", "<unk>")] + [
        (piece, -float(i)) for i, piece in enumerate(letters)
    ]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])  # type: ignore[assignment]
    _ended(tokenizer).save(str(folder / "tokenizer.json"))
    sizes = {"d_model": 16, "d_kv": 4, "d_ff": 32, "num_heads": 4, "num_layers": 2, "vocab_size": len(vocabulary)}
    (folder / "config.json").write_text(json.dumps({"model_type": "t5", "pad_token_id": 0, **sizes}))
    with init_empty_weights():
        shapes = T5EncoderSource(T5Spec(model=place.name, output_dim=1)).build().state_dict()
    rng = torch.Generator().manual_seed(0)
    made = {key: torch.randn(x.shape, generator=rng) / x.shape[-1] ** 0.5 for key, x in shapes.items()}
    save_encoder_weights(made, folder)
    return place
