"""Shapes are checked in every test; tests of the conformance kit and of programs run where these are present."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from jaxtyping import install_import_hook

pytest_plugins = ("programs",)
ROOT = Path(__file__).parents[1]
# Packages that hold tensors; specs have none, and what is compiled (nn/kernels) cannot be wrapped.
NN = [f"nn.{path.stem}" for path in (ROOT / "src" / "cadenza" / "nn").glob("*.py") if path.stem != "__init__"]
CHECKED = ("core.types", "dsp", *NN, "nn.kernels.cpu_decoder")
CHECKED += ("codecs", "conditioners", "generators", "samplers", "system")
install_import_hook([f"cadenza.{name}" for name in CHECKED], "shapes.checked").__enter__()

KIT = Path(os.environ.get("CADENZA_CONFORMANCE") or ROOT.parent / "shared" / "conformance")


def pytest_configure() -> None:
    torch.set_num_threads(1)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out the tests that ask for the kit where there is none; the closing line says so."""
    if KIT.is_dir():
        return
    of_kit = [item for item in items if "kit" in getattr(item, "fixturenames", ())]
    config.hook.pytest_deselected(items=of_kit)
    items[:] = [item for item in items if item not in of_kit]


@pytest.fixture
def kit(request: pytest.FixtureRequest) -> Callable[[str], Path]:
    """The folder of a conformance case by its name or the beginning of it (`10`, `04a`)."""

    def folder(case: str) -> Path:
        found = sorted(path for path in KIT.glob(f"{case}*") if path.is_dir())
        assert len(found) == 1, f"the conformance kit has {len(found)} cases '{case}*'"
        request.node.user_properties.append(("conformance", found[0].name))
        return found[0]

    return folder


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for outcome in ("passed", "failed") for report in terminalreporter.stats.get(outcome, ())]
    asked = [{value for name, value in report.user_properties if name == "conformance"} for report in reports]
    cases = set[str]().union(*asked)
    line = f"{len(cases)} cases ran, in {sum(map(bool, asked))} tests" if KIT.is_dir() else "not present"
    terminalreporter.write_line(f"conformance kit: {line}")
