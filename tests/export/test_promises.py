"""What `ensemble/spec.py` promises that an engine makes: the export takes it, and refuses all else before it loads
anything."""

from __future__ import annotations

import json

import pytest

from ensemble.spec import ENGINES, FLOAT_DTYPES, Variant
from export import cli
from export.engines import registry
from export.engines.engine import EngineError
from export.engines.registry import ready

PROMISED = [(e.name, precision) for e in ENGINES.values() for precision in e.precisions]
OTHERS = [
    (name, p)
    for name, engine in ENGINES.items()
    for p in FLOAT_DTYPES
    if engine.exact(p) not in map(engine.exact, engine.precisions)
]


def test_every_engine_that_is_promised_can_export_and_promises_its_own_default():
    assert registry.ENGINES.keys() == ENGINES.keys()
    for name, spec in ENGINES.items():
        assert registry.ENGINES[name].spec is spec
        assert spec.precision in spec.precisions
        assert set(spec.precisions) <= FLOAT_DTYPES.keys()


def refusal(engine: str, precision: str) -> str:
    """Why this machine cannot export it, "" where it can."""
    try:
        ready(engine, precision=precision)
    except EngineError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(("engine", "precision"), PROMISED)
def test_what_is_promised_is_accepted_or_the_machine_is_to_blame(engine, precision):
    """An engine whose library or GPU is not here says so; it never says that it does not make that precision."""
    said = refusal(engine, precision)
    assert " makes " not in said
    assert engine != "onnxruntime" or not said, "it runs everywhere"
    exact = ENGINES[engine].exact(precision)
    assert Variant(252, precision=exact).float_dtype == FLOAT_DTYPES[exact]


@pytest.mark.parametrize(("engine", "precision"), OTHERS)
def test_what_is_not_promised_is_refused_before_work_begins(engine, precision, tmp_path, capsys):
    target = tmp_path / "repository"
    words = ["--checkpoint", str(tmp_path / "not-there"), "--engine", engine, "--precision", precision]
    assert cli.main([*words, "--repository", str(target), "--resolution", "252"]) == 2
    said = json.loads(capsys.readouterr().out)["error"]
    assert said.startswith(f"engine {engine} makes ")
    assert repr(precision) in said
    assert not target.exists()
