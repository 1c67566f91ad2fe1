"""Geometry: published models by their sizes, written to a folder with random weights as transformers writes them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from cadenza.apps.bench import WORDS
from cadenza.core.errors import BenchmarkError
from cadenza.core.spec import did_you_mean
from cadenza.importers.catalog import MODELS, LMGeometry, PublishedModel
from compare.library import import_transformers

TEXT = {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_heads": 12, "num_layers": 12, "vocab_size": 32128}  # t5-base
_SOUND_24 = {
    **{"sampling_rate": 24000, "upsampling_ratios": [8, 5, 4, 2], "num_filters": 32, "codebook_size": 1024},
    **{"target_bandwidths": [1.5, 3.0, 6.0, 12.0, 24.0], "use_causal_conv": True, "use_conv_shortcut": True},
}
_SOUND_32 = {
    **{"sampling_rate": 32000, "upsampling_ratios": [8, 5, 4, 4], "num_filters": 64, "codebook_size": 2048},
    **{"target_bandwidths": [2.2], "use_causal_conv": False, "use_conv_shortcut": False},
}
_TINY_TEXT = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2, "num_layers": 2, "vocab_size": 64}
_TINY_SOUND = {"num_filters": 4, "hidden_size": 8, "codebook_dim": 8, "codebook_size": 64, "num_lstm_layers": 1}
_TINY_RATE = {
    "sampling_rate": 8000,
    "upsampling_ratios": [5, 4, 4, 2],
    "target_bandwidths": [1.2],
}  # 50 frames/s of 4 codebooks


@dataclass(frozen=True)
class ModelGeometry:
    """The fields of transformers' configs; without a language model, a codec alone."""

    name: str
    audio: Mapping[str, Any]
    text: Mapping[str, Any] | None = None
    decoder: Mapping[str, Any] | None = None

    @property
    def parameters(self) -> int:
        """How many numbers the whole has."""
        with torch.device("meta"):
            model = self.model()
        return sum(x.numel() for x in model.parameters())

    def model(self) -> Any:
        """transformers' model, on the default device, as that library begins one."""
        peer = import_transformers()
        sound = peer.EncodecConfig(**self.audio)
        if self.decoder is None or self.text is None:
            return peer.EncodecModel(sound).eval()
        config = peer.MusicgenConfig(
            text_encoder=peer.T5Config(**self.text).to_dict(),
            audio_encoder=sound.to_dict(),
            decoder=peer.MusicgenDecoderConfig(**self.decoder).to_dict(),
        )
        return peer.MusicgenForConditionalGeneration(config).eval()


def list_geometries() -> list[str]:
    """What can be built."""
    return [short for name in MODELS if (short := _short(name)) is not None]


def geometry(name: str, *, quick: bool = False) -> ModelGeometry:
    """The geometry of that name; a tiny one of the same kind where it shall be `quick`."""
    found = _published(name)
    audio = {24000: _SOUND_24, 32000: _SOUND_32}[found.sample_rate]
    if quick:
        audio = {**audio, **_TINY_SOUND, **_TINY_RATE}
    if found.language is None:
        return ModelGeometry(name, audio)
    decoder = _decoder(found.language, bins=audio["codebook_size"])
    if quick:
        decoder |= {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 64}
    return ModelGeometry(name, audio, _TINY_TEXT if quick else TEXT, decoder)


def parameters(name: str) -> int:
    """How many numbers the model of that name has, as it was published."""
    return _published(name).parameters


def _published(name: str) -> PublishedModel:
    found = next((one for full, one in MODELS.items() if _short(full) == name), None)
    if found is None:
        raise BenchmarkError(f"unknown geometry '{name}'.{did_you_mean(name, list_geometries())}")
    return found


def _short(name: str) -> str | None:
    """The name without its owner, of those whose parts can be built here: `musicgen-small`, `encodec-24khz`."""
    published, short = MODELS[name], name.rpartition("/")[2].replace("_", "-")
    language = published.language
    plain = published.sample_rate in (24000, 32000) if language is None else not language.audio_condition
    return short if plain and published.layout == "transformers" else None


def _decoder(language: LMGeometry, *, bins: int) -> dict[str, Any]:
    return {
        "hidden_size": language.width,
        "num_hidden_layers": language.depth,
        "num_attention_heads": language.heads,
        "ffn_dim": 4 * language.width,
        "num_codebooks": language.codebooks,
        "audio_channels": language.sides,
        "vocab_size": bins,
        "pad_token_id": bins,
        "bos_token_id": bins,
        "max_position_embeddings": 2048,
    }


def write(geometry: ModelGeometry, folder: Path, *, seed: int = 0) -> None:
    """A model of that geometry with weights drawn from `seed`, and a tokenizer of a word a token, in a folder."""
    model = random_model(geometry, seed)
    if geometry.decoder is not None:
        bins = geometry.decoder["vocab_size"]
        special = dict.fromkeys(("pad_token_id", "bos_token_id", "decoder_start_token_id"), bins)
        for key, value in {**special, "max_length": 1504, "do_sample": True, "guidance_scale": 3.0}.items():
            setattr(model.generation_config, key, value)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(folder)
    except OSError as error:
        raise BenchmarkError(f"{folder}: the random weights could not be written ({error}); free space there") from None
    if geometry.text is not None:
        _tokenizer(folder)


def random_model(geometry: ModelGeometry, seed: int) -> Any:
    """transformers' model with weights that all matter: what it writes depends on the text and on what it has written.

    That library begins codebooks at zero, and a language model so near to it that only positions count.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = geometry.model()
        for name, x in model.named_buffers():
            if name.endswith((".embed", ".embed_avg")):
                x.normal_()
            elif name.endswith((".inited", ".cluster_size")):
                x.fill_(1)
        for name, x in model.named_parameters():
            if name.startswith(("decoder.", "enc_to_dec_proj.")) and x.ndim == 2:
                x.normal_(std=2.0 if "embed_tokens" in name else x.shape[1] ** -0.5)
    return model


def _tokenizer(folder: Path) -> None:
    vocabulary = {token: i for i, token in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])  # type: ignore[assignment]
    tokenizer.save(str(folder / "tokenizer.json"))
    own = {"tokenizer_class": "T5Tokenizer", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "extra_ids": 0}
    (folder / "tokenizer_config.json").write_text(json.dumps(own))
