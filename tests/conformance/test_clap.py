"""The clap conditioner gives the tokens, pictures and vectors of transformers' CLAP."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from cadenza.conditioners.clap import CLAPConditioner, ClapSpec
from cadenza.dsp.audio import Audio

Kit = Callable[[str], Path]
TOLERANCE = {"atol": 1e-3, "rtol": 1e-3}
EXACT = {"atol": 1e-5, "rtol": 1e-4}  # of vectors of length 1: far below what the case asks for


@torch.no_grad()
def vectors(part: CLAPConditioner, values: list[Any]) -> torch.Tensor:
    return part(part.encode(part.prepare(values))).embeddings[:, 0]


def test_clap(kit: Kit) -> None:
    """Case 06a: texts in one batch and alone, sounds shorter than the window of the model, and their likeness."""
    folder = kit("06a")
    expected = load_file(folder / "expected.safetensors")
    texts = json.loads((folder / "case.json").read_text())["parameters"]["prompts"]
    model = folder / "model"
    dim = json.loads((model / "config.json").read_text())["projection_dim"]
    part = ClapSpec(model=str(model), output_dim=dim, project="auto", null_embedding="zeros").build().eval()
    prepared = part.prepare(texts)
    assert torch.equal(prepared.tensors["ids"], expected["text.input_ids"])
    assert torch.equal(prepared.tensors["mask"].long(), expected["text.attention_mask"])
    said = vectors(part, texts)
    torch.testing.assert_close(said, expected["text.features"], **EXACT)
    torch.testing.assert_close(said, expected["text_embeds"], **EXACT)
    rate = json.loads((model / "processor_config.json").read_text())["feature_extractor"]["sampling_rate"]
    sounds = []
    for i in range(len([name for name in expected if name.endswith(".waveform")])):
        sounds.append(Audio(expected[f"audio{i}.waveform"][None, None], rate))
        picture = part.prepare([sounds[-1]]).tensors["mel"]
        torch.testing.assert_close(picture, expected[f"audio{i}.input_features"], **TOLERANCE)
        torch.testing.assert_close(vectors(part, [sounds[-1]]), expected[f"audio{i}.features"], **EXACT)
    heard = vectors(part, sounds)
    torch.testing.assert_close(heard, expected["audio_embeds"], **EXACT)
    both = vectors(part, [sounds[0], texts[0], {"audio": sounds[1]}, {"text": texts[1], "audio": sounds[0]}])
    wanted = torch.stack([expected["audio_embeds"][0], said[0], expected["audio_embeds"][1], said[1]])
    torch.testing.assert_close(both, wanted, **EXACT)
    scale = load_file(model / "model.safetensors")["logit_scale_a"].exp()
    torch.testing.assert_close(scale * heard @ said.T, expected["logits_per_audio"], **TOLERANCE)
