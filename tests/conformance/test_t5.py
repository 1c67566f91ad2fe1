"""The t5 conditioner gives the tokens, hidden states and conditions of transformers, AudioCraft and stable-audio-tools."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cadenza.conditioners.t5 import T5Conditioner, T5Spec
from cadenza.core.types import Condition

Kit = Callable[[str], Path]
TOLERANCE = {"atol": 1e-4, "rtol": 1e-3}


def part_of(folder: Path, **fields: Any) -> T5Conditioner:
    """An encoder alone, or with the projection that is given as its weights."""
    out = fields.pop("out", None)
    part = T5Spec(**{"model": str(folder), "output_dim": 32, "null_embedding": "zeros", "project": "auto"} | fields).build()
    if out is not None:
        part.out.load_state_dict({name: x.float() for name, x in out.items()})
    return part.eval()


@torch.no_grad()
def run(part: T5Conditioner, texts: list[str | None]) -> Condition:
    return part(part.encode(part.prepare(texts)))


def prompts(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "case.json").read_text())["parameters"]


@pytest.mark.parametrize("kind", ["relu", "gated"])
@pytest.mark.parametrize("tokenizer", ["tokenizer.json", "spiece.model"])
def test_encoder(kit: Kit, tmp_path: Path, kind: str, tokenizer: str) -> None:
    """Case 06b, by either of the files that a tokenizer may be in."""
    folder = kit("06b")
    shutil.copytree(folder / kind, tmp_path / "t5")
    (tmp_path / "t5" / ({"tokenizer.json", "spiece.model"} - {tokenizer}).pop()).unlink()
    said = prompts(folder)
    expected = {
        key.removeprefix(f"{kind}."): x
        for key, x in load_file(folder / "expected.safetensors").items()
        if key.startswith(f"{kind}.")
    }
    part = part_of(tmp_path / "t5", empty_text="encode")
    for i, text in enumerate(said["odd_texts"]):
        assert part.prepare([text]).tensors["ids"][0].tolist() == expected[f"odd{i}.ids"].tolist(), text
    four = [*said["prompts"], ""]
    for name, texts in {"empty": [""], "long": [said["long_text"]], "batch": four}.items():
        prepared = part.prepare(texts)
        assert torch.equal(prepared.tensors["ids"], expected[f"{name}.ids"]), name
        assert torch.equal(prepared.tensors["mask"].long(), expected[f"{name}.mask"]), name
        mask = expected[f"{name}.mask"][..., None]
        torch.testing.assert_close(run(part, texts).embeddings, expected[f"{name}.hidden"] * mask, **TOLERANCE)
    ids = expected["padded.ids"]
    text = next(text for text in four if torch.equal(_ids(part, text), ids[ids != 0]))
    padded = part_of(tmp_path / "t5", pad_to="max_length", max_length=ids.shape[1])
    out = run(padded, [text])
    assert torch.equal(padded.prepare([text]).tensors["ids"], ids)
    torch.testing.assert_close(out.embeddings, expected["padded.hidden"] * out.mask[..., None], **TOLERANCE)


@pytest.mark.parametrize("case", ["01", "02"])
def test_inside_musicgen(kit: Kit, case: str) -> None:
    """transformers' MusicGen holds its T5 among the rest of its weights."""
    folder = kit(case)
    expected, weights = load_file(folder / "expected.safetensors"), load_file(folder / "model" / "model.safetensors")
    width = len(weights["enc_to_dec_proj.bias"])
    part = part_of(folder / "model", subconfig="text_encoder", output_dim=width, out=_under("enc_to_dec_proj.", weights))
    texts = prompts(folder)["prompts"]
    for name, some in {"single": texts[:1], "batch": texts}.items():
        if f"{name}.input_ids" not in expected:
            continue
        prepared = part.prepare(some)
        mask = expected[f"{name}.attention_mask"]
        assert torch.equal(prepared.tensors["ids"], expected[f"{name}.input_ids"])
        assert torch.equal(prepared.tensors["mask"].long(), mask)
        hidden = part.encode(prepared).tensors["x"]
        torch.testing.assert_close(hidden, expected[f"{name}.text_hidden"] * mask[..., None], **TOLERANCE)
        torch.testing.assert_close(run(part, some).embeddings, expected[f"{name}.text_projected"], **TOLERANCE)


@pytest.mark.parametrize("case", ["09a", "09b", "09d"])
def test_audiocraft(kit: Kit, case: str) -> None:
    """An absent text, and an empty one, is rows of zeros as long as the batch."""
    folder = kit(case)
    expected = load_file(folder / "expected.safetensors")
    package = torch.load(folder / "model" / "state_dict.bin", weights_only=True)["best_state"]
    out = _under("condition_provider.conditioners.description.output_proj.", package)
    part = part_of(folder / "model" / "tiny-t5", output_dim=len(out["bias"]), project="always", out=out)
    texts = prompts(folder)["prompts"]
    batches = {"single": texts[:1], "batch": texts, "with_empty": [texts[1], None]}
    for name, some in {**batches, "with_empty (as text)": [texts[1], ""]}.items():
        name = name.removesuffix(" (as text)")  # noqa: PLW2901
        prepared, made = part.prepare(some), run(part, some)
        there = expected[f"{name}.cond_mask.description"]
        assert torch.equal(prepared.tensors["ids"], expected[f"{name}.text_ids"])
        assert torch.equal(made.mask, there.bool()) and torch.equal(made.mask, expected[f"{name}.text_mask"].bool())
        torch.testing.assert_close(made.embeddings, expected[f"{name}.cond.description"], **TOLERANCE)
        assert not made.embeddings[~made.mask].any()
    null = expected["null.cond.description"]
    assert torch.equal(run(part, [None] * len(null)).embeddings, null)


@pytest.mark.filterwarnings("ignore:a text has")
def test_stable_audio_tools(kit: Kit) -> None:
    """Every text as many tokens, longer ones cut, empty ones read."""
    folder = kit("13a")
    expected, weights = load_file(folder / "expected.safetensors"), load_file(folder / "model" / "model.safetensors")
    out = _under("conditioner.conditioners.prompt.proj_out.", weights)
    length = expected["cond.prompt.input_ids"].shape[1]
    fields: dict[str, Any] = {
        "empty_text": "encode",
        "pad_to": "max_length",
        "max_length": length,
        "output_dim": len(out["bias"]),
    }
    part = part_of(folder / "model" / "tiny-t5", **fields, out=out)
    said = prompts(folder)
    with pytest.warns(UserWarning, match=r"a text has \d+ tokens, 24 are read .*: the last \d+ are lost"):
        ids = part.prepare([item["prompt"] for item in said["conditioning"]]).tensors["ids"]
    assert torch.equal(ids, expected["cond.prompt.input_ids"])
    for name, key in (("cond", "conditioning"), ("neg", "negative_conditioning")):
        made = run(part, [item["prompt"] for item in said[key]])
        assert torch.equal(made.mask, expected[f"{name}.prompt.mask"].bool())
        torch.testing.assert_close(made.embeddings, expected[f"{name}.prompt"], **TOLERANCE)


def _ids(part: T5Conditioner, text: str) -> Tensor:
    return part.prepare([text]).tensors["ids"][0]


def _under(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): x for key, x in weights.items() if key.startswith(prefix)}
