"""What a machine can see of how the code reads."""

import ast
from functools import cache
from pathlib import Path

SRC = Path(__file__).parents[2] / "src" / "cadenza"
FILES = sorted(SRC.glob("**/*.py"))
BELOW_APPS = [path for path in FILES if path.relative_to(SRC).parts[0] != "apps"]
SEEDS = {"torch.manual_seed", "torch.cuda.manual_seed", "torch.cuda.manual_seed_all", "torch.random.manual_seed", "torch.seed"}
SEEDS |= {"random.seed", "np.random.seed", "numpy.random.seed", "set_seed"}
RUNS = {"eval", "exec", "pickle.load", "pickle.loads", "torch.load"}


def name(path: Path) -> str:
    return str(path.relative_to(SRC))


@cache
def nodes(path: Path) -> list[ast.AST]:
    return list(ast.walk(ast.parse(path.read_text())))


def calls(path: Path) -> list[ast.Call]:
    return [node for node in nodes(path) if isinstance(node, ast.Call)]


def none(wrong: list[str]) -> None:
    assert not wrong, "\n".join(wrong)


def test_modules_and_public_classes_say_what_they_are() -> None:
    wrong = []
    for path in FILES:
        tree = ast.parse(path.read_text())
        public = [node for node in tree.body if isinstance(node, ast.ClassDef) and not node.name.startswith("_")]
        wrong += [f"{name(path)}: no docstring"] * (not ast.get_docstring(tree))
        wrong += [f"{name(path)}: class {node.name} has no docstring" for node in public if not ast.get_docstring(node)]
    none(wrong)


def test_functions_take_few_arguments() -> None:
    """At most 8, a constructor 12; the command line and processor instructions are exempt."""
    wrong = []
    for path in [path for path in FILES if not name(path).startswith("apps/cli/")]:
        for node in nodes(path):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                if "intrinsic" in map(ast.unparse, node.decorator_list):
                    continue
                arguments = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
                count = len([argument for argument in arguments if argument.arg not in ("self", "cls")])
                most = 12 if node.name == "__init__" else 8
                wrong += [f"{name(path)}: {node.name} takes {count} arguments, at most {most} are allowed"] * (count > most)
    none(wrong)


def raises(line: ast.stmt, error: str | None) -> bool:
    kept = isinstance(line, ast.Assign) and isinstance(line.value, ast.Name) and line.value.id == error
    return isinstance(line, ast.Raise) or kept


def test_only_entry_points_catch_everything() -> None:
    """A handler that raises again catches nothing, nor does one that keeps the error to raise it elsewhere."""
    wrong = []
    for path in BELOW_APPS:
        for node in nodes(path):
            if isinstance(node, ast.ExceptHandler) and not any(raises(line, node.name) for line in node.body):
                caught = "BaseException" if node.type is None else ast.unparse(node.type)
                if {"Exception", "BaseException"} & set(caught.strip("()").split(", ")):
                    wrong.append(f"{name(path)}:{node.lineno} catches {caught}; name the errors that you can handle")
    none(wrong)


def test_randomness_comes_in_as_an_argument() -> None:
    none(
        [
            f"{name(path)}:{call.lineno} sets a global seed"
            for path in BELOW_APPS
            for call in calls(path)
            if ast.unparse(call.func) in SEEDS
        ]
    )


def test_nothing_loaded_can_run() -> None:
    """Only importers open pickles, and only with an allow list."""
    wrong = []
    for path in [path for path in FILES if not name(path).startswith("importers/")]:
        for call in calls(path):
            weights_only = any(word.arg == "weights_only" and ast.unparse(word.value) == "True" for word in call.keywords)
            if ast.unparse(call.func) in RUNS and not weights_only:
                wrong.append(f"{name(path)}:{call.lineno} calls {ast.unparse(call.func)}")
    none(wrong)


def test_no_file_is_a_catch_all() -> None:
    drawers = {"utils", "util", "helpers", "helper", "misc", "common", "manager", "handler", "wrapper"}
    none([name(path) for path in FILES if drawers & set(name(path).removesuffix(".py").replace("/", "_").split("_"))])
