"""The lut conditioner gives the rows and vectors of AudioCraft and of stable-audio-tools."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cadenza.conditioners.lut import LutSpec, PretrainedTokenizer, WholeTextTokenizer
from cadenza.nn.tokenizers import hash_to_row

Kit = Callable[[str], Path]
TOLERANCE = {"atol": 1e-5, "rtol": 1e-4}


def test_audiocraft(kit: Kit) -> None:
    """Its `noop` tokenizer, and a table with a projection."""
    folder = kit("11")
    expected, case = load_file(folder / "expected.safetensors"), json.loads((folder / "case.json").read_text())
    for word, rows in case["hash_trick"].items():
        for bins, row in rows.items():
            assert hash_to_row(word, int(bins)) == row, (word, bins)
    bins, dim = expected["lut.embed.weight"].shape
    width = len(expected["lut.output_proj.bias"])
    spec = LutSpec(
        tokenizer=WholeTextTokenizer(bins=bins),
        dim=dim,
        output_dim=width,
        project="always",
        null_embedding="zeros",
        empty_text="encode",
    )
    part = spec.build().eval()
    names = {"embed.weight": "table.weight", "output_proj.weight": "out.weight", "output_proj.bias": "out.bias"}
    part.load_state_dict({ours: expected[f"lut.{name}"] for name, ours in names.items()})
    prepared = part.prepare(case["lut_texts"])
    assert torch.equal(prepared.tensors["ids"], expected["noop.tokens"])
    assert torch.equal(prepared.tensors["mask"], expected["noop.mask"].bool())
    made = part(part.encode(prepared))
    assert torch.equal(made.mask, expected["lut.mask"].bool())
    torch.testing.assert_close(made.embeddings, expected["lut.out"], **TOLERANCE)


@pytest.mark.filterwarnings("ignore:a text has")
def test_stable_audio_tools(kit: Kit) -> None:
    """A vocabulary with special tokens, positions in the padding too, and a projection."""
    folder = kit("14")
    expected, weights = (load_file(folder / name) for name in ("expected.safetensors", "model/conditioners.safetensors"))
    described = json.loads((folder / "model" / "conditioning.json").read_text())
    said = json.loads((folder / "case.json").read_text())["parameters"]
    luts = [entry for entry in described["configs"] if entry["type"] == "lut"]
    assert luts
    names = {"token_embedder.": "table.", "proj_out.": "out.", "abs_pos_emb.emb.": "places."}
    for entry in luts:
        name, config = entry["id"], entry["config"]
        tokenizer = PretrainedTokenizer(
            model=str(folder / "model" / config["tokenizer_name"]), special_tokens=config.get("special_tokens", [])
        )
        spec = LutSpec(
            tokenizer=tokenizer,
            output_dim=config.get("output_dim", described["cond_dim"]),
            project="always" if config.get("project_out") else "auto",
            null_embedding="zeros",
            empty_text="encode",
            max_length=config["max_length"],
            pad_to="max_length",
            positions=config.get("use_abs_pos_emb", False),
        )
        part = spec.build().eval()
        mine = {
            key.removeprefix(f"conditioners.{name}."): x
            for key, x in weights.items()
            if key.startswith(f"conditioners.{name}.")
        }
        for theirs, ours in names.items():
            mine = {key.replace(theirs, ours): x for key, x in mine.items()}
        part.load_state_dict(mine)
        prepared = part.prepare(said[name])
        assert torch.equal(prepared.tensors["ids"], expected[f"{name}.input_ids"])
        made = part(part.encode(prepared))
        assert torch.equal(made.mask, expected[f"{name}.mask"].bool())
        torch.testing.assert_close(made.embeddings, expected[f"{name}.out"], **TOLERANCE)
