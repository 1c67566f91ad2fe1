"""Folders of T5s as transformers writes them, with weights of chance, and what it makes of texts."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoConfig, AutoModelForTextEncoding, PreTrainedTokenizerFast

from cadenza.conditioners.t5 import T5Conditioner, T5Spec
from cadenza.core.types import Condition

TEXTS = ["slow piano in a minor", "drums", "fast violins, and a choir of fifty that never ends"]
PIECES = [*"▁abcdefghijklmnopqrstuvwxyz0123456789,", "▁piano", "▁drums", "▁a", "an", "ing", "▁choir"]


def model(folder: Path, *, kind: str = "t5", seed: int = 0, scale: float = 1.0, **sizes: Any) -> Path:
    """A folder as transformers writes it, with a tokenizer of a few pieces."""
    defaults = {"d_model": 16, "d_kv": 4, "d_ff": 24, "num_heads": 4, "num_layers": 2, "vocab_size": len(PIECES) + 3}
    config = AutoConfig.for_model(kind, **(defaults | {"pad_token_id": 0} | sizes))
    torch.manual_seed(seed)
    encoder = AutoModelForTextEncoding.from_config(config)
    with torch.no_grad():
        for name, x in encoder.named_parameters():
            x.normal_().mul_((scale if "Dense" in name else 1.0) / x.shape[-1] ** 0.5)
    encoder.save_pretrained(folder)
    tokens(folder)
    return folder


def tokens(folder: Path) -> None:
    vocabulary = [(piece, 0.0) for piece in ("<pad>", "</s>", "<unk>")] + [(p, -1.0 / len(p)) for p in PIECES]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()])
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))


def part_of(folder: Path | str, **fields: Any) -> T5Conditioner:
    spec = T5Spec.parse(
        {"type": "t5", "model": str(folder), "output_dim": 16, "project": "auto", "null_embedding": "zeros"} | fields
    )
    return spec.build().eval()


@torch.no_grad()
def run(part: T5Conditioner, texts: list[str | None]) -> Condition:
    return part(part.encode(part.prepare(texts)))


def theirs(folder: Path, text: str) -> torch.Tensor:
    """What transformers makes of one text."""
    encoder = AutoModelForTextEncoding.from_pretrained(folder).eval()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    with torch.no_grad():
        return encoder(torch.tensor([tokenizer.encode(text)])).last_hidden_state[0]
