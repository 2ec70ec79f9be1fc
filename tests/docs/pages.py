"""The project's Markdown pages, read as data: fenced blocks, code between backticks, and links.

Behind a fenced block's language may stand a tag, as in "console gpu". Blocks without one are run by the tests. `gpu`
marks those that need a GPU, a container or gated weights, `long` those that take minutes, download, or are run by
another test; their commands are only parsed.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = tuple(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")) + tuple(
    sorted((ROOT / "docs").glob("*.md"))
)
TAGS = {"gpu", "long"}
_FENCE = re.compile(r"^```(.*)\n((?:.*\n)*?)^```$", re.MULTILINE)
_GENERATED = re.compile(r"<!-- (\w+) -->\n.*?<!-- /\1 -->", re.DOTALL)
"""Tables that `sam3-perf guide` writes from rows; they show commands as they were typed when the rows were made."""


@dataclass(frozen=True)
class Block:
    """One fenced block: its page, the line of its first line of text, its language, its tags and its text."""

    page: Path
    line: int
    language: str
    tags: frozenset[str]
    text: str

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[str]:
        """The lines after `$`, without the comment at their end."""
        lines = [line[2:] for line in self.text.splitlines() if line.startswith("$ ")]
        return [re.sub(r"\s+# .*$", "", line) for line in lines]


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for found in _FENCE.finditer(text):
        language, *tags = found[1].split() or [""]
        line = text.count("\n", 0, found.start()) + 2
        yield Block(page, line, language, frozenset(tags), found[2])


BLOCKS = [block for page in PAGES for block in blocks(page)]


def prose(page: Path) -> str:
    """A page without its fenced blocks and without its generated tables."""
    return _GENERATED.sub("", _FENCE.sub("", page.read_text()))


def spans(page: Path) -> list[str]:
    """What stands between single backticks."""
    return [" ".join(found.split()) for found in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose(page))]


def links(page: Path) -> list[str]:
    """The targets of links and pictures."""
    return re.findall(r"\]\(([^)\s]+)\)", prose(page))


def anchors(page: Path) -> set[str]:
    """The names under which a page's headings can be linked to."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def words(command: str) -> list[str]:
    """A command's words, without assignments in front of it and without what a shell does behind it."""
    found = shlex.split(command.removesuffix(" &"))
    while found and re.fullmatch(r"\w+=.*", found[0]):
        found.pop(0)
    return found
