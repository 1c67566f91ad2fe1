"""Another stage's codes as frames, against the rows of the table that they name."""

from pathlib import Path
from typing import Any

import pytest
import torch

from cadenza.codecs.encodec import EncodecSpec
from cadenza.conditioners.codes import CodesConditioner, CodesSpec
from cadenza.core.errors import RequestError
from cadenza.core.types import Codes as Coded
from cadenza.system.codes_io import save_codes


def part(**fields: Any) -> CodesConditioner:
    made = CodesSpec(
        **{"output_dim": 4, "frame_rate": 10, "max_frames": 6, "codebooks": 3, "bins": 5, "null_embedding": "zeros"} | fields
    ).build()
    torch.nn.init.normal_(made.table.weight, generator=torch.Generator().manual_seed(0))
    return made.eval()


@torch.no_grad()
def run(made: CodesConditioner, *values: Any) -> Any:
    return made(made.encode(made.prepare(values)))


def test_a_frame_is_the_sum_of_its_codes_embeddings() -> None:
    made, ids = part(), torch.tensor([[0, 1, 4], [2, 0, 4], [3, 3, 0]])
    rows = made.table.weight.view(3, 5, 4)
    expected = torch.stack([rows[0, ids[0]], rows[1, ids[1]], rows[2, ids[2]]]).sum(0)
    for value in (ids, ids[None], ids.tolist(), Coded(ids[None]), Coded(torch.cat([ids, ids], 1)[None], torch.tensor([3]))):
        out = run(made, value)
        torch.testing.assert_close(out.embeddings[0, :3], expected)
        assert out.mask[0].tolist() == [True] * 3 + [False] * 3 and not out.embeddings[0, 3:].any()
    torch.testing.assert_close(run(made, ids[:1]).embeddings[0, :3], rows[0, ids[0]])
    two = run(made, ids, torch.cat([ids] * 3, 1), None)
    assert two.mask.sum(1).tolist() == [3, 6, 0]
    assert run(made.with_max_frames(9), torch.cat([ids] * 3, 1)).embeddings.shape == (1, 9, 4)
    assert made.with_max_frames(9).table is made.table


@pytest.mark.parametrize(("rate", "at"), [(5, [0, 0, 1, 1, 2, 2]), (20, [1, 3, 5, 7, 9, 11]), (15, [0, 2, 3, 5, 6, 8])])
def test_codes_of_another_rate(rate: float, at: list[int]) -> None:
    made = part(rate=rate, codebooks=1, bins=12)
    out = run(made, [list(range(12))])
    torch.testing.assert_close(out.embeddings[0], made.table.weight.detach()[at])
    assert run(made, [[3, 2]]).mask[0].tolist() == [i < 2 for i in at]


def test_files_and_mistakes(tmp_path: Path) -> None:
    ids, codec = torch.tensor([[0, 1], [4, 2]]), EncodecSpec(sample_rate=8000, strides=(4, 4), codebooks=2, bins=5, filters=4)
    save_codes(tmp_path / "a.safetensors", Coded(ids[None]), codec)
    assert torch.equal(run(part(), tmp_path / "a.safetensors").embeddings, run(part(), ids).embeddings)
    assert torch.equal(run(part(), str(tmp_path / "a.safetensors")).embeddings, run(part(), ids).embeddings)
    for value, said in {
        "nowhere.safetensors": "not a readable file of codes",
        "words": "not a readable file of codes",
        ((0, 5),): "must lie between 0 and 4",
        ((0, -1),): "must lie between 0 and 4",
        ((0,),) * 4: "have 4 codebooks, this control reads 3; give the first 3",
        (0, 1): r"whole numbers \[codebooks, frames\]",
        ((0.5,),): "whole numbers",
        ((),): "whole numbers",
        ((0, 1), (2,)): "ids \\[codebooks, frames\\] or a file",
    }.items():
        with pytest.raises(RequestError, match=said):
            part().prepare([value])
    with pytest.raises(RequestError, match="these are of 2; give one each"):
        part().prepare([Coded(ids[None].expand(2, -1, -1))])
