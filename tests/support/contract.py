"""What every conditioner must keep, for tests of specs that are not a conditioner's example."""

import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

PATH = Path(__file__).parents[1] / "contract" / "test_conditioners.py"


@cache
def promises() -> list[Callable[..., Any]]:
    """Functions of a spec and its values."""
    spec = importlib.util.spec_from_file_location("contract_of_conditioners", PATH)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.CONTRACT
