"""Importing does nothing, and the front door is light."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src"
MODULES = sorted(
    ".".join(path.relative_to(SRC).with_suffix("").parts).removesuffix(".__init__") for path in SRC.glob("cadenza/**/*.py")
)

SEEN = """
import importlib, logging, os, random, signal, sys, threading, warnings
import numpy, torch

def seen():
    backends = torch.backends
    return {
        "environment": dict(os.environ),
        "warnings": list(warnings.filters),
        "path": list(sys.path),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads(), threading.active_count()),
        "flags": (backends.cuda.matmul.allow_tf32, backends.cudnn.allow_tf32, backends.cudnn.benchmark,
                  backends.cudnn.deterministic, backends.mkldnn.enabled, torch.get_float32_matmul_precision(),
                  torch.is_grad_enabled(), torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled()),
        "random": (random.getstate(), torch.get_rng_state().tolist(), str(numpy.random.get_state())),
        "log": (logging.root.level, list(logging.root.handlers)),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "hooks": (sys.excepthook, sys.displayhook, sys.stdout, sys.stderr),
    }

for name in LIBRARIES:
    importlib.import_module(name)
before = seen()
for name in MODULES:
    importlib.import_module(name)
after = seen()
changed = [what for what in before if before[what] != after[what]]
assert not changed, f"importing changed {changed}"
"""


def run(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """In an empty folder that is also the home and the place for temporary files."""
    here = {"HOME": str(folder), "TMPDIR": str(folder), "XDG_CACHE_HOME": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    environment = {**os.environ, **here}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, check=False, cwd=folder, env=environment, capture_output=True, text=True)


def third_party() -> list[str]:
    """What our modules import from elsewhere as they are imported; that may do what it likes."""
    names = set()
    for path in SRC.glob("cadenza/**/*.py"):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module)
            elif isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
    return sorted(name for name in names if not name.startswith("cadenza"))


def test_importing_everything_changes_nothing(tmp_path: Path) -> None:
    done = run(f"LIBRARIES = {third_party()}\nMODULES = {MODULES}\n{SEEN}", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "" and done.stderr == ""
    assert list(tmp_path.iterdir()) == [], "importing wrote files"


@pytest.mark.parametrize(
    "code",
    [
        "import cadenza; dir(cadenza); cadenza.__version__",
        "import sys; sys.argv = ['cadenza', '--help']; import cadenza.apps.cli.main as door\n"
        "try: door.main()\nexcept SystemExit as end: assert not end.code, end.code",
        "import sys; sys.argv = ['cadenza', 'generate', '--help']; import cadenza.apps.cli.main as door\n"
        "try: door.main()\nexcept SystemExit as end: assert not end.code, end.code",
    ],
    ids=["import", "--help", "generate --help"],
)
def test_the_front_door_is_light(tmp_path: Path, code: str) -> None:
    heavy = ("torch", "numpy", "transformers", "accelerate", "matplotlib", "soundfile", "scipy")
    done = run(f"{code}\nimport sys; print([name for name in {heavy} if name in sys.modules], file=sys.stderr)", tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stderr.strip() == "[]", f"loads {done.stderr}"


def test_what_the_package_names_is_there(tmp_path: Path) -> None:
    done = run("import cadenza\nfor name in cadenza.__all__: getattr(cadenza, name)", tmp_path)
    assert done.returncode == 0, done.stderr
