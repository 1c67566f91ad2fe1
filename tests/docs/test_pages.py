"""What the pages say is done: every block runs, a page in one namespace and one folder, from top to bottom.

The blocks of a page that need a program are a test of their own, which is skipped if the program is not installed.
"""

import ast
import importlib.util
import io
import re
import runpy
import shlex
import shutil
import sys
import warnings
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
import typer
from matplotlib.image import imread
from pages import DATA, PAGES, ROOT, RUN, Block, anchors, blocks, links
from released import stand_ins

import cadenza.conditioners as family
from cadenza.apps.cli import main as program
from cadenza.conditioners.base import ConditionerSpec

PICTURES = sorted((ROOT / "docs" / "pictures").glob("*.png"))
EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.py") if not path.name.startswith("convert_"))


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where a page is followed: a folder with the configs, in which a conditioner that a page adds is found."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.setattr(family, "__path__", [*family.__path__, str(tmp_path / "src/cadenza/conditioners")])
    filed, loaded = set(ConditionerSpec.registry), set(sys.modules)
    random = torch.get_rng_state()
    yield tmp_path
    torch.set_rng_state(random)
    for part in set(ConditionerSpec.registry) - filed:
        if f"cadenza.conditioners.{part}" not in loaded and (tmp_path / f"src/cadenza/conditioners/{part}.py").exists():
            del ConditionerSpec.registry[part], sys.modules[f"cadenza.conditioners.{part}"]


def parts(page: Path) -> list[Any]:
    """The parameters of the tests of a page: one for each program that blocks need, and one for all other blocks."""
    programs = sorted({block.needs for block in blocks(page)})
    marks = {program: [pytest.mark.needs(program)] if program else [] for program in programs}
    return [pytest.param(page, program, marks=marks[program], id=f"{name(page)}-{program}".rstrip("-")) for program in programs]


@pytest.mark.parametrize(("page", "program"), sum(map(parts, PAGES), []))
def test_a_page_can_be_followed(page: Path, program: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    stand_ins(page.read_text(), folder)
    for block in [block for block in blocks(page) if block.needs == program]:
        try:
            follow(block, page, folder, namespace, monkeypatch)
        except BaseException as error:
            error.add_note(f"in {name(page)}, the block that begins at line {block.line}")
            raise


def follow(block: Block, page: Path, folder: Path, namespace: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Does what a reader would do with a block."""
    assert block.language in RUN | DATA, f"say what the block is: {', '.join(sorted(RUN | DATA))}"
    if block.mark == "file":
        path = folder / block.said
        assert path.resolve().is_relative_to(folder.resolve())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)
    elif block.mark == "printed":
        printed(block, namespace["__printed__"])
    elif block.language == "python":
        code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
        if block.mark != "shown":
            with redirect_stdout(io.StringIO()) as said:
                exec(code, namespace)  # noqa: S102
            namespace["__printed__"] = said.getvalue()
    elif block.language == "bash":
        namespace["__printed__"] = ""
        for command in block.commands():
            words = shlex.split(command)
            checked(words)
            if words[0] == "cadenza" and block.mark != "shown":
                namespace["__printed__"] += run([*words, *added(block, words[1])], monkeypatch)
            else:
                assert words[0] == "make" or block.mark == "shown", f"`{command}` is not run; say why: <!-- shown: REASON -->"


def test_blocks_that_render_a_corpus_need_fluidsynth() -> None:
    for page in PAGES:
        for block in blocks(page):
            renders = block.language == "bash" and any(
                shlex.split(line)[:2] == ["cadenza", "corpus"] for line in block.commands()
            )
            if renders and block.mark != "shown":
                assert block.needs == "fluidsynth", f"{name(page)}:{block.line}: add <!-- needs: fluidsynth -->"


def added(block: Block, verb: str) -> list[str]:
    """The options that a mark adds to the commands of a verb: `--all 1`, or `train --steps 2; generate --seconds 1`."""
    parts = [shlex.split(part) for part in block.said.split(";")] if block.mark == "test" else []
    options = [part if part[0].startswith("--") else part[1:] for part in parts if part[0] == verb or part[0].startswith("--")]
    return sum(options, [])


def run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    """What the program prints, run in this process; it must end well."""
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as end, warnings.catch_warnings(), redirect_stdout(io.StringIO()) as said:
        warnings.simplefilter("ignore")
        program.main()
    assert not end.value.code, f"`{shlex.join(words)}` ends with status {end.value.code}"
    return said.getvalue()


def printed(block: Block, output: str) -> None:
    """The block is the output, but for "…"."""
    pattern = r"[^\n]*".join(re.escape(part) for part in block.text.strip().split("…"))
    assert re.fullmatch(pattern, output.strip()), f"the page shows\n{block.text}\nbut this was printed\n{output}"


def checked(words: list[str]) -> None:
    """A command of ours has a verb and options that exist; `make` has such a target."""
    if "cadenza" in words[:1] or ("-m" in words and "cadenza" in words):
        words = words[words.index("cadenza") + 1 :]
        verbs: Any = typer.main.get_command(program.app)
        if words[0] in ("--help", "--version"):
            return
        assert words[0] in verbs.commands, f"cadenza has no verb {words[0]}"
        verbs.commands[words[0]].make_context(words[0], words[1:])
    elif words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M)
        assert {word for word in words[1:] if "=" not in word} <= set(targets), f"the Makefile does not know {words}"


def test_the_conditioner_of_the_docs_keeps_the_contract(folder: Path) -> None:
    """One file dropped in, asked what every conditioner is asked."""
    file = next(block for block in blocks(ROOT / "docs/add-a-conditioner.md") if block.mark == "file")
    (folder / file.said).parent.mkdir(parents=True)
    (folder / file.said).write_text(file.text)
    contract = script(ROOT / "tests/contract/test_conditioners.py")
    spec, values = ConditionerSpec.lookup(Path(file.said).stem).example()
    for promise in contract.CONTRACT:
        for absent in ("learned", "zeros"):
            promise(ConditionerSpec.parse({**spec.to_dict(), "null_embedding": absent}), values)


def script(path: Path) -> Any:
    """A file that is in no package, as a module."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        path, _, anchor = link.partition("#")
        there = (page.parent / path).resolve() if path else page
        assert there.exists(), f"{name(page)} points to {link}, which is not there"
        assert not anchor or anchor in anchors(there), f"{name(page)} points to {link}; {there.name} has no such heading"


def test_pictures_are_light_and_shown() -> None:
    shown = {(page.parent / link).resolve() for page in PAGES for link in links(page)}
    for picture in PICTURES:
        assert picture.stat().st_size <= 100_000, f"{name(picture)} is larger than 100 kB"
        assert picture in shown, f"no page shows {name(picture)}"


def test_pictures_are_those_that_the_code_draws(tmp_path: Path) -> None:
    """Drawn again, those that need no model look as they do in the repository, but for how letters are rendered."""
    draw = script(ROOT / "docs/draw.py")
    assert {picture.stem for picture in PICTURES} == set(draw.PICTURES)
    for what in ("patterns", "step"):
        draw.PICTURES[what](tmp_path)
        kept, drawn = (imread(folder / f"{what}.png")[:, :, :3] for folder in (ROOT / "docs/pictures", tmp_path))
        assert kept.shape == drawn.shape and np.abs(kept - drawn).mean() < 0.01, f"python docs/draw.py {what}"


def test_pages_are_for_everyone() -> None:
    """Short lines of prose are not asked for, but plain text is: no tabs, no blanks at line ends."""
    for page in PAGES:
        for number, line in enumerate(page.read_text().splitlines(), 1):
            assert "\t" not in line and line == line.rstrip(), f"{name(page)}:{number}: a tab, or blanks at the end"


PAGE = """# Here
<!-- file: a.txt -->
```text
hello
```
Words with a [link](b.md#there).
````python
x = "```"
````
<!-- test: --hours 0.1 -->
```bash
cadenza corpus out \\
  --hours 10   # many
# nothing
```
<!-- needs: fluidsynth -->
<!-- shown: takes long -->
```bash
cadenza corpus out
```
<!-- needs: fluidsynth -->
```python
y = 1
```
<!-- needs: fluidsynth -->

```python
z = 1
```
"""


def test_pages_are_read_well(tmp_path: Path) -> None:
    """The reader of pages itself."""
    page = tmp_path / "page.md"
    page.write_text(PAGE)
    assert blocks(page) == [
        Block("text", "hello\n", 4, "file", "a.txt"),
        Block("python", 'x = "```"\n', 8),
        Block("bash", "cadenza corpus out \\\n  --hours 10   # many\n# nothing\n", 12, "test", "--hours 0.1"),
        Block("bash", "cadenza corpus out\n", 19, "shown", "takes long", "fluidsynth"),
        Block("python", "y = 1\n", 23, needs="fluidsynth"),
        Block("python", "z = 1\n", 28),  # a blank line separates it from the comment
    ]
    assert [(part.id, [mark.args for mark in part.marks]) for part in parts(ROOT / "README.md")] == [
        ("README.md", []),
        ("README.md-fluidsynth", [("fluidsynth",)]),
    ]
    assert shlex.split(blocks(page)[2].commands()[0]) == ["cadenza", "corpus", "out", "--hours", "10"]
    assert len(blocks(page)[2].commands()) == 1
    assert added(Block("bash", "", 1, "test", "train --steps 2; --all 1"), "train") == ["--steps", "2", "--all", "1"]
    assert added(Block("bash", "", 1, "test", "train --steps 2; --all 1"), "corpus") == ["--all", "1"]
    assert links(page) == ["b.md#there"] and anchors(page) == {"here"}


@pytest.mark.parametrize(
    "text",
    ["```python\nraise ValueError\n```\n", "```bash\ncadenza sing\n```\n", "```bash\nmake music\n```\n", "```bash\nls\n```\n"]
    + ["```bash\ncadenza inspect nowhere\n```\n", "```bash\ncadenza generate x --outt a.wav\n```\n", "```\nx\n```\n"],
)
def test_a_page_can_fail(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """The runner of pages itself."""
    page = tmp_path / "page.md"
    page.write_text(text)
    with pytest.raises(BaseException):  # noqa: B017, PT011
        follow(blocks(page)[0], page, folder, {}, monkeypatch)


def test_what_a_page_shows_as_printed_can_fail() -> None:
    printed(Block("text", "1.… MiB\nend\n", 1, "printed", "the size"), "1.25 MiB\nend\n")
    for output in ("1.25 MiB\n", "1.25 MiB\nmore\nend\n", "12 MiB\nend\n", ""):
        with pytest.raises(AssertionError, match="this was printed"):
            printed(Block("text", "1.… MiB\nend\n", 1, "printed", "the size"), output)


@pytest.mark.parametrize("example", EXAMPLES, ids=name)
def test_an_example_runs(example: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ast.get_docstring(ast.parse(example.read_text())), "say what the example is"
    monkeypatch.setattr(sys, "argv", [str(example), "--seconds", "1"])
    runpy.run_path(str(example), run_name="__main__")
    made = sorted(folder.rglob("*.wav"))
    assert made, "no audio was written"
    for path in made:
        assert 0 < soundfile.info(path).duration <= 1.0
