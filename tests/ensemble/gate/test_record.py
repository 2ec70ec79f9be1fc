"""When an artifact is believed, and the record of what passed."""

from __future__ import annotations

import json

import pytest

from ensemble.gate.compare import OutputCheck, compare
from ensemble.gate.record import FILE, Record, beside, why_measure

HERE = {"gpu": "NVIDIA GeForce RTX 4090", "driver": "580.95", "engine": "tensorrt_rtx 1.7.1"}
OTHER = HERE | {"driver": "581.02"}
FILES = {"model.rtx": "a1"}
PASSED = {"files": FILES, "truths": "t1"}
MEASURED = {"files": FILES, "gate": {"on": HERE}}
UNSEEN = {"files": FILES, "gate": None}


@pytest.mark.parametrize(
    ("manifest", "digests", "on", "truths", "entry", "why"),
    [
        pytest.param(MEASURED, FILES, HERE, "t1", None, None, id="exported here"),
        pytest.param(MEASURED, FILES, OTHER, "t1", None, "was measured on NVIDIA", id="another driver since"),
        pytest.param(MEASURED, FILES, OTHER, "t1", PASSED, None, id="and measured with it"),
        pytest.param(MEASURED, {"model.rtx": "b2"}, HERE, "t1", None, "not the one", id="another file"),
        pytest.param(MEASURED, {}, HERE, "t1", None, "not the one", id="a file is gone"),
        pytest.param(MEASURED, {"model.rtx": "b2"}, HERE, "t1", PASSED, "not the one", id="another since it passed"),
        pytest.param(UNSEEN, FILES, HERE, "t1", None, "could not run it", id="built elsewhere"),
        pytest.param(UNSEEN, FILES, HERE, "t1", PASSED, None, id="and passed here"),
        pytest.param(UNSEEN, FILES, HERE, "t2", PASSED, "could not run it", id="by other truths"),
        pytest.param({"files": FILES, "gate": {}}, FILES, HERE, "t1", None, "could not run it", id="an empty gate"),
        pytest.param({"files": FILES, "gate": {"outputs": 1}}, FILES, HERE, "t1", None, None, id="before there were"),
    ],
)
def test_what_is_believed(manifest, digests, on, truths, entry, why):
    found = why_measure(manifest, digests, on, truths, entry)
    assert (found is None) == (why is None)
    assert why is None or why in found


def test_a_record_keeps_one_entry_for_each_machine(tmp_path):
    record = Record.read(tmp_path / "repository")
    check = OutputCheck("decoder", "boxes", 0.9999, 1e-3)
    for on, cosine in ((HERE, 0.9), (OTHER, 0.8), (HERE, 0.9999)):
        record.note("decoder", FILES, on, "t1", [OutputCheck("decoder", "boxes", cosine, 1e-3)], {})
    record.write()
    again = Record.read(tmp_path / "repository")
    assert [entry["on"] for entry in again.passed["decoder"]] == [OTHER, HERE]
    assert again.entry("decoder", HERE)["outputs"] == {"boxes": {"cosine": check.cosine, "relative_error": 1e-3}}
    assert again.entry("decoder", HERE)["date"]
    assert again.entry("decoder", HERE | {"driver": "1"}) is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"passed": 3}'], ids=["empty", "cut off", "a list", "no record"])
def test_a_spoilt_record_is_begun_anew(tmp_path, caplog, text):
    folder = beside(tmp_path / "repository")
    folder.mkdir()
    (folder / FILE).write_text(text)
    assert Record.read(tmp_path / "repository").passed == {}
    assert "measured again" in caplog.text


def test_where_it_cannot_be_written_the_log_says_what_that_means(tmp_path, caplog):
    """A file in the folder's place: root, as whom tests may run, writes to read-only folders."""
    beside(tmp_path / "repository").write_text("")
    Record(beside(tmp_path / "repository")).write()
    assert "measured again at the next start" in caplog.text


def test_files_are_hashed_once(tmp_path):
    folder, record = tmp_path / "1", Record(tmp_path / "here")
    folder.mkdir()
    (folder / "model.onnx").write_bytes(b"one")
    (folder / "model.py").write_text("no artifact")
    first = record.digests(folder)
    assert list(first) == ["model.onnx"]
    (noted,) = record.files.values()
    noted["sha256"] = "as noted"
    assert record.digests(folder) == {"model.onnx": "as noted"}
    (folder / "model.onnx").write_bytes(b"another")
    assert record.digests(folder)["model.onnx"] not in ("as noted", first["model.onnx"])
    assert json.dumps(record.files)


def test_some_values_of_a_tensor_are_measured_against_the_largest_of_all():
    import numpy as np

    cosine, relative = compare(np.float32([1, 2, 3]), np.float32([1, 2, 4]), peak=100.0)
    assert relative == pytest.approx(0.01)
    assert 0.98 < cosine < 1
