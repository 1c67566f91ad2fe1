"""Base classes of conditioners with a frozen encoder: a codec, or a pretrained model in a folder or on the hub."""

import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from einops import rearrange
from jaxtyping import Float, Int
from pydantic import Field, model_validator
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional as F

from cadenza.codecs.base import Codec, CodecSpec
from cadenza.conditioners.base import Conditioner, ConditionerSpec, EmptyText, ProjectionConditioner, pad_rows, warn_truncated
from cadenza.core.errors import CheckpointError, RequestError
from cadenza.core.hub import ModelSource
from cadenza.core.types import ConditionKind, Latents, MaskedSequence
from cadenza.dsp.audio import Audio, load_condition_audio, silence
from cadenza.nn.frozen import FrozenEncoder, FrozenEncoderMixin
from cadenza.nn.tokenizers import load_sentencepiece


class CodecFramesConditionerSpec(ConditionerSpec):
    """Spec of a conditioner on frames of a frozen `codec` of audio; the codec is saved with the system.

    Before training the codec loads its weights from `model`, a saved system with the same codec. With
    `input_kind: frames` values are frames of the codec, and the conditioner holds no codec.
    """

    output_kind: ClassVar[ConditionKind] = "frames"
    codec: CodecSpec
    model: str | None = None
    input_kind: Literal["audio", "frames"] = "audio"

    @model_validator(mode="after")
    def _check_codec_frames(self) -> Self:
        if self.codec.uses_chunks:
            raise ValueError("codec: its frames belong to overlapping chunks. Expected consecutive frames. Use another codec.")
        return self

    @property
    def sample_rate(self) -> int:
        """Sample rate of the codec in Hz."""
        return self.codec.sample_rate

    @property
    def hop(self) -> int:
        """Samples per frame of the codec."""
        return self.codec.hop_length


class CodecConditioner(Conditioner[Any]):
    """Base class of conditioners with a frozen `codec`, or None if unused; their specs have `model`."""

    def __init__(self, spec: ConditionerSpec, codec: CodecSpec | None) -> None:
        super().__init__(spec)
        self.codec: Codec | None = None if codec is None else codec.build().requires_grad_(False)

    def prepare_training(self, values: Iterable[Any]) -> None:
        """Load the codec from `spec.model`; warns if that is not set."""
        if self.codec is not None and self.spec.model is not None:
            self.codec.load_weights_from(self.spec.model)
        elif self.codec is not None:
            problem = f"the codec of a `{self.spec.type}` conditioner has random weights and is frozen"
            warnings.warn(f"{problem}; set `model` to load pretrained weights", stacklevel=2)

    def cache_fingerprint(self) -> tuple[Any, Mapping[str, Tensor]] | None:
        """Return what features depend on in addition to the spec: the weights of the codec; None without a codec."""
        return None if self.codec is None else ({}, self.codec.state_dict())

    def embed_audio(
        self, wave: Float[Tensor, "b c t"], lengths: Int[Tensor, " b"], **options: Any
    ) -> tuple[Float[Tensor, "b f d"], Int[Tensor, " b"]]:
        """Return embedded codec frames of audio with `lengths` in samples, and their number; no autocast."""
        assert self.codec is not None
        with torch.autocast(wave.device.type, enabled=False):
            frames = self.codec.encode(Audio(wave, self.codec.spec.sample_rate, lengths), **options)
            return self.codec.embed(frames).transpose(1, 2), frames.lengths

    def save_assets(self, folder: Path, subfolder: str) -> ConditionerSpec:
        return self.spec.model_copy(update={"model": None})  # the system's checkpoint holds the codec


class CodecFramesConditioner(CodecConditioner):
    """Base class of conditioners on audio, or on frames of `dim` numbers, for a frozen codec."""

    padding_masks = dict.fromkeys(("wave", "x", "mask"), "mask")

    def __init__(self, spec: CodecFramesConditionerSpec) -> None:
        super().__init__(spec, spec.codec if spec.input_kind == "audio" else None)
        with torch.device("meta"):
            self.dim = spec.codec.build().embedding_dim

    def short_input(self) -> Any:
        """Return one frame of zeros, or silence of one frame."""
        return torch.zeros(self.dim, 1) if self.codec is None else silence(self.spec.sample_rate, samples=self.spec.hop)

    def pack(self, values: Sequence[Any], max_frames: int | None = None) -> tuple[Tensor, Int[Tensor, " b"]]:
        """Return audio in frames [b, n, c, s] and its samples [b], or frames [b, n, d] and their numbers.

        They are cut or padded to `max_frames`. Raises RequestError unless values are Audio of one clip or paths, or with
        `input_kind: frames` Latents of one clip or tensors [d, f].
        """
        if self.codec is None:
            x, mask = pad_rows([self._frames(value) for value in values])
            return F.pad(x, (0, 0, 0, (max_frames or x.shape[1]) - x.shape[1])), mask.sum(1)  # negative: cut
        codec = self.spec.codec
        audio = load_condition_audio(values, codec.sample_rate, channels=codec.channels)
        n = max_frames or codec.num_frames(audio.wave.shape[-1])
        samples = n * self.spec.hop
        wave = F.pad(audio.wave, (0, samples - audio.wave.shape[-1]))  # negative: cut
        return rearrange(wave, "b c (n s) -> b n c s", n=n), audio.lengths.clamp(max=samples)

    def num_frames(self, lengths: Int[Tensor, "..."]) -> Int[Tensor, "..."]:
        """Return the number of frames of inputs with the lengths of `pack`."""
        if self.codec is None:
            return lengths
        return lengths.clone().apply_(lambda length: self.spec.codec.num_frames(length) if length else 0)

    def _frames(self, value: Any) -> Float[Tensor, "f d"]:
        z = value.z[0, :, : int(value.lengths)] if isinstance(value, Latents) and len(value) == 1 else value
        if not isinstance(z, Tensor) or z.ndim != 2 or z.shape[0] != self.dim or not z.shape[1] or not bool(z.isfinite().all()):
            received = f"a tensor {list(z.shape)}" if isinstance(z, Tensor) else type(z).__name__
            expected = f"Latents of one clip or a tensor [{self.dim}, f]"
            raise RequestError(f"finite frames of a codec are needed, {expected}, got {received}")
        return z.float().cpu().T


class PretrainedConditionerSpec(ConditionerSpec):
    """Spec of a conditioner with a pretrained encoder `model`, a folder or a repository of the hub.

    Unless it is to `train`, the encoder is frozen and not part of the saved weights: a saved system names its revision, or
    holds a copy of a local folder.
    """

    path_fields: ClassVar[tuple[str, ...]] = ("model",)
    model: str = Field(min_length=1)
    revision: str | None = None  # commit, branch or tag of the repository
    dim: int | None = Field(default=None, ge=1)  # width of the encoder; default: from its config
    train: bool = False
    pad_to: Literal["longest", "max_length"] = "longest"
    empty_text: EmptyText = "null"
    project: Literal["always", "auto"] = "always"  # auto: only if the encoder's width differs from output_dim


class PretrainedConditioner(FrozenEncoderMixin, ProjectionConditioner[Any]):
    """Base class of conditioners with a pretrained encoder, which is `encoder` if it is trained.

    `pretrained` has `dim`, `config`, `source`, `build`, `get` and `save(folder, weights=)`.
    """

    def add_projection(self, dim: int) -> None:
        """Add the output projection, and the encoder if it is trained."""
        super().add_projection(dim)
        if self.spec.train:
            self.encoder = self.pretrained.build().requires_grad_(True)

    @property
    def frozen_encoder(self) -> FrozenEncoder[Any] | None:  # type: ignore[override]
        return None if self.spec.train else self.pretrained

    def cache_fingerprint(self) -> tuple[Any, Mapping[str, Tensor]] | None:
        """Return config and weights of the encoder, on which features depend; None if it is trained."""
        return None if self.spec.train else (self.pretrained.config, self.pretrained.get(self.dtype_ref.device).state_dict())

    def encode_frozen(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.spec.train:
            return tensors
        return self.run_encoder(self.pretrained.get(next(iter(tensors.values())).device), tensors)

    def project(self, tensors: dict[str, Tensor]) -> MaskedSequence:
        return super().project(self.run_encoder(self.encoder, tensors) if self.spec.train else tensors)

    def autocast(self, dtype: torch.dtype | None = None) -> AbstractContextManager[Any]:
        """Return a context with autocast to `dtype`, or without autocast, for the encoder."""
        device = self.dtype_ref.device.type
        return nullcontext() if device == "meta" else torch.autocast(device, dtype, enabled=dtype is not None)

    @abstractmethod
    def run_encoder(self, encoder: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return features `x` [b, n, e] and their `mask` [b, n] of the tensors of `preprocess`."""

    def save_assets(self, folder: Path, subfolder: str) -> ConditionerSpec:
        pretrained, train = self.pretrained, self.spec.train
        fields = save_source(pretrained.source, partial(pretrained.save, weights=not train), folder, subfolder, copy=train)
        return self.spec.model_copy(update={"dim": pretrained.dim, **fields})


def save_source(
    source: ModelSource, write: Callable[[Path], None], folder: Path, subfolder: str, *, copy: bool = False
) -> dict[str, Any]:
    """Return the fields `model` and `revision` to save; `write` saves a local model, or with `copy` any, to the subfolder."""
    if source.folder is None and not copy:
        return {"revision": source.resolved_revision}
    write(folder / subfolder)
    return {"model": f"./{subfolder}", "revision": None}


def load_tokenizer(path: Path) -> Tokenizer:
    """Load a tokenizer from `tokenizer.json` or a SentencePiece file, without truncation and padding; or CheckpointError."""
    try:
        tokenizer = Tokenizer.from_file(str(path)) if path.suffix == ".json" else load_sentencepiece(path)
    except Exception as error:  # `tokenizers` raises nothing narrower
        raise CheckpointError(f"{path} is not a tokenizer ({error}); copy it again") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Return token ids of texts, special tokens included; warns if a text is truncated."""
    encodings = [tokenizer.encode(text) for text in texts]
    for encoding in encodings:
        if lost := sum(len(part.ids) - sum(part.special_tokens_mask) for part in encoding.overflowing):
            warn_truncated(len(encoding.ids) + lost, len(encoding.ids))
    return [encoding.ids for encoding in encodings]


def example_codec() -> CodecSpec:
    """Return a tiny codec for `example` of specs."""
    fields = {"sample_rate": 800, "strides": (4, 2), "codebooks": 2, "bins": 16, "filters": 2, "dimension": 4}
    return CodecSpec.parse({"type": "encodec", **fields})
