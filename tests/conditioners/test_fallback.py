"""A conditioner may take the value of another id of the item where its own has none."""

import pytest
import torch

from cadenza.conditioners.base import ConditionerSet
from cadenza.conditioners.number import NumberSpec
from cadenza.core.errors import RequestError
from cadenza.system.request import Request
from cadenza.system.spec import SystemSpec
from cadenza.system.system import System

SECONDS = {"type": "number", "output_dim": 4, "min": 0, "max": 10}


def test_a_value_of_its_own_comes_first() -> None:
    """Item by item: what one lacks says nothing of the others."""
    parts = ConditionerSet({"length": NumberSpec.parse({**SECONDS, "fallback": "seconds"}).build()})
    prepared = parts.prepare([{"seconds": 1}, {"seconds": 1, "length": 2}, {"length": None, "seconds": 3}, {}])["length"]
    assert prepared.present.tolist() == [True, True, True, False]
    torch.testing.assert_close(prepared.tensors["position"][:3], torch.tensor([0.1, 0.2, 0.3]))


@pytest.fixture
def system() -> System:
    codec = {"type": "encodec", "sample_rate": 8000, "strides": [4, 4], "codebooks": 2, "bins": 16, "filters": 4}
    return System(
        SystemSpec.parse(
            {
                "codec": codec,
                "conditioners": {"length": {**SECONDS, "fallback": "seconds"}},
                "fusion": {"cross": ["length"]},
                "generator": {"type": "codec_lm", "width": 4, "depth": 1, "heads": 1},
            }
        )
    ).eval()


def test_a_system_knows_the_ids_that_its_parts_look_at(system: System) -> None:
    assert system.prepare([{"seconds": 5}])["length"].present.all()
    with pytest.raises(RequestError, match=r"no condition called 'secnds'. Did you mean 'seconds'\?"):
        system.prepare([{"secnds": 5}])


def test_a_negative_is_read_under_either_id(system: System) -> None:
    for negative in ({"seconds": 3}, {"length": 3}):
        request = Request.from_input({"length": 7}, guidance={"scale": 3, "negative": negative})
        null = system._branches(list(request.items), torch.tensor([20]), request)[-1].fused.cross
        want = system.fuse(system.encode_conditions(system.prepare([{"length": 3}])), frames=20).cross
        assert null is not None and want is not None and torch.equal(null.x, want.x)
