"""Fusion against AudioCraft's fuser: what its transformer would read and attend to, and its sinusoids."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cadenza.core.types import Condition, FrameFormat
from cadenza.generators.codec_lm import CodecLM, CodecLMSpec
from cadenza.nn.rope import sinusoidal_embedding
from cadenza.system.fusion import fuse
from cadenza.system.spec import FusionSpec

Kit = Callable[[str], Path]
ROUTES: dict[str, tuple[dict[str, Any], float]] = {  # what each case of the kit is called here
    "sum1": ({"add": [{"id": "one", "align": "steps"}]}, 0.0),
    "prepend": ({"prepend": ["a"]}, 0.0),
    "prepend2": ({"prepend": ["b", "a"]}, 0.0),
    "cross2": ({"cross": ["a", "b"]}, 0.0),
    "cross_pos": ({"cross": ["a"]}, 0.5),
    "interp": ({"add": [{"id": "b", "align": "steps", "resize": "nearest"}]}, 0.0),
    "mixed": ({"add": [{"id": "one", "align": "steps"}], "prepend": ["a"], "cross": ["b"]}, 0.0),
    "ignore": ({"prepend": ["a"], "ignore": ["b"]}, 0.0),
}


@pytest.mark.parametrize("padding", [True, False])
@pytest.mark.parametrize("case", ROUTES)
def test_the_transformer_reads_what_audiocraft_fuses(kit: Kit, case: str, padding: bool) -> None:
    folder = kit("11")
    stored = load_file(folder / "expected.safetensors")
    expected = {name.removeprefix("fuser."): x for name, x in stored.items() if name.startswith("fuser.")}
    x, routes = expected["x"], ROUTES[case]
    batch, steps, width = x.shape
    full = {name: torch.ones(expected[name].shape[:2], dtype=torch.bool) for name in ("a", "b", "one")}
    conditions = {name: Condition(expected[name], mask, mask[:, 0]) for name, mask in full.items()}
    fusion = FusionSpec.parse(routes[0])
    fused = fuse(conditions, fusion, frames=steps)
    widths: Any = dict.fromkeys(fusion.routes_by_slot(), width)
    spec = CodecLMSpec(
        width=width, depth=1, heads=1, attend_padding=padding, cross_attention_pos_emb_scale=routes[1], end_of_sequence=False
    )
    lm = CodecLM(spec, FrameFormat("codes", 50.0, 1, batch * steps), widths)
    with torch.no_grad():  # every step of every item has an embedding of its own
        lm.embedding.weight[:-1] = x.flatten(0, 1)
    read = _reading(lm)
    lm(torch.arange(batch * steps).view(batch, 1, steps), fused, torch.arange(steps).expand(batch, 1, -1))
    torch.testing.assert_close(read["out"], expected[f"{case}.out"], **_tolerance(folder))
    assert ("cross" in read) == (f"{case}.cross" in expected)
    if "cross" in read:
        torch.testing.assert_close(read["cross"], expected[f"{case}.cross"], **_tolerance(folder))


def _reading(lm: CodecLM) -> dict[str, Tensor]:
    """What the transformer is given, once it has been run."""
    read: dict[str, Tensor] = {}
    lm.transformer.register_forward_pre_hook(lambda _, args: read.update(out=args[0]))
    cross: Any = lm.transformer.blocks[0].cross
    if cross is not None:
        cross.kv.register_forward_pre_hook(lambda _, args: read.update(cross=args[0]))
    return read


def test_sinusoids_are_audiocrafts(kit: Kit) -> None:
    folder = kit("11")
    expected = load_file(folder / "expected.safetensors")
    for name, base in (("sin.8", 10000.0), ("sin.48", 10000.0), ("sin.period", 100.0)):
        want = expected[name]
        got = sinusoidal_embedding(torch.arange(want.shape[1])[None], want.shape[2], base)
        torch.testing.assert_close(got, want, **_tolerance(folder))


def _tolerance(folder: Path) -> dict[str, float]:
    said = json.loads((folder / "case.json").read_text())["tolerance"]
    return {"atol": said["atol"], "rtol": said["rtol"]}
