"""What may import what; imports inside functions count, those for type checkers do not."""

import ast
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

SRC = Path(__file__).parents[2] / "src"
FILES = sorted(SRC.glob("cadenza/**/*.py"))
FLOORS = {
    **{"core": 0, "dsp": 1, "nn": 1, "samplers": 2, "codecs": 2, "conditioners": 2, "generators": 2},
    **{"system": 3, "data": 3, "corpus": 3, "training": 4, "evaluation": 4, "importers": 4, "apps": 5, "__main__": 6},
}
BESIDE = {("generators", "samplers"), ("nn", "dsp"), ("conditioners", "codecs")}
# steps sideways, one way only: a generator samples, a critic hears, a conditioner may take a codec as a field of its spec
FAMILIES = ("cadenza.codecs", "cadenza.conditioners", "cadenza.generators", "cadenza.training.tasks")
OPEN = ("system", "data", "training")  # these know families, not members
HEAVY = {"accelerate", "av", "demucs", "fastapi", "gradio", "librosa", "matplotlib", "ray", "scipy", "sklearn", "tensorboard"}
HEAVY |= {"transformers", "uvicorn", "wandb"}
PEERS = {
    "audiocraft",
    "encodec",
    "stable_audio_tools",
    "audiolm_pytorch",
    "musiclm_pytorch",
    "soundstorm_pytorch",
    "k_diffusion",
}
PEERS |= {"diffusers", "x_transformers", "vector_quantize_pytorch", "dac", "descript_audio_codec", "moshi", "snac", "bigvgan"}


def module(path: Path) -> str:
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module(path): path for path in FILES}


def statements(node: ast.AST, *, functions: bool = True) -> Iterator[ast.AST]:
    """Everything that can run, in functions too or only on import."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
            continue
        if not functions and isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        yield child
        yield from statements(child, functions=functions)


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def named(path: Path, *, functions: bool = True) -> set[str]:
    """Full names of what a file imports; `from a import b` is a.b."""
    here = module(path).split(".")
    package = here if path.name == "__init__.py" else here[:-1]
    names = set()
    for node in statements(tree(path), functions=functions):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = (
                [*package[: len(package) - node.level + 1], *filter(None, [node.module])] if node.level else [node.module or ""]
            )
            names |= {".".join([*base, alias.name]) for alias in node.names}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            names |= {argument.value for argument in node.args if isinstance(argument, ast.Constant)}
    return names


@cache
def imports(path: Path) -> frozenset[str]:
    """Our own modules that a file imports."""
    found = set()
    for name in named(path):
        parts = name.split(".")
        while parts and ".".join(parts) not in MODULES:
            parts.pop()
        found.add(".".join(parts))
    return frozenset(found - {"", "cadenza", module(path)})


def of(path: Path) -> list[str]:
    return module(path).split(".")[1:]


def test_imports_point_down() -> None:
    wrong = []
    for path in FILES:
        for name in sorted(imports(path)) if of(path) else ():  # the package itself is a door: names found when asked for
            here, there = of(path)[0], name.split(".")[1]
            assert {here, there} <= FLOORS.keys(), f"{here} or {there} has no floor; say in DESIGN and here where it stands"
            if here != there and FLOORS[there] >= FLOORS[here] and (here, there) not in BESIDE:
                wrong.append(f"{module(path)} imports {name}, which is not below it")
    assert not wrong, "\n".join(wrong)


def test_nothing_imports_in_a_circle() -> None:
    graph = {name: imports(path) for name, path in MODULES.items()}
    done: set[str] = set()

    def visit(name: str, way: list[str]) -> None:
        assert name not in way, "a circle: " + " -> ".join([*way[way.index(name) :], name])
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, [*way, name])
            done.add(name)

    for name in graph:
        visit(name, [])


@pytest.mark.parametrize("family", FAMILIES)
def test_members_of_a_family_know_only_its_base(family: str) -> None:
    members = {name for name in MODULES if name.startswith(f"{family}.")}
    assert f"{family}.base" in members
    for name in sorted(members):
        assert name.count(".") == family.count(".") + 1, f"{name}: a family is one flat folder"
        siblings = {other for other in imports(MODULES[name]) & members if not other.startswith(f"{family}.base")}
        assert not siblings, f"{name} imports {', '.join(siblings)}; it may take another part as a field of its spec"


def test_what_works_with_any_part_names_none() -> None:
    parts = {name for name in MODULES if name.rpartition(".")[0] in FAMILIES[:3] and not name.endswith(".base")}
    filed = {name.rpartition(".")[2] for name in parts if not name.startswith("cadenza.conditioners")}  # those are plain words
    wrong = []
    for path in [path for path in FILES if of(path)[:1] and of(path)[0] in OPEN]:
        texts = {
            node.value for node in statements(tree(path)) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
        wrong += [f"{module(path)} names the part {name}" for name in sorted(imports(path) & parts | texts & filed)]
    assert not wrong, "\n".join(wrong)


def test_no_peer_is_imported() -> None:
    wrong = {module(path): found for path in FILES if (found := {name.partition(".")[0] for name in named(path)} & PEERS)}
    assert not wrong


def test_heavy_libraries_are_imported_where_they_are_needed() -> None:
    tops = {module(path): {name.partition(".")[0] for name in named(path, functions=False)} & HEAVY for path in FILES}
    assert not {name: found for name, found in tops.items() if found}


def test_every_import_is_declared() -> None:
    """A library that only happens to be installed is missing on a fresh machine."""
    project = (SRC.parent / "pyproject.toml").read_text()
    own_name = {"yaml": "pyyaml", "huggingface_hub": "huggingface-hub", "pydantic_core": "pydantic-core"}
    for path in FILES:
        for name in named(path):
            top = name.partition(".")[0]
            if top not in sys.stdlib_module_names | {"cadenza"}:
                assert f'"{own_name.get(top, top)}' in project, (
                    f"{module(path)} imports {top}, which pyproject.toml does not name"
                )


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("import torch", {"torch"}),
        ("def f():\n    from cadenza.nn import tokenizers", {"cadenza.nn.tokenizers"}),
        ("if TYPE_CHECKING:\n    import torch\nelse:\n    import av", set()),
        ("import importlib\nimportlib.import_module('dac')", {"importlib", "dac"}),
        ("try:\n    import av\nexcept ImportError:\n    pass", {"av"}),
    ],
)
def test_imports_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, found: set[str]) -> None:
    """The reader of imports itself."""
    monkeypatch.setattr(sys.modules[__name__], "SRC", tmp_path)
    (tmp_path / "x.py").write_text(text)
    assert named(tmp_path / "x.py") == found
