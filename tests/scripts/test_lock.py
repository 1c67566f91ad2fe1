"""The committed lock of exact versions, and how it is written."""

import importlib.util
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]


def load_script():
    description = importlib.util.spec_from_file_location("lock", ROOT / "scripts" / "lock.py")
    module = importlib.util.module_from_spec(description)
    description.loader.exec_module(module)
    return module


def read_lock():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    return [Requirement(line) for line in lines]


def test_the_lock_holds_one_plain_version_of_each_package():
    locked = read_lock()
    names = [requirement.name for requirement in locked]
    assert names == sorted(set(names)) and all(name == canonicalize_name(name) for name in names)
    for requirement in locked:
        (specifier,) = requirement.specifier
        assert specifier.operator == "==" and Version(specifier.version).local is None
        assert not requirement.url and not requirement.name.startswith(("nvidia-", "cuda-", "triton", "cadenza"))


def test_the_lock_fulfills_what_the_project_requires():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    locked = {requirement.name: next(iter(requirement.specifier)).version for requirement in read_lock()}
    wanted = [*project["dependencies"], *(line for line in extras["dev"] if not line.startswith("cadenza"))]
    wanted += [line for name in Requirement(extras["dev"][0]).extras for line in extras[name]]
    for requirement in map(Requirement, wanted):
        assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)]), requirement


def test_a_report_of_pip_becomes_sorted_lines_without_cadenza_builds_and_cuda():
    def package(name, version, **origin):
        return {"metadata": {"name": name, "version": version}, "download_info": {"url": "file:///somewhere", **origin}}

    report = {
        "install": [
            package("torch", "2.13.0+cpu"),
            package("PyYAML", "6.0.4"),
            package("Mir_Eval", "0.8.2.post1"),
            package("nvidia-cublas", "13.1"),
            package("cuda-bindings", "13.5"),
            package("triton", "3.7"),
            package("cadenza", "0.1.0", dir_info={}),
        ]
    }
    header, *lines = load_script().format_lock(report).split("\nmir-eval")
    assert all(line.startswith("#") for line in header.splitlines()) and "make lock" in header
    assert lines == ["==0.8.2.post1\npyyaml==6.0.4\ntorch==2.13.0\n"]
