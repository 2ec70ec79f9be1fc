"""One entry point: every verb is listed with a line, explains itself, and writes nowhere near the published results."""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

import pytest

from perf import cli

VERBS = [
    *((name,) for name in cli.COMMANDS if name != "bench"),
    *(("bench", name) for name in cli.BENCH),
]
WRITE_NO_RESULTS = {("capacity",), ("check",), ("guide",)}


def module_of(verb: tuple[str, ...]) -> str:
    return (cli.BENCH if verb[0] == "bench" else cli.COMMANDS)[verb[-1]][0]


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_every_verb_explains_itself(verb: tuple[str, ...], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as stopped:
        cli.main([*verb, "--help"])
    assert stopped.value.code == 0
    page = capsys.readouterr().out
    assert page.startswith(f"usage: sam3-perf {' '.join(verb)} ")
    assert "\nexample" in page, "help has examples"
    assert f"\n  sam3-perf {' '.join(verb)}" in page, "which call this verb"


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_results_go_to_the_build_folder(verb: tuple[str, ...], monkeypatch: pytest.MonkeyPatch):
    """The default of each verb's --output; no two verbs share it."""
    seen: list[argparse.ArgumentParser] = []

    def parse_args(self: argparse.ArgumentParser, argv: object = None) -> argparse.Namespace:
        seen.append(self)
        raise SystemExit(0)

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    with pytest.raises(SystemExit):
        importlib.import_module(module_of(verb)).main([])
    output = seen[0].get_default("output")
    if verb in WRITE_NO_RESULTS:
        assert output is None
    else:
        assert output.parent == Path("build/perf")
        assert output.stem == verb[-1].replace("-", "_")


@pytest.mark.parametrize("verb", VERBS, ids=" ".join)
def test_options_have_the_names_that_they_have_everywhere(verb: tuple[str, ...], capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        cli.main([*verb, "--help"])
    page = capsys.readouterr().out
    for other in ("--resolutions", "--out ", "--grpc-url", "python -m"):
        assert other not in page


@pytest.mark.parametrize(
    ("argv", "verbs"),
    [
        pytest.param(["--help"], cli.COMMANDS, id="all"),
        pytest.param([], cli.COMMANDS, id="nothing asked"),
        pytest.param(["bench", "--help"], cli.BENCH, id="bench"),
        pytest.param(["bench"], cli.BENCH, id="bench alone"),
    ],
)
def test_verbs_are_listed_with_a_line_each(argv: list[str], verbs: dict, capsys: pytest.CaptureFixture[str]):
    assert cli.main(argv) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, (_, what) in verbs.items():
        assert [line.split()[0] for line in lines if line.endswith(what)] == [name]
    assert max(map(len, lines)) <= 100


@pytest.mark.parametrize("argv", [["guess"], ["bench", "guess"]], ids=" ".join)
def test_an_unknown_verb_is_answered_with_those_that_there_are(argv: list[str], capsys: pytest.CaptureFixture[str]):
    assert cli.main(argv) == 2
    said = capsys.readouterr().err
    assert "got 'guess'" in said
    assert ("kernels" if argv[0] == "bench" else "capacity") in said


@pytest.mark.parametrize("verb", cli.FORMERLY_ABOVE)
def test_verbs_that_have_moved_are_found_where_they_were(verb: str, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        cli.main([verb, "--help"])
    assert capsys.readouterr().out.startswith(f"usage: sam3-perf bench {verb} ")


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setitem(sys.modules, "torch", None)
    monkeypatch.delitem(sys.modules, "perf.bench.kernels", raising=False)
    assert cli.main(["bench", "kernels"]) == 2
    assert "needs the package torch; pip install" in capsys.readouterr().err
