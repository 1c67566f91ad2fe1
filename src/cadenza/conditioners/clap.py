"""A text or a sound through the towers of a pretrained CLAP (arXiv:2211.06687), which put both in one space."""

import json
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache, cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn import functional as F

from cadenza.conditioners.base import Conditioner, ConditionerSpec, PreparedInputs
from cadenza.core.errors import CheckpointError, RequestError
from cadenza.core.types import ConditionKind, MaskedSequence
from cadenza.dsp.audio import Audio, load_condition_audio, silence
from cadenza.dsp.spectral import LogMelFrontend
from cadenza.nn.clap import COMPUTED_BUFFERS, ClapTowers, build_clap, load_clap
from cadenza.nn.frozen import FrozenEncoder, FrozenEncoderMixin
from cadenza.nn.vector_quantize import ResidualVectorQuantizer

_TOKENIZER = "tokenizer.json"
_SOUNDS = ("preprocessor_config.json", "processor_config.json")  # how sounds are prepared, in one of them
_BESIDE = (_TOKENIZER, "tokenizer_config.json", "special_tokens_map.json", *_SOUNDS)
_ELSEWHERE = "weights_in_system"  # key of the config of a CLAP that was trained: its weights are those of its system
_FITTED = 2000  # values at most that codebooks are fitted to


class ClapSpec(ConditionerSpec):
    """A text or a sound as the vector of `model`, a folder or a repository of the hub, projected to `width`.

    A value is a text, Audio, the path of an audio file, or a mapping with a `text`, an `audio` or both; where `reads` is
    both, a string is a path if it names a file. Of a value with both, generation goes by `first`, a training step by
    the text with the chance `text_probability`, else by the sound. A sound longer than the model hears (10 s) is the
    mean over windows every `stride` seconds. With a `layer` it is the states of the text's tokens there, counted as
    Python counts: 0 are the embeddings, -1 is the last layer.
    """

    type: Literal["clap"] = "clap"
    widget: ClassVar[str] = "text"
    model: str = Field(min_length=1)
    revision: str | None = None  # of the repository
    dim: int | None = Field(default=None, ge=1)  # width of what the towers give; looked up in the config where not given
    modalities: Literal["text", "audio", "both"] = "both"
    prefer: Literal["text", "audio"] = "text"
    text_probability: float = Field(default=0.0, ge=0, le=1)
    layer: int | None = None
    normalize: bool = True  # vectors of length 1
    stride: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    codebooks: int = Field(default=0, ge=0)  # of a residual quantisation of the vector, fitted to the training values
    bins: int = Field(default=1024, ge=2)
    train: bool = False
    max_length: int = Field(default=77, ge=3)  # tokens of a text
    pad_to: Literal["longest", "max_length"] = "longest"
    empty_text: Literal["absent", "read"] = "absent"  # an empty text is no value, or a text of its two marks alone
    project: Literal["always", "auto"] = "always"  # auto: not where the vector has that width already

    @model_validator(mode="after")
    def _layers_are_of_texts(self) -> Self:
        if self.layer is not None and (self.modalities != "text" or self.codebooks):
            raise ValueError("layer: a layer is one of the text tower, token by token; set reads: text and no codebooks")
        return self

    @property
    def output_kind(self) -> ConditionKind:
        return "vector" if self.layer is None else "tokens"

    @classmethod
    def example(cls) -> tuple["ClapSpec", list[Any]]:
        rng = torch.Generator().manual_seed(0)
        values = ["slow piano, 80 bpm", Audio(torch.randn(1, 2, 11000, generator=rng), 8000), {"text": "drums"}]
        return cls(model=_tiny().name, output_dim=8, stride=0.25, text_probability=0.5), values

    def build(self) -> "CLAPConditioner":
        return CLAPConditioner(self)

    def resolve_paths(self, folder: Path) -> Self:
        return self.model_copy(update={"model": str(folder / self.model)}) if self.model.startswith("./") else self


class _Said(NamedTuple):
    """A value as what it says and what it sounds like, one of which may be missing."""

    text: str | None
    audio: Any


class CLAPConditioner(FrozenEncoderMixin, Conditioner[Any]):
    """The towers of a CLAP, codebooks where there are some, and a linear layer."""

    padding_masks: ClassVar[dict[str, str]] = {
        "ids": "mask",
        "mask": "mask",
        "x": "mask",
        "mel": "windows",
        "windows": "windows",
    }
    dtype_ref: Tensor  # of nothing, on the device and of the dtype of this module

    def __init__(self, spec: ClapSpec) -> None:
        super().__init__(spec)
        self.pretrained = ClapEncoder(spec)
        dim = self.pretrained.dim
        self.quantizer = ResidualVectorQuantizer(dim, codebooks=spec.codebooks, bins=spec.bins) if spec.codebooks else None
        self.out = nn.Identity() if spec.project == "auto" and dim == spec.output_dim else nn.Linear(dim, spec.output_dim)
        self.register_buffer("dtype_ref", torch.empty(0), persistent=False)
        if spec.train:
            self.encoder = self.pretrained.build().requires_grad_(True)

    @property
    def placeholder(self) -> _Said:  # type: ignore[override]
        if self.spec.modalities == "audio":
            return _Said(None, silence(self.pretrained.mel_frontend.sample_rate))
        return _Said("", None)

    def prepare_training(self, values: Iterable[Any]) -> None:
        """Fetches what is needed, and puts the codebooks where the vectors of the values are."""
        if self.spec.modalities != "audio":
            _ = self.pretrained.tokenizer
        if not self.spec.train:
            self.pretrained.get(self.dtype_ref.device)
        if self.quantizer is not None:
            found = [row for value in values if value is not None for row in self._vectors(value)]
            if found:  # in an order that is theirs, whatever that of the values
                vectors = torch.unique(torch.stack(found[:_FITTED]), dim=0)
                self.quantizer.kmeans_init(vectors, torch.Generator().manual_seed(0))

    def cache_fingerprint(self) -> tuple[Any, Mapping[str, Tensor]] | None:
        """What features depend on beside the spec: the config and the weights of the towers, where they are not trained."""
        return None if self.spec.train else (self.pretrained.config, self.pretrained.get(self.dtype_ref.device).state_dict())

    def save_assets(self, folder: Path, subfolder: str) -> ConditionerSpec:
        """A frozen CLAP of the hub is named by its commit; of anything else the place gets what the weights lack."""
        here = {"dim": self.pretrained.dim}
        if self.pretrained.source.folder is None and not self.spec.train:
            return self.spec.model_copy(update=here | {"revision": self.pretrained.source.resolved_revision})
        self.pretrained.save(folder / subfolder, weights=not self.spec.train)
        return self.spec.model_copy(update=here | {"model": f"./{subfolder}", "revision": None})

    def prepare(self, values: Sequence[Any]) -> PreparedInputs:
        return super().prepare([self._said(value) for value in values])

    def preprocess(self, values: Sequence[_Said]) -> dict[str, Tensor]:
        """The `ids` of tokens and the `mask` of real ones [b n]; a picture of each window, `mel` [b w f m],
        and which `windows` there are.

        Where there may be both, also which items are `told`, `heard`, and to be embedded `by_text`.
        """
        tensors = {}
        if self.spec.modalities != "audio":
            tensors |= self._ids([value.text or "" for value in values])
        if self.spec.modalities != "text":
            tensors |= self._mel([value.audio for value in values])
        if self.spec.modalities == "both":
            told, sounds = (torch.tensor([x is not None for x in each]) for each in zip(*values, strict=True))
            tensors |= {"told": told, "heard": sounds, "by_text": told & ~sounds if self.spec.prefer == "audio" else told}
        return tensors

    def augment(self, prepared: PreparedInputs, rng: torch.Generator) -> PreparedInputs:
        """Of the items with both, some by their text and the others by their sound."""
        if self.spec.modalities != "both":
            return prepared
        told, sounds = prepared.tensors["told"], prepared.tensors["heard"]
        drawn = torch.rand(len(told), generator=rng).to(told.device) < self.spec.text_probability
        return PreparedInputs({**prepared.tensors, "by_text": told & (drawn | ~sounds)}, prepared.present)

    def encode_frozen(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.spec.train:
            return tensors
        towers = self.pretrained.get(next(iter(tensors.values())).device)
        with _exact(self.dtype_ref.device.type):
            return self._states(towers, tensors) if self.spec.layer is not None else {"x": self._some(towers, tensors)}

    def project(self, tensors: dict[str, Tensor]) -> MaskedSequence:
        if self.spec.train:
            with _exact(self.dtype_ref.device.type):
                layer = self.spec.layer
                tensors = self._states(self.encoder, tensors) if layer is not None else {"x": self._all(self.encoder, tensors)}
        if self.spec.layer is not None:
            return MaskedSequence(self.out(tensors["x"].to(self.dtype_ref.dtype)) * tensors["mask"][..., None], tensors["mask"])
        x = tensors["x"]
        if self.quantizer is not None:
            with _exact(self.dtype_ref.device.type):
                z = x.to(self.quantizer.dtype)[..., None]
                x = x + (self.quantizer.decode(self.quantizer.encode(z))[..., 0] - x).detach()
        return MaskedSequence(self.out(x.to(self.dtype_ref.dtype))[:, None], torch.ones_like(x[:, :1], dtype=torch.bool))

    def train(self, mode: bool = True) -> Self:
        """The towers stay as they are in evaluation: their batch norm must not mix the items of a batch."""
        super().train(mode)
        if self.spec.train:
            self.encoder.eval()
        return self

    def _states(self, towers: "ClapTowers", tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        mask = tensors["mask"]
        return {"x": towers.text_hidden_states(tensors["ids"], mask, self.spec.layer) * mask[..., None], "mask": mask}

    def _some(self, towers: "ClapTowers", tensors: dict[str, Tensor]) -> Float[Tensor, "b e"]:
        """The vector of each item, without a look at what it does not go by."""
        any_of = next(iter(tensors.values()))
        here = torch.ones(len(any_of), dtype=torch.bool, device=any_of.device)
        text = {"text": here, "audio": ~here, "both": tensors.get("by_text", here)}[self.spec.modalities]
        x = torch.zeros(len(here), self.pretrained.dim, device=here.device)
        if text.any():
            x[text] = self._unit(towers.text(tensors["ids"][text], tensors["mask"][text]))
        if (there := tensors["windows"] & ~text[:, None] if "windows" in tensors else text[:0]).any():
            vectors = self._unit(towers.audio(tensors["mel"][there]))
            mean = torch.zeros_like(x).index_add_(0, there.nonzero()[:, 0], vectors) / there.sum(1).clamp(min=1)[:, None]
            x = torch.where(text[:, None], x, self._unit(mean))
        return x

    def _all(self, towers: "ClapTowers", tensors: dict[str, Tensor]) -> Float[Tensor, "b e"]:
        """The same in shapes that do not depend on the values."""
        text = sound = None
        if "ids" in tensors:
            text = self._unit(towers.text(tensors["ids"], tensors["mask"]))
        if "mel" in tensors:
            there = tensors["windows"][..., None]
            vectors = self._unit(towers.audio(tensors["mel"].flatten(0, 1))).unflatten(0, there.shape[:2])
            sound = self._unit((vectors * there).sum(1) / there.sum(1).clamp(min=1))
        if text is None or sound is None:
            return sound if text is None else text  # type: ignore[return-value]  # one of them is there
        return torch.where(tensors["by_text"][:, None], text, sound)

    def _unit(self, x: Float[Tensor, "n e"]) -> Float[Tensor, "n e"]:
        return F.normalize(x, dim=-1) if self.spec.normalize else x

    def _vectors(self, value: Any) -> list[Tensor]:
        """The vectors that a training value may be, each made alone so that no other value matters."""
        said = self._said(value)
        ways = [] if said is None else [_Said(said.text, None), _Said(None, said.audio)]
        read = [self.preprocess([way]) for way in ways if way != (None, None)]
        moved = [{name: x.to(self.dtype_ref.device) for name, x in tensors.items()} for tensors in read]
        with torch.no_grad(), _exact(self.dtype_ref.device.type):
            towers = self.encoder if self.spec.train else self.pretrained.get(self.dtype_ref.device)
            return [self._some(towers, tensors)[0] for tensors in moved]

    def _said(self, value: Any) -> _Said | None:
        """What a value gives to read, or None where that is nothing."""
        reads = self.spec.modalities
        if isinstance(value, Mapping):
            if not value.keys() <= {"text", "audio"}:
                raise RequestError(
                    f"a mapping may have a 'text' and an 'audio', not {sorted(value.keys() - {'text', 'audio'})}"
                )
            text, audio = value.get("text"), value.get("audio")
        elif isinstance(value, Audio | Path) or (
            isinstance(value, str) and (reads == "audio" or (reads == "both" and _file(value)))
        ):
            text, audio = None, value
        else:
            text, audio = value, None
        if not isinstance(text, str | None):
            raise RequestError(f"a text or a sound is needed, got {value!r} ({type(value).__name__})")
        usable = _Said(None if reads == "audio" else text, None if reads == "text" else audio)
        if usable == (None, None) and (text is not None or audio is not None):
            other = "text" if reads == "audio" else "sound"
            raise RequestError(f"this control reads no {other}; give {'a sound' if reads == 'audio' else 'a text'}")
        if self.spec.empty_text == "absent" and usable.text is not None and not usable.text.strip():
            usable = _Said(None, usable.audio)
        return None if usable == (None, None) else usable

    def _ids(self, texts: Sequence[str]) -> dict[str, Tensor]:
        found = [self.pretrained.tokenizer.encode(text) for text in texts]
        most = self.pretrained.max_text_tokens
        if cut := sum(bool(encoding.overflowing) for encoding in found):
            warnings.warn(f"{cut} texts have more than {most} tokens, which are all that is read (`max_length`)", stacklevel=2)
        n = most if self.spec.pad_to == "max_length" else max(len(encoding.ids) for encoding in found)
        ids = torch.full((len(found), n), self.pretrained.pad_token_id)
        for row, encoding in zip(ids, found, strict=True):
            row[: len(encoding.ids)] = torch.tensor(encoding.ids)
        return {"ids": ids, "mask": torch.arange(n) < torch.tensor([len(encoding.ids) for encoding in found])[:, None]}

    def _mel(self, sounds: Sequence[Any]) -> dict[str, Tensor]:
        how = self.pretrained.mel_frontend
        pictures = [
            None if x is None else how(load_condition_audio([x], how.sample_rate).wave[0, 0], stride=self.spec.stride)
            for x in sounds
        ]
        counts = torch.tensor([0 if picture is None else len(picture) for picture in pictures])
        w = max(int(counts.max()), int(self.spec.train))
        mel = torch.zeros(len(sounds), w, *how.shape)
        for row, picture in zip(mel, pictures, strict=True):
            if picture is not None:
                row[: len(picture)] = picture
        return {"mel": mel, "windows": torch.arange(w) < counts[:, None]}


class ClapEncoder(FrozenEncoder[ClapTowers]):
    """The pretrained CLAP of a spec."""

    @property
    def dim(self) -> int:
        """The width of the vectors, or of the states of a layer."""
        if self.spec.dim is not None:
            return self.spec.dim
        return self.config.get("projection_dim", 512) if self.spec.layer is None else self._text.get("hidden_size", 768)

    @property
    def pad_token_id(self) -> int:
        return self._text.get("pad_token_id", 1)

    @property
    def max_text_tokens(self) -> int:
        """Tokens of a text at most: positions are counted from the one after padding's."""
        return min(self.spec.max_length, self._text.get("max_position_embeddings", 514) - self.pad_token_id - 1)

    @cached_property
    def config(self) -> dict[str, Any]:
        """What config.json says of the CLAP."""
        config = self.source.read_json("config.json", of="a CLAP")
        if config.get("model_type") != "clap":
            raise CheckpointError(
                f"'{self.spec.model}' is no CLAP: it is of type {config.get('model_type')!r}; give one in the layout of "
                "transformers, such as laion/clap-htsat-unfused (a .pt file of LAION must be converted first)"
            )
        text, layer = config.get("text_config") or {}, self.spec.layer
        depth, dim = text.get("num_hidden_layers", 12), config.get("projection_dim", 512)
        if layer is not None and not -depth - 1 <= layer <= depth:
            raise CheckpointError(f"'{self.spec.model}' has {depth} layers for texts; a layer {layer} is none of them")
        dim = dim if layer is None else text.get("hidden_size", 768)
        if self.spec.dim not in (None, dim):
            raise CheckpointError(f"'{self.spec.model}' has a width of {dim}, not {self.spec.dim}; mend `dim`")
        return config

    @property
    def _text(self) -> dict[str, Any]:
        return self.config.get("text_config") or {}

    @cached_property
    def mel_frontend(self) -> LogMelFrontend:
        """How sounds are prepared, with the names and the defaults of transformers' ClapFeatureExtractor."""
        found = self.source.read_json(self.source.required_file(*_SOUNDS, of="a CLAP that hears").name)
        found = found.get("feature_extractor", found)
        rate, fill = found.get("sampling_rate", 48000), found.get("padding", "repeatpad")
        if fill not in ("repeatpad", "repeat", "pad"):
            raise CheckpointError(
                f"'{self.spec.model}': sounds with a padding {fill!r} are not known; repeatpad, repeat or pad is"
            )
        return LogMelFrontend(
            sample_rate=rate,
            samples=int(found.get("max_length_s", 10) * rate),
            hop=found.get("hop_length", 480),
            n_fft=found.get("fft_window_size", 1024),
            n_mels=found.get("feature_size", 64),
            f_min=found.get("frequency_min", 0),
            f_max=found.get("frequency_max", 14000),
            scale="htk" if found.get("truncation", "fusion") == "fusion" else "slaney",
            fill=fill,
        )

    @cached_property
    def tokenizer(self) -> Tokenizer:
        _ = self.config  # a folder that is no CLAP is called that first
        path = self.source.required_file(_TOKENIZER, of="a CLAP with its tokenizer")
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # `tokenizers` raises nothing narrower
            raise CheckpointError(f"{path} is no tokenizer ({error}); copy it again") from None
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.max_text_tokens)
        return tokenizer

    def weights(self) -> dict[str, Tensor]:
        """The towers' weights by transformers' names, without what follows from the config."""
        sides = ("text", "audio") if self.spec.modalities == "both" else (self.spec.modalities,)
        found = self.source.load_state_dict(tuple(f"{side}_{part}." for side in sides for part in ("model", "projection")))
        return {key: x for key, x in found.items() if not key.endswith(COMPUTED_BUFFERS)}

    def build(self) -> ClapTowers:
        """Towers of their own; on the meta device, to be filled later, their weights are not read."""
        with torch.inference_mode(False):
            if torch.get_default_device().type == "meta":
                return build_clap(self.config, self.spec.modalities)
            elsewhere = bool(self.config.get(_ELSEWHERE))
            if elsewhere and not self.spec.train:
                raise CheckpointError(f"'{self.spec.model}' has its weights among those of its system; set train: true")
            return load_clap(self.config, None if elsewhere else self.weights(), self.spec.modalities, source=self.spec.model)

    def save(self, folder: Path, *, weights: bool) -> None:
        """Writes a folder that is a CLAP with its tokenizer and what else it needs."""
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(self.config | ({} if weights else {_ELSEWHERE: True}), indent=2) + "\n")
        for name in _BESIDE:
            if path := self.source.optional_file(name):
                (folder / name).write_bytes(path.read_bytes())
        if weights:
            path = folder / "model.safetensors"
            save_file({key: x.contiguous() for key, x in self.weights().items()}, path, {"format": "pt"})
            path.chmod((folder / "config.json").stat().st_mode)  # which safetensors makes its owner's alone


def _exact(device: str) -> AbstractContextManager[Any]:
    """Full precision, whatever is in force around it."""
    return nullcontext() if device == "meta" else torch.autocast(device, enabled=False)


def _file(value: str) -> bool:
    try:
        return Path(value).is_file()
    except (OSError, ValueError):  # no name that a file could have
        return False


@cache
def _tiny() -> TemporaryDirectory[str]:
    """A folder with an untrained CLAP of a few letters, for as long as this process lives."""
    place = TemporaryDirectory(prefix="cadenza-clap-", ignore_cleanup_errors=True)
    folder = Path(place.name)
    vocabulary = {
        token: i for i, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", *"Ġabcdefghijklmnopqrstuvwxyz0123456789#,"])
    }
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))  # type: ignore[assignment]
    tokenizer.save(str(folder / _TOKENIZER))
    text = {"vocab_size": len(vocabulary), "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 2, "max_position_embeddings": 66, "pad_token_id": 1}
    audio = {"spec_size": 128, "hidden_size": 32, "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 1, 2]}
    audio |= {"num_mel_bins": 32, "patch_embeds_hidden_size": 4, "window_size": 4}
    config = {"model_type": "clap", "projection_dim": 12, "text_config": text, "audio_config": audio}
    (folder / "config.json").write_text(json.dumps(config))
    sounds = {"feature_size": 32, "sampling_rate": 8000, "hop_length": 80, "max_length_s": 1, "fft_window_size": 256}
    (folder / _SOUNDS[0]).write_text(json.dumps(sounds | {"frequency_max": 4000, "truncation": "rand_trunc"}))
    with torch.device("meta"):
        shapes = ClapEncoder(ClapSpec(model=place.name, output_dim=1)).build().state_dict()
    rng = torch.Generator().manual_seed(0)
    made = {key: _drawn(key, x.shape, rng) for key, x in shapes.items() if x.is_floating_point()}
    counts = {key: torch.zeros((), dtype=torch.long) for key in shapes if key.endswith("num_batches_tracked")}
    save_file(made | counts, folder / "model.safetensors", {"format": "pt"})
    return place


def _drawn(key: str, shape: torch.Size, rng: torch.Generator) -> Tensor:
    """A weight of chance under which different values stay different."""
    if len(shape) > 1:
        return torch.randn(shape, generator=rng) * 1.5 / shape[1:].numel() ** 0.5
    if "batch_norm.running" in key:
        return torch.full(shape, -40.0 if key.endswith("mean") else 300.0)  # decibels
    return torch.randn(shape, generator=rng) * 0.1 + float(key.endswith("weight"))
