"""Fusion: order, absence per (slot, id), lengths."""

import pytest
import torch

from cadenza.core.errors import RequestError
from cadenza.core.types import Condition
from cadenza.system.fusion import branch_keep_mask, fuse
from cadenza.system.spec import FusionSpec


def condition(*rows: list[float], null: list[float] | None = None, present: list[bool] | None = None) -> Condition:
    """A condition of width 1 whose items have the given tokens; shorter rows are padded."""
    n = max(map(len, rows))
    x = torch.tensor([row + [0.0] * (n - len(row)) for row in rows])[..., None]
    mask = torch.tensor([[i < len(row) for i in range(n)] for row in rows])
    here = torch.tensor(present or [True] * len(rows))
    return Condition(x, mask & here[:, None], here, None if null is None else torch.tensor(null)[:, None])


def test_cross_keeps_the_order_of_the_routes():
    a, b = condition([1.0, 2.0], [3.0]), condition([7.0], [8.0])
    fused = fuse({"a": a, "b": b}, FusionSpec.parse({"cross": ["b", "a"]}), frames=4)
    assert fused.cross is not None
    assert fused.cross.x[..., 0].tolist() == [[7, 1, 2], [8, 3, 0]]
    assert fused.cross.mask.tolist() == [[True, True, True], [True, True, False]]


def test_absence_is_per_slot_and_id():
    a = condition([1.0, 2.0], [3.0, 4.0], null=[9.0])
    fusion = FusionSpec.parse({"cross": ["a"], "prepend": ["a"]})
    fused = fuse({"a": a}, fusion, frames=4, keep={("cross", "a"): torch.tensor([True, False])})
    assert fused.cross is not None and fused.prepend is not None
    assert fused.cross.x[..., 0].tolist() == [[1, 2], [9, 0]]
    assert fused.cross.mask.tolist() == [[True, True], [True, False]]
    assert fused.prepend.x[..., 0].tolist() == [[1, 2], [3, 4]]


def test_missing_dropped_and_nulled_are_the_same_thing():
    """An item without the value, one whose value is dropped, and the unconditional branch agree."""
    given = condition([1.0], [2.0], null=[9.0])
    missing = condition([1.0], [2.0], null=[9.0], present=[False, False])
    fusion = FusionSpec.parse({"cross": ["a"], "add": ["a"], "global": ["a"]})
    dropped = fuse({"a": given}, fusion, frames=3, keep=branch_keep_mask(fusion, [(), ()], "cpu"))
    absent = fuse({"a": missing}, fusion, frames=3)
    for one, other in ((dropped.cross, absent.cross),):
        assert one is not None and other is not None
        assert torch.equal(one.x, other.x) and torch.equal(one.mask, other.mask)
    assert dropped.add is not None and absent.add is not None and torch.equal(dropped.add, absent.add)
    assert dropped.global_vector is not None and dropped.global_vector.tolist() == [[9], [9]]


def test_zeros_leave_no_valid_position():
    fusion = FusionSpec.parse({"cross": ["a"], "add": ["a"]})
    fused = fuse({"a": condition([1.0], [2.0], present=[True, False])}, fusion, frames=2)
    assert fused.cross is not None and fused.add is not None
    assert fused.cross.mask.tolist() == [[True], [False]] and fused.cross.x[1].abs().sum() == 0
    assert fused.add[..., 0].tolist() == [[1, 1], [0, 0]]


def test_learned_null_wider_than_the_values():
    fused = fuse(
        {"a": condition([1.0], [2.0], null=[8.0, 9.0])},
        FusionSpec.parse({"cross": ["a"]}),
        frames=2,
        keep={("cross", "a"): torch.tensor([True, False])},
    )
    assert fused.cross is not None
    assert fused.cross.x[..., 0].tolist() == [[1, 0], [8, 9]]
    assert fused.cross.mask.tolist() == [[True, False], [True, True]]


def test_learned_null_is_trained():
    null = torch.zeros(1, 1, requires_grad=True)
    x = torch.ones(2, 1, 1)
    given = Condition(x, torch.ones(2, 1, dtype=torch.bool), torch.tensor([True, False]), null)
    fused = fuse({"a": given}, FusionSpec.parse({"cross": ["a"]}), frames=1)
    assert fused.cross is not None
    (fused.cross.x * fused.cross.mask[..., None]).sum().backward()
    assert null.grad is not None and null.grad.item() == 1


def test_add_sums_and_concat_and_global_stand_side_by_side():
    a, b = condition([1.0], [2.0]), condition([10.0, 20.0, 30.0], [40.0, 50.0, 60.0])
    fused = fuse({"a": a, "b": b}, FusionSpec.parse({"add": ["a", "b"], "concat": ["b", "a"]}), frames=3)
    assert fused.add is not None and fused.concat is not None
    assert fused.add[..., 0].tolist() == [[11, 21, 31], [42, 52, 62]]
    assert fused.concat[0].tolist() == [[10, 1], [20, 1], [30, 1]]


def test_frames_of_another_length_need_resize():
    b = condition([0.0, 10.0], [0.0, 20.0])
    with pytest.raises(RequestError, match="2 frames where the clip has 4.*resize"):
        fuse({"b": b}, FusionSpec.parse({"add": ["b"]}), frames=4)
    fused = fuse({"b": b}, FusionSpec.parse({"add": [{"id": "b", "resize": "nearest"}]}), frames=4)
    assert fused.add is not None and fused.add[0, :, 0].tolist() == [0, 0, 10, 10]


def test_cut_takes_the_first_frames():
    b = condition([0.0, 10.0, 20.0], [1.0, 2.0, 3.0])
    cut = FusionSpec.parse({"add": [{"id": "b", "resize": "cut"}]})
    fused = fuse({"b": b}, cut, frames=2)
    assert fused.add is not None and fused.add[..., 0].tolist() == [[0, 10], [1, 2]]
    with pytest.raises(RequestError, match="3 frames, too few for a clip of 4"):
        fuse({"b": b}, cut, frames=4)


def test_the_null_of_frames_holds_for_every_frame():
    b = condition([1.0, 2.0], [3.0, 4.0], null=[9.0], present=[True, False])
    fused = fuse({"b": b}, FusionSpec.parse({"add": ["b"]}), frames=2)
    assert fused.add is not None and fused.add[..., 0].tolist() == [[1, 2], [9, 9]]
