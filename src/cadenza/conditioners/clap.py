"""Text or audio through the encoders of a pretrained CLAP (arXiv:2211.06687), which share one embedding space."""

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from functools import cache, cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, Self

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from torch.nn import functional as F

from cadenza.conditioners.base import PreparedInputs, pad_ids, pad_rows, present_text
from cadenza.conditioners.base_encoders import PretrainedConditioner, PretrainedConditionerSpec, encode_texts, load_tokenizer
from cadenza.core.errors import CheckpointError, RequestError
from cadenza.core.types import ConditionKind, MaskedSequence
from cadenza.dsp.audio import Audio, load_condition_audio, silence
from cadenza.dsp.spectral import LogMelFrontend
from cadenza.nn.clap import COMPUTED_BUFFERS, ClapTowers, build_clap, load_clap
from cadenza.nn.frozen import FrozenEncoder, save_model
from cadenza.nn.vector_quantize import ResidualVectorQuantizer

_TOKENIZER = "tokenizer.json"
_FEATURE_EXTRACTOR = ("preprocessor_config.json", "processor_config.json")  # one of them is required for audio
_ASSETS = (_TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", *_FEATURE_EXTRACTOR)
_IN_SYSTEM = "weights_in_system"  # config key: the weights of a trained CLAP are in the system's checkpoint
_MAX_KMEANS_VALUES = 2000
_TextAndAudio = tuple[str | None, Any]  # at least one of them is not None


class ClapSpec(PretrainedConditionerSpec):
    """Vector of the CLAP `model` for a text or audio, projected to `output_dim`.

    For a value with both text and audio, generation uses `prefer`; a training step uses the text with
    `text_probability`, else the audio. Audio longer than the model's window (10 s) is averaged over windows every `stride`
    seconds. With `layer` the output is the text's hidden states at that layer: 0 for embeddings, -1 for the last layer.
    An empty text is absent, or with `empty_text: encode` encoded as its two special tokens.
    """

    type: Literal["clap"] = "clap"
    modalities: Literal["text", "audio", "both"] = "both"
    prefer: Literal["text", "audio"] = "text"
    text_probability: float = Field(default=0.0, ge=0, le=1)
    layer: int | None = None
    normalize: bool = True  # vectors of length 1
    stride: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    codebooks: int = Field(default=0, ge=0)  # of residual quantization of the vector, initialized from training values
    bins: int = Field(default=1024, ge=2)
    max_length: int = Field(default=77, ge=3)  # tokens of a text

    @model_validator(mode="after")
    def _check_layer(self) -> Self:
        if self.layer is not None and (self.modalities != "text" or self.codebooks):
            raise ValueError("layer: only the text encoder returns hidden states. Set modalities: text and no codebooks")
        return self

    @property
    def output_kind(self) -> ConditionKind:  # type: ignore[override]
        return "vector" if self.layer is None else "tokens"

    @classmethod
    def example(cls) -> tuple["ClapSpec", list[Any]]:
        rng = torch.Generator().manual_seed(0)
        values = ["slow piano, 80 bpm", Audio(torch.randn(1, 2, 11000, generator=rng), 8000), {"text": "drums"}]
        return cls(model=_tiny().name, output_dim=8, stride=0.25, text_probability=0.5), values

    def build(self) -> "CLAPConditioner":
        return CLAPConditioner(self)


class CLAPConditioner(PretrainedConditioner):
    """Encode text or audio with a CLAP, optional residual quantization and a linear layer.

    A value is a text, Audio, a path of audio, or a mapping with `text`, `audio` or both; with `modalities: both` a string is
    a path if that file exists. Raises RequestError for other values.
    """

    padding_masks = {"ids": "mask", "mask": "mask", "x": "mask", "mel": "windows", "windows": "windows"}

    def __init__(self, spec: ClapSpec) -> None:
        super().__init__(spec)
        self.pretrained = ClapEncoder(spec)
        dim = self.pretrained.dim
        self.quantizer = ResidualVectorQuantizer(dim, codebooks=spec.codebooks, bins=spec.bins) if spec.codebooks else None
        self.add_projection(dim)

    @property
    def placeholder(self) -> _TextAndAudio:  # type: ignore[override]
        if self.spec.modalities == "audio":
            return None, silence(self.pretrained.mel_frontend.sample_rate)
        return "", None

    def prepare_training(self, values: Iterable[Any]) -> None:
        """Load tokenizer and encoders, and initialize the codebooks by k-means on the vectors of training values."""
        if self.spec.modalities != "audio":
            _ = self.pretrained.tokenizer
        if not self.spec.train:
            self.pretrained.get(self.dtype_ref.device)
        if self.quantizer is not None:
            pairs = [pair for value in values if (pair := self._parse(value))]
            parts = [part for text, audio in pairs for part in ((text, None), (None, audio)) if part != (None, None)]
            vectors = [self._vector(part) for part in parts[:_MAX_KMEANS_VALUES]]
            if vectors:  # sorted, so that the order of the values does not matter
                self.quantizer.kmeans_init(torch.unique(torch.stack(vectors), dim=0), torch.Generator().manual_seed(0))

    def parse_values(self, values: Sequence[Any]) -> list[_TextAndAudio | None]:
        return [self._parse(value) for value in values]

    def preprocess(self, values: Sequence[_TextAndAudio]) -> dict[str, Tensor]:
        """Return `ids` and `mask` [b, n] of tokens; `mel` [b, w, f, m] of windows and their mask `windows` [b, w].

        With `modalities: both` also `has_text`, `has_audio` and `by_text` [b], True if the text is encoded.
        """
        texts, sounds = zip(*values, strict=True)
        tensors = {} if self.spec.modalities == "audio" else self._ids([text or "" for text in texts])
        if self.spec.modalities != "text":
            tensors |= self._mel(sounds)
        if self.spec.modalities == "both":
            has_text, has_audio = (torch.tensor([x is not None for x in given]) for given in (texts, sounds))
            by_text = has_text & ~has_audio if self.spec.prefer == "audio" else has_text
            tensors |= {"has_text": has_text, "has_audio": has_audio, "by_text": by_text}
        return tensors

    def augment(self, prepared: PreparedInputs, rng: torch.Generator) -> PreparedInputs:
        """Choose text or audio at random for items with both."""
        if self.spec.modalities != "both":
            return prepared
        has_text, has_audio = prepared.tensors["has_text"], prepared.tensors["has_audio"]
        drawn = torch.rand(len(has_text), generator=rng).to(has_text.device) < self.spec.text_probability
        return PreparedInputs({**prepared.tensors, "by_text": has_text & (drawn | ~has_audio)}, prepared.present)

    def run_encoder(self, encoder: ClapTowers, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return one vector `x` [b, e] per item, or with `layer` hidden states `x` [b, n, e] and their `mask`."""
        with self.autocast():
            if self.spec.layer is None:
                return {"x": (self._encode_all if self.spec.train else self._encode_present)(encoder, tensors)}
            mask = tensors["mask"]
            return {"x": encoder.text_hidden_states(tensors["ids"], mask, self.spec.layer) * mask[..., None], "mask": mask}

    def project(self, tensors: dict[str, Tensor]) -> MaskedSequence:
        if self.spec.layer is not None:
            return super().project(tensors)
        x = (self.run_encoder(self.encoder, tensors) if self.spec.train else tensors)["x"]
        if self.quantizer is not None:
            with self.autocast():
                z = x.to(self.quantizer.dtype)[..., None]
                x = x + (self.quantizer.decode(self.quantizer.encode(z))[..., 0] - x).detach()
        return MaskedSequence(self.out(x.to(self.dtype_ref.dtype))[:, None], torch.ones_like(x[:, :1], dtype=torch.bool))

    def train(self, mode: bool = True) -> Self:
        """Set the training mode, but keep the encoders in evaluation: their batch norm must not mix items."""
        super().train(mode)
        if self.spec.train:
            self.encoder.eval()
        return self

    def _encode_present(self, towers: ClapTowers, tensors: dict[str, Tensor]) -> Float[Tensor, "b e"]:
        """Return one vector per item, encoding only the modality that it uses."""
        first = next(iter(tensors.values()))
        every = torch.ones(len(first), dtype=torch.bool, device=first.device)
        text = {"text": every, "audio": ~every, "both": tensors.get("by_text", every)}[self.spec.modalities]
        x = torch.zeros(len(every), self.pretrained.dim, device=every.device)
        if text.any():
            x[text] = self._normalize(towers.text(tensors["ids"][text], tensors["mask"][text]))
        if (windows := tensors["windows"] & ~text[:, None] if "windows" in tensors else text[:0]).any():
            vectors = self._normalize(towers.audio(tensors["mel"][windows]))
            mean = torch.zeros_like(x).index_add_(0, windows.nonzero()[:, 0], vectors) / windows.sum(1).clamp(min=1)[:, None]
            x = torch.where(text[:, None], x, self._normalize(mean))
        return x

    def _encode_all(self, towers: ClapTowers, tensors: dict[str, Tensor]) -> Float[Tensor, "b e"]:
        """Return one vector per item, encoding both modalities so that shapes do not depend on values."""
        text = sound = None
        if "ids" in tensors:
            text = self._normalize(towers.text(tensors["ids"], tensors["mask"]))
        if "mel" in tensors:
            mask = tensors["windows"][..., None]
            vectors = self._normalize(towers.audio(tensors["mel"].flatten(0, 1))).unflatten(0, mask.shape[:2])
            sound = self._normalize((vectors * mask).sum(1) / mask.sum(1).clamp(min=1))
        if text is None or sound is None:
            return sound if text is None else text  # type: ignore[return-value]
        return torch.where(tensors["by_text"][:, None], text, sound)

    def _normalize(self, x: Float[Tensor, "n e"]) -> Float[Tensor, "n e"]:
        return F.normalize(x, dim=-1) if self.spec.normalize else x

    @torch.no_grad()
    def _vector(self, value: _TextAndAudio) -> Float[Tensor, " e"]:
        """Return the vector of a text or of audio."""
        tensors = {name: x.to(self.dtype_ref.device) for name, x in self.preprocess([value]).items()}
        with self.autocast():
            towers = self.encoder if self.spec.train else self.pretrained.get(self.dtype_ref.device)
            return self._encode_present(towers, tensors)[0]

    def _parse(self, value: Any) -> _TextAndAudio | None:
        """Return text and audio of a value that the model uses; None if absent."""
        modalities = self.spec.modalities
        if not isinstance(value, Mapping):
            is_path = isinstance(value, str) and (modalities == "audio" or (modalities == "both" and os.path.isfile(value)))
            value = {"audio" if is_path or isinstance(value, Audio | Path) else "text": value}
        if unknown := value.keys() - {"text", "audio"}:
            raise RequestError(f"a mapping may have a 'text' and an 'audio', not {sorted(unknown)}")
        text, audio = value.get("text"), value.get("audio")
        if not isinstance(text, str | None):
            raise RequestError(f"a text or a sound is needed, got {text!r} ({type(text).__name__})")
        if modalities != "both" and value.get(modalities) is None and (text is not None or audio is not None):
            other, needed = ("sound", "a text") if modalities == "text" else ("text", "a sound")
            raise RequestError(f"this control reads no {other}; give {needed}")
        text = None if modalities == "audio" else present_text(text, self.spec.empty_text)
        audio = None if modalities == "text" else audio
        return None if text is None and audio is None else (text, audio)

    def _ids(self, texts: Sequence[str]) -> dict[str, Tensor]:
        length = self.pretrained.max_text_tokens if self.spec.pad_to == "max_length" else None
        return pad_ids(encode_texts(self.pretrained.tokenizer, texts), pad=self.pretrained.pad_token_id, length=length)

    def _mel(self, sounds: Sequence[Any]) -> dict[str, Tensor]:
        frontend = self.pretrained.mel_frontend
        waves = [None if x is None else load_condition_audio([x], frontend.sample_rate).wave[0, 0] for x in sounds]
        none = torch.zeros(0, *frontend.shape)
        mel, windows = pad_rows(
            [none if wave is None else frontend(wave, stride=self.spec.stride) for wave in waves], shortest=int(self.spec.train)
        )
        return {"mel": mel, "windows": windows}


class ClapEncoder(FrozenEncoder[ClapTowers]):
    """Load config, tokenizer, mel front end and encoders of the pretrained CLAP of a spec."""

    @property
    def dim(self) -> int:
        """Width of the vectors, or of the hidden states with `layer`."""
        if self.spec.dim is not None:
            return self.spec.dim
        return self.config.get("projection_dim", 512) if self.spec.layer is None else self._text.get("hidden_size", 768)

    @property
    def pad_token_id(self) -> int:
        return self._text.get("pad_token_id", 1)

    @property
    def max_text_tokens(self) -> int:
        """Maximum number of tokens of a text; position ids begin after that of padding."""
        return min(self.spec.max_length, self._text.get("max_position_embeddings", 514) - self.pad_token_id - 1)

    @cached_property
    def config(self) -> dict[str, Any]:
        """Return config.json; raises CheckpointError if it is not that of a CLAP or does not match the spec."""
        config = self.source.read_json("config.json", of="a CLAP")
        text = config.get("text_config") or {}
        if config.get("model_type") != "clap":
            raise CheckpointError(
                f"'{self.spec.model}' is not a CLAP (model_type = {config.get('model_type')!r}). Use one in the layout of "
                "transformers, such as laion/clap-htsat-unfused (a .pt file of LAION must be converted first)"
            )
        layer, depth = self.spec.layer, text.get("num_hidden_layers", 12)
        dim = config.get("projection_dim", 512) if layer is None else text.get("hidden_size", 768)
        if layer is not None and not -depth - 1 <= layer <= depth:
            expected = f"Expected a layer from {-depth - 1} to {depth}, not {layer}"
            raise CheckpointError(f"'{self.spec.model}' has {depth} text layers. {expected}")
        if self.spec.dim not in (None, dim):
            raise CheckpointError(f"'{self.spec.model}' has a width of {dim}, not {self.spec.dim}; fix `dim`")
        return config

    @property
    def _text(self) -> dict[str, Any]:
        return self.config.get("text_config") or {}

    @cached_property
    def mel_frontend(self) -> LogMelFrontend:
        """Mel front end with the names and defaults of transformers' ClapFeatureExtractor."""
        config = self.source.read_json(self.source.required_file(*_FEATURE_EXTRACTOR, of="a CLAP for audio").name)
        config = config.get("feature_extractor", config)
        rate, fill = config.get("sampling_rate", 48000), config.get("padding", "repeatpad")
        if fill not in ("repeatpad", "repeat", "pad"):
            raise CheckpointError(f"'{self.spec.model}': padding {fill!r} is not supported. Expected repeatpad, repeat or pad")
        return LogMelFrontend(
            sample_rate=rate,
            samples=int(config.get("max_length_s", 10) * rate),
            hop=config.get("hop_length", 480),
            n_fft=config.get("fft_window_size", 1024),
            n_mels=config.get("feature_size", 64),
            f_min=config.get("frequency_min", 0),
            f_max=config.get("frequency_max", 14000),
            scale="htk" if config.get("truncation", "fusion") == "fusion" else "slaney",
            fill=fill,
        )

    @cached_property
    def tokenizer(self) -> Tokenizer:
        _ = self.config  # raises first if the model is not a CLAP
        tokenizer = load_tokenizer(self.source.required_file(_TOKENIZER, of="a CLAP with its tokenizer"))
        tokenizer.enable_truncation(self.max_text_tokens)
        return tokenizer

    def weights(self) -> dict[str, Tensor]:
        """Return the encoders' weights by transformers' names, without buffers that the config determines."""
        sides = ("text", "audio") if self.spec.modalities == "both" else (self.spec.modalities,)
        state_dict = self.source.load_state_dict(tuple(f"{side}_{part}." for side in sides for part in ("model", "projection")))
        return {key: x for key, x in state_dict.items() if not key.endswith(COMPUTED_BUFFERS)}

    def build(self) -> ClapTowers:
        """Return new encoders with their weights; on the meta device without them."""
        with torch.inference_mode(False):
            if torch.get_default_device().type == "meta":
                return build_clap(self.config, self.spec.modalities)
            in_system = bool(self.config.get(_IN_SYSTEM))
            if in_system and not self.spec.train:
                raise CheckpointError(f"'{self.spec.model}' has its weights in the checkpoint of its system. Set train: true")
            return load_clap(self.config, None if in_system else self.weights(), self.spec.modalities, source=self.spec.model)

    def save(self, folder: Path, *, weights: bool) -> None:
        """Write the CLAP, its tokenizer and its feature extractor config to a new folder."""
        config = self.config if weights else self.config | {_IN_SYSTEM: True}
        files = [path for name in _ASSETS if (path := self.source.optional_file(name))]
        save_model(folder, config, files, self.weights() if weights else {})


@cache
def _tiny() -> TemporaryDirectory[str]:
    """Return a temporary folder with a random CLAP, deleted at exit."""
    directory = TemporaryDirectory(prefix="cadenza-clap-", ignore_cleanup_errors=True)
    folder = Path(directory.name)
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *"Ġabcdefghijklmnopqrstuvwxyz0123456789#,"]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))  # type: ignore[assignment]
    tokenizer.save(str(folder / _TOKENIZER))
    text = {"vocab_size": len(vocabulary), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 66, "pad_token_id": 1}
    audio = {"spec_size": 128, "hidden_size": 32, "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 1, 2]}
    audio |= {"num_mel_bins": 32, "patch_embeds_hidden_size": 4, "window_size": 4}
    config = {"model_type": "clap", "projection_dim": 12, "text_config": text, "audio_config": audio}
    extractor = {"feature_size": 32, "sampling_rate": 8000, "hop_length": 80, "max_length_s": 1, "fft_window_size": 256}
    (folder / _FEATURE_EXTRACTOR[0]).write_text(json.dumps(extractor | {"frequency_max": 4000, "truncation": "rand_trunc"}))
    shapes, rng = build_clap(config, "both").state_dict(), torch.Generator().manual_seed(0)
    weights = {key: _random_weight(key, x.shape, rng) for key, x in shapes.items() if x.is_floating_point()}
    counts = {key: torch.zeros((), dtype=torch.long) for key in shapes if key.endswith("num_batches_tracked")}
    save_model(folder, config, [], weights | counts)
    return directory


def _random_weight(key: str, shape: torch.Size, rng: torch.Generator) -> Tensor:
    """Return a random weight, scaled so that different values have different outputs."""
    if len(shape) > 1:
        return torch.randn(shape, generator=rng) * 1.5 / shape[1:].numel() ** 0.5
    if "batch_norm.running" in key:
        return torch.full(shape, -40.0 if key.endswith("mean") else 300.0)  # decibels
    return torch.randn(shape, generator=rng) * 0.1 + float(key.endswith("weight"))
