"""What the repository holds beside code."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from estimators.train import EstimatorTrainingConfig

from cadenza.core.spec import RegisteredSpec
from cadenza.system.spec import SystemSpec
from cadenza.training.config import TrainingConfig

ROOT = Path(__file__).parents[2]
CONFIGS = sorted([*ROOT.glob("configs/**/*.yaml"), *ROOT.glob("configs/**/*.yml"), *ROOT.glob("configs/**/*.json")])


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], check=False, cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:  # an unpacked archive
        return [
            path
            for path in ROOT.rglob("*")
            if path.is_file() and not any(part.startswith(".") for part in path.relative_to(ROOT).parts)
        ]
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def texts() -> dict[Path, str]:
    """The files that are text."""
    found = {}
    for path in tracked():
        content = path.read_bytes()
        if b"\0" not in content[:8192]:
            found[path.relative_to(ROOT)] = content.decode("utf-8", "replace")
    return found


def hosts() -> set[str]:
    """The package registries that this machine uses."""
    settings = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], check=False, capture_output=True, text=True
    ).stdout
    settings += " ".join(value for name, value in os.environ.items() if name.startswith(("PIP_", "UV_", "NPM_")))
    return set(re.findall(r"https?://(?:[^/@\s]*@)?([A-Za-z0-9.-]+\.[A-Za-z0-9-]+)", settings))


def test_every_config_parses() -> None:
    for path in CONFIGS:
        kind = TrainingConfig if re.search(r"^\s*\"?task\"?:", path.read_text(), re.M) else SystemSpec
        kind = EstimatorTrainingConfig if path.parent.name == "evaluation" else kind
        spec = kind.load(path)
        assert kind.parse(json.loads(spec.to_json())) == spec


def test_no_file_names_this_machine() -> None:
    places = {str(ROOT) + "/", str(Path.home()) + "/"}
    if ROOT.parent not in (Path("/"), Path("/tmp"), Path("/home")):
        places.add(str(ROOT.parent) + "/")
    places |= hosts()
    for path, text in texts().items():
        found = [place for place in places if place in text]
        assert not found, f"{path} names {found}"


def test_files_are_small_enough_to_carry() -> None:
    for path in tracked():
        assert path.stat().st_size <= 16 * 2**20, f"{path} is larger than 16 MiB"


def test_text_files_end_with_a_line() -> None:
    for path, text in texts().items():
        assert not text or text.endswith("\n"), f"{path} does not end with a line break"
        assert "<" * 7 + " " not in text, f"{path} holds a conflict"


def families() -> list[type[RegisteredSpec]]:
    from cadenza.codecs.base import CodecSpec  # noqa: PLC0415
    from cadenza.conditioners.base import ConditionerSpec  # noqa: PLC0415
    from cadenza.generators.base import GeneratorSpec  # noqa: PLC0415
    from cadenza.training.tasks.base import TaskSpec  # noqa: PLC0415

    return [CodecSpec, ConditionerSpec, GeneratorSpec, TaskSpec]


@pytest.mark.parametrize("family", families(), ids=lambda family: family.__name__)
def test_every_part_is_filed_under_its_name_with_an_example(family: type[RegisteredSpec]) -> None:
    for name in family.registered_names():
        part = family.lookup(name)
        if not part.__module__.startswith("cadenza."):
            continue  # a plug-in, such as another test's toy
        assert part.__module__ == f"{family.family}.{name}"
        assert not hasattr(family, "example") or "example" in vars(part), f"{name} carries no example"
