"""The pages agree with the code: links lead somewhere, named files exist, commands take the options that are shown."""

from __future__ import annotations

import argparse
import importlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.docs.pages import BLOCKS, PAGES, ROOT, TAGS, anchors, links, spans, words

COMMANDS = dict(re.findall(r'^(sam3-\w+) = "([\w.]+):main"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE))
SERVICES = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
ROOMS = ("ensemble", "export", "clients", "perf", "demo", "docs", "tests", "model_repository", ".ci", ".github")


class ParsedError(BaseException):
    """Ends a command once its arguments are understood; no command may catch it."""


@pytest.fixture
def parse(monkeypatch, capsys) -> Callable[[str, list[str]], str]:
    """`parse(module, arguments)` hands them to the module's `main` and stops it there. Returns what it printed; fails
    where argparse refuses them."""
    original = argparse.ArgumentParser.parse_args

    def parse_and_stop(self, args=None, namespace=None):
        original(self, args, namespace)
        raise ParsedError

    def parse(module: str, arguments: list[str]) -> str:
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
        try:
            status = importlib.import_module(module).main(arguments)
        except ParsedError:
            return capsys.readouterr().out
        except SystemExit as end:
            status = end.code
        printed = capsys.readouterr()
        assert status in (0, None), f"python -m {module} {' '.join(arguments)}: {printed.err}"
        return printed.out

    return parse


def entry(found: list[str]) -> tuple[str, list[str]] | None:
    """The module behind a command's words and what is left for it; None for a command that is not the project's."""
    if found[:1] == ["torchrun"]:
        found = ["python", *found[found.index("-m") :]]
    if found[:4] == ["docker", "compose", "run", "--rm"] and found[4] == "build":
        return "export.cli", [*SERVICES["build"]["entrypoint"][3:], *found[5:]]
    if found[:2] == ["python", "-m"] and found[2] != "pytest":
        return found[2] + (".__main__" if found[2] == "demo" else ""), found[3:]
    if found and found[0] in COMMANDS:
        return COMMANDS[found[0]], found[1:]
    return None


EXAMPLES = {
    f"{block}-{i}": command
    for block in BLOCKS
    if block.language == "console"
    for i, command in enumerate(block.commands)
    if entry(words(command))
}


def test_tags_are_known():
    assert {str(block): block.tags for block in BLOCKS if block.tags - TAGS} == {}
    assert all(block.language for block in BLOCKS if block.tags)


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_command_takes_these_options(name, parse):
    parse(*entry(words(EXAMPLES[name])))


def mentioned() -> dict[str, set[str]]:
    """Command with its verbs -> options, of all commands between backticks."""
    found: dict[str, set[str]] = {}
    for page in PAGES:
        for span in spans(page):
            if re.match(r"(sam3-\w+|python -m (?!pytest)[\w.]+)( |$)", span):
                head = re.match(r"(?:python -m [\w.]+|sam3-perf(?: [a-z][\w-]*)*|sam3-\w+)", span)[0]
                found.setdefault(head, set()).update(re.findall(r"(?<= )--[a-z][\w-]*", span))
    return found


@pytest.mark.parametrize(("command", "options"), mentioned().items())
def test_a_command_in_the_text_has_these_options(command, options, parse):
    module, arguments = entry(command.split())
    listed = set(re.findall(r"--[a-z][\w-]*", parse(module, [*arguments, "--help"])))
    assert options <= listed


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for link in links(page):
        if link.startswith(("http://", "https://")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path) if path else page
        assert target.exists(), f"{link}: there is no such file"
        assert not anchor or anchor in anchors(target), f"{link}: that page has no such heading"


@pytest.mark.parametrize("page", [p for p in PAGES if p.name != "CHANGELOG.md"], ids=lambda page: page.name)
def test_files_that_are_named_exist(page):
    named = {s for s in spans(page) if re.fullmatch(r"[\w./-]+", s) and "/" in s and Path(s).parts[0] in ROOMS}
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_services_that_are_started_exist():
    commands = [words(command) for block in BLOCKS if block.language == "console" for command in block.commands]
    composed = [c for c in commands if c[:2] == ["docker", "compose"]]
    assert composed
    assert {next(w for w in c[3:] if not w.startswith("-")) for c in composed} <= SERVICES.keys()


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().split()) <= 1000
