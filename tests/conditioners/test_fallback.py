"""A conditioner may take the value of another id of the item where its own has none."""

import pytest
import torch

from cadenza.conditioners.base import Conditioners
from cadenza.conditioners.number import NumberSpec
from cadenza.core.errors import RequestError
from cadenza.system.spec import SystemSpec
from cadenza.system.system import System

SECONDS = {"type": "number", "width": 4, "min": 0, "max": 10}


def test_a_value_of_its_own_comes_first() -> None:
    """Item by item: what one lacks says nothing of the others."""
    parts = Conditioners({"length": NumberSpec.parse({**SECONDS, "fallback": "seconds"}).build()})
    prepared = parts.prepare([{"seconds": 1}, {"seconds": 1, "length": 2}, {"length": None, "seconds": 3}, {}])["length"]
    assert prepared.present.tolist() == [True, True, True, False]
    torch.testing.assert_close(prepared.tensors["place"][:3], torch.tensor([0.1, 0.2, 0.3]))


def test_a_system_knows_the_ids_that_its_parts_look_at() -> None:
    codec = {"type": "encodec", "sample_rate": 8000, "strides": [4, 4], "codebooks": 2, "bins": 16, "filters": 4}
    system = System(
        SystemSpec.parse(
            {
                "codec": codec,
                "conditioners": {"length": {**SECONDS, "fallback": "seconds"}},
                "fusion": {"cross": ["length"]},
                "generator": {"type": "codec_lm", "width": 4, "depth": 1, "heads": 1},
            }
        )
    )
    assert system.prepare([{"seconds": 5}])["length"].present.all()
    with pytest.raises(RequestError, match=r"no condition called 'secnds'. Did you mean 'seconds'\?"):
        system.prepare([{"secnds": 5}])
