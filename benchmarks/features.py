"""Cost of the feature cache against the encoder: a T5 of random weights, prompts one at a time and in batches.

    python benchmarks/features.py --size small --prompts 32

Times are of the processor, which other programs on the machine do not lengthen; one thread.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from cadenza.conditioners.base import ConditionerSet
from cadenza.conditioners.t5 import T5Spec
from cadenza.system.feature_cache import FeatureCache

SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"d_model": 128, "d_kv": 32, "d_ff": 256, "num_heads": 4, "num_layers": 2},
    "mini": {"d_model": 384, "d_kv": 64, "d_ff": 1536, "num_heads": 8, "num_layers": 4},
    "small": {"d_model": 512, "d_kv": 64, "d_ff": 2048, "num_heads": 8, "num_layers": 6},
    "base": {"d_model": 768, "d_kv": 64, "d_ff": 3072, "num_heads": 12, "num_layers": 12},
}
WORDS = (
    "slow fast warm piano drums choir strings bass in a minor major at beats with soft bright organ flute and 90 120".split()
)


def folder(size: str, place: Path) -> Path:
    """A T5 as transformers writes it, and a tokenizer of a word a token."""
    from transformers import T5Config, T5EncoderModel

    T5EncoderModel(T5Config(**SIZES[size], vocab_size=1000, pad_token_id=0)).save_pretrained(place)
    vocabulary = {token: i for i, token in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])  # type: ignore[assignment]
    tokenizer.save(str(place / "tokenizer.json"))
    return place


def timed(action: Callable[[], Any]) -> float:
    start = time.process_time()
    action()
    return time.process_time() - start


def measure(size: str, prompts: int, batch: int) -> dict[str, Any]:
    """Milliseconds of the processor for each prompt: the encoder alone, filling the cache, and finding all there."""
    rng = torch.Generator().manual_seed(0)
    picks = torch.randint(len(WORDS), (prompts, 20), generator=rng).tolist()
    texts = [" ".join(WORDS[i] for i in row) for row in picks]
    with tempfile.TemporaryDirectory() as place:
        part = T5Spec(model=str(folder(size, Path(place) / "t5")), output_dim=64).build().eval()
        parts, cache = ConditionerSet({"prompt": part}), FeatureCache(Path(place) / "cache")
        batches = [parts.prepare([{"prompt": text} for text in texts[i : i + batch]]) for i in range(0, prompts, batch)]
        parts.encode(batches[0])  # reads the weights
        opening = timed(lambda: cache.encode(parts, {}, "cpu") or len(cache))
        first = timed(lambda: cache.encode(parts, parts.prepare([{"prompt": ""}]), "cpu"))  # hashes the weights, once
        with torch.inference_mode():
            plain = timed(lambda: [parts.encode(prepared) for prepared in batches])
            filled = timed(lambda: [cache.encode(parts, prepared, "cpu") for prepared in batches])
            found = timed(lambda: [cache.encode(parts, prepared, "cpu") for prepared in batches])
        assert (cache.made, cache.found) == (prompts + 1, prompts)
        cache.close()
    each = {name: round(1000 * x / prompts, 3) for name, x in (("uncached", plain), ("filling", filled), ("cached", found))}
    once = {"opening_ms": round(1000 * opening, 1), "hashing_ms": round(1000 * first, 1)}
    return {"size": size, "prompts": prompts, "batch": batch, **each, "cached/uncached": round(found / plain, 4), **once}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=list(SIZES), default="small")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    print(json.dumps(measure(asked.size, asked.prompts, asked.batch)))


if __name__ == "__main__":
    main()
