"""The layout that docs/architecture.md describes: which room may import which, no circles, small files, and no folder
that the page does not name."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text()

MAY_IMPORT: dict[str, set[str]] = {
    "ensemble": set(),
    "export": {
        *("ensemble.spec", "ensemble.records", "ensemble.tracker_interfaces", "ensemble.pbtxt"),
        *("ensemble.engines", "ensemble.gate", "ensemble.video.follow"),
    },
    "clients": {
        *("ensemble.spec", "ensemble.records", "ensemble.loopback", "ensemble.boxes", "ensemble.pictures"),
        "ensemble.video.variant",
    },
    "perf": {"ensemble", "export", "clients", "demo.steps"},
    "demo": {"ensemble", "export", "clients"},
}
"""Modules and packages of other rooms that a room may import; docs/architecture.md shows the same table."""

NOT_IN_PIPELINE = {"triton_python_backend_utils", "torch", "onnxruntime", "cupy"}
"""What neither `ensemble/pipeline.py` nor any module it imports may import: its tests run without server and GPU."""

LONGEST = 300
"""Lines of a Python file."""


def module_name(path: Path) -> str:
    """`ensemble/server/__init__.py` is the module `ensemble.server`."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for room in MAY_IMPORT for path in sorted((ROOT / room).rglob("*.py"))}


def imported(path: Path) -> Iterator[str]:
    """Everything a file imports when it runs, inside functions too; not what only type checkers read."""
    nodes: list[ast.AST] = [ast.parse(path.read_text())]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: expected an absolute import, got a relative one"
            for alias in node.names:  # `from package import module` and `from module import name` look alike
                name = f"{node.module}.{alias.name}"
                yield name if name in MODULES else str(node.module)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            nodes += node.orelse
        else:
            nodes += ast.iter_child_nodes(node)


IMPORTS = {name: set(imported(path)) for name, path in MODULES.items()}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_the_table_allows(room):
    allowed = MAY_IMPORT[room] | {room}
    others = {*MAY_IMPORT, "tests"}
    wrong = [
        f"{module} imports {name}"
        for module, names in IMPORTS.items()
        for name in sorted(names)
        if module.split(".")[0] == room
        and name.split(".")[0] in others
        and not any(name == a or name.startswith(f"{a}.") for a in allowed)
    ]
    assert not wrong, f"{room}/ may import {', '.join(sorted(allowed))}: {'; '.join(wrong)}"


def test_the_page_shows_the_same_table():
    rows = re.findall(r"^\| `(\w+)/` \|[^|]*\| ([^|]*) \|$", PAGE, re.MULTILINE)
    shown = {
        room: {
            name.strip("`").replace("/", ".").removesuffix(".py").rstrip(".") for name in re.findall(r"`[^`]+`", cell)
        }
        for room, cell in rows
    }
    assert shown == MAY_IMPORT


def test_the_pipeline_knows_neither_triton_nor_torch():
    seen: set[str] = set()
    todo = ["ensemble.pipeline"]
    while todo:
        module = todo.pop()
        if module not in seen:
            seen.add(module)
            todo += [name for name in IMPORTS[module] if name in MODULES]
    wrong = {module: sorted(found) for module in seen if (found := _tops(IMPORTS[module]) & NOT_IN_PIPELINE)}
    assert not wrong


def _tops(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def test_no_module_imports_itself_by_way_of_others():
    graph = {module: names & MODULES.keys() - {module} for module, names in IMPORTS.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"expected imports without circles, got {' -> '.join(reversed(error.args[1]))}")


def test_files_are_short():
    files = [*MODULES.values(), *sorted((ROOT / "tests").rglob("*.py"))]
    long = {str(path.relative_to(ROOT)): n for path in files if (n := len(path.read_text().splitlines())) > LONGEST}
    assert not long, f"expected at most {LONGEST} lines"


def test_every_folder_is_on_the_page():
    folders = {path.parent.relative_to(ROOT) for path in MODULES.values()}
    unnamed = sorted(str(folder) for folder in folders if f"`{folder}/`" not in PAGE)
    assert not unnamed, "expected every folder of the rooms in docs/architecture.md"


COMMANDS = [name for name, path in MODULES.items() if re.search(r"^def main\(", path.read_text(), re.MULTILINE)]


@pytest.mark.parametrize("module", COMMANDS)
def test_every_command_runs_as_a_module(module):
    """`python -m` of a module that has a `main` runs it, and does not end in silence."""
    runs = r'^if __name__ == "__main__":\n    (main\(\)|(raise SystemExit|sys\.exit)\(main\(\)\))$'
    assert re.search(runs, MODULES[module].read_text(), re.MULTILINE)
