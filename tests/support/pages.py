"""Pages of the documentation as what they hold: blocks, links, pictures.

A comment on the line before a block says what a reader does by hand: `<!-- file: NAME -->` stores the block under that
name, `<!-- test: OPTIONS -->` adds options to its commands so that they end soon (`train --set steps=2; corpus --hours
0.1` to those of a verb), `<!-- shown: REASON -->` has the commands checked but not run. `<!-- printed: WHAT DIFFERS -->`
says that a block is what the commands before it print; "…" in it stands for what may differ from machine to machine.
`<!-- needs: PROGRAM -->`, alone or on the line before one of these, names a program (`tests/support/programs.py`) that
the block calls, or that made the files it reads. These blocks of a page are a test of their own, in another folder.
"""

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
RUN = {"python", "bash"}
DATA = {"yaml", "json", "text"}

_FENCE = re.compile(r"^(`{3,})(\S*)\s*$")
_MARK = re.compile(r"^<!-- (file|test|shown|printed|needs): (.+) -->$")


@dataclass(frozen=True)
class Block:
    """A fenced block; `line` is that of its first line of text."""

    language: str
    text: str
    line: int
    mark: str = ""  # file, test, shown, printed or nothing
    said: str = ""  # what the mark says
    needs: str = ""  # the program without which it does not run

    def commands(self) -> list[str]:
        """The commands of a shell block, continued lines joined, comments left out."""
        joined = self.text.replace("\\\n", " ")
        return [line for line in (re.sub(r"(^|\s)#.*", "", line).strip() for line in joined.splitlines()) if line]


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    found, fence, start = [], "", 0
    language, lines, marks = "", list[str](), dict[str, str]()
    for number, line in enumerate(page.read_text().splitlines(), 1):
        match = _FENCE.match(line)
        if fence:
            if match and match[1] == fence and not match[2]:
                needs = marks.pop("needs", "")
                assert len(marks) <= 1, f"{page.name}:{start}: a block has one mark, not {', '.join(marks)}"
                found.append(Block(language, "\n".join(lines) + "\n", start, *sum(marks.items(), ()), needs=needs))
                fence, marks = "", {}
            else:
                lines.append(line)
        elif match:
            fence, language, start, lines = match[1], match[2], number + 1, []
        elif mark := _MARK.match(line):
            marks[mark[1]] = mark[2]
        else:
            marks = {}
    assert not fence, f"{page.name}:{start}: the block does not end"
    return found


def links(page: Path) -> list[str]:
    """Where a page points to within the repository."""
    targets = re.findall(r"\]\(([^)\s]+)\)", _prose(page))
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def anchors(page: Path) -> set[str]:
    """The names under which the headings of a page can be pointed to."""
    headings = re.findall(r"^#+ (.+)$", _prose(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _prose(page: Path) -> str:
    """A page without its blocks."""
    return re.sub(r"^(`{3,}).*?^\1$", "", page.read_text(), flags=re.M | re.S)
