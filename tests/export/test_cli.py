"""`sam3-export`: what it refuses and with which sentence, what it keeps, and its last line."""

from __future__ import annotations

import importlib.util
import json
import logging
import shutil
import sys
from dataclasses import replace

import pytest

from export.cli import Bar, main


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, dict]:
    """Exit status and the JSON of the last line of standard output."""
    status = main(argv)
    return status, json.loads(capsys.readouterr().out.strip().splitlines()[-1])


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        pytest.param("--resolution 1000", "multiple of 14, got 1000; nearest: 994, 1008", id="between two patches"),
        pytest.param("--resolution 112 -14", "multiple of 14, got -14; nearest: 14", id="second is negative"),
        pytest.param("--queries 300", "queries must be 1 to 20", id="more queries than trained"),
        pytest.param("--queries 0", "queries must be 1 to 20", id="no queries"),
        pytest.param("--engine vino", "one of tensorrt, tensorrt_rtx, onnxruntime, aoti, got 'vino'", id="no engine"),
        pytest.param("--precision int4", "makes fp32, fp16 or int8, got precision 'int4'", id="unknown precision"),
        pytest.param("--precision fp8", "engine onnxruntime makes fp32, fp16 or int8, got", id="fp8 without a GPU"),
        pytest.param("--calibration-frames .", "or fp8 beside --calibration-frames, got fp32 of engine", id="no fp8"),
        pytest.param(
            "--precision int8 --calibration entropy",
            "expected --precision int8 for a GPU beside --calibration, got int8 of engine onnxruntime: leave one out",
            id="calibration for a processor",
        ),
        pytest.param("--max-batch 0", "max_batch must be at least 1", id="no batch"),
        pytest.param("--frame-count 0", "the gate always runs", id="no frames"),
        pytest.param("--checkpoint /nowhere/sam3", "which is no folder", id="missing folder"),
        pytest.param(
            "--checkpoint sam3",
            "expected a checkpoint folder, a file or a hub name like facebook/sam3",
            id="no hub name",
        ),
    ],
)
def test_refusals_say_what_would_work(folder, tmp_path, capsys, options, sentence):
    defaults = ["--checkpoint", str(folder), "--resolution", "112", "--repository", str(tmp_path / "repository")]
    status, result = run(capsys, *defaults, *options.split())
    assert status == 2
    assert result["ok"] is False
    assert sentence in result["error"]
    assert not (tmp_path / "repository").exists()


@pytest.fixture
def cards(tmp_path, capsys):
    """What `sam3-export --engine tensorrt_rtx --precision int8` refuses with; nothing is written."""
    pytest.importorskip("tensorrt_rtx_bindings", reason='needs pip install "sam3-triton[rtx]"')

    def refused(checkpoint, *argv: str) -> str:
        options = ["--engine", "tensorrt_rtx", "--compute-capability", "86", "--precision", "int8", *argv]
        target = tmp_path / "repository"
        where = ["--checkpoint", str(checkpoint), "--repository", str(target), "--resolution", "112"]
        status, result = run(capsys, *where, *options)
        assert (status, target.exists()) == (2, False)
        return result["error"]

    return refused


def test_what_int8_of_a_gpu_cannot_be_calibrated_on(folder, tmp_path, cards):
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    given = ["--calibration-frames", str(pictures)]
    assert "got none; name what your cameras look for" in cards(folder, *given)
    assert "got 'car' ''; name what" in cards(folder, *given, "--calibration-prompts", "car", "")
    assert "got none; name what" in cards(folder, *given, "--calibration-prompts")
    assert "expected --calibration-frames beside" in cards(folder, "--calibration-prompts", "car")
    given += ["--calibration-prompts", "car"]
    assert "expected at least 4 images" in cards(folder, *given)
    for n in range(4):
        (pictures / f"{n}.jpg").write_bytes(b"no image")
    assert f"expected an image to calibrate on, {pictures}/0.jpg cannot be read" in cards(folder, *given)


def test_int8_of_another_checkpoint_needs_frames(folder, source, cards, monkeypatch):
    larger = replace(source.record, image_size=1008)
    monkeypatch.setattr(type(source), "record", property(lambda _: larger))
    assert "got none: drawn scenes do not show what it sees; name a folder" in cards(folder)


def test_file_in_place_of_the_repository_is_refused(folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    status, result = run(
        capsys, "--checkpoint", str(folder), "--resolution", "112", "--repository", str(tmp_path / "file")
    )
    assert status == 2
    assert "name a folder" in result["error"]


def test_a_place_that_cannot_be_written_is_refused_before_the_work(folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    argv = ["--checkpoint", str(folder), "--resolution", "112", "--repository", str(tmp_path / "repository")]
    status, result = run(capsys, *argv, "--staging", str(tmp_path / "file" / "staging"))
    assert status == 2
    assert "name another with --staging" in result["error"]


def test_folder_without_images_is_refused(folder, tmp_path, capsys):
    status, result = run(capsys, "--checkpoint", str(folder), "--resolution", "112", "--frames", str(tmp_path))
    assert status == 2
    assert "expected images" in result["error"]


def test_tensorrt_that_is_not_installed_is_refused(folder, capsys):
    argv = ["--checkpoint", str(folder), "--resolution", "112", "--engine", "tensorrt"]
    status, result = run(capsys, *argv, "--tensorrt-python", "/nowhere/python")
    assert status == 2
    assert "needs TensorRT's Python package" in result["error"]
    assert "expected a Python with TensorRT at /nowhere/python" in result["error"]
    assert "--engine onnxruntime" in result["error"]


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="this Python has TensorRT")
def test_a_python_without_tensorrt_is_named(folder, capsys):
    status, result = run(capsys, "--checkpoint", str(folder), "--resolution", "112", "--engine", "tensorrt")
    assert status == 2
    assert f"{sys.executable} says: No module named 'tensorrt'" in result["error"]


def test_export_completes_a_repository_and_keeps_what_is_current(exported, folder, tmp_path, capsys):
    root = tmp_path / "repository"
    shutil.copytree(exported(112).root, root)
    (root / "sam3_text_encoder" / "1" / "model.onnx").write_bytes(b"damaged")
    (root / "sam3_r112" / "config.pbtxt").unlink()
    argv = ["--checkpoint", str(folder), "--resolution", "112", "--max-pairs", "16", "--repository", str(root)]
    status, result = run(capsys, *argv, "--staging", str(tmp_path / "elsewhere" / "staging"))
    assert status == 0
    assert list((tmp_path / "elsewhere" / "staging").iterdir()) == []
    shutil.rmtree(tmp_path / "elsewhere")
    assert result["front"] == ["sam3_r112"]
    assert [entry["model"] for entry in result["written"] if entry["state"] == "built"] == ["sam3_text_encoder"]
    assert (root / "sam3_text_encoder" / "1" / "tokenizer.json").is_file()
    assert (root / "sam3_r112" / "config.pbtxt").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["repository"]  # no staging left

    status, result = run(capsys, *argv, "--front-instances", "3")
    assert {entry["state"] for entry in result["written"]} == {"kept"}
    assert "instance_group [{ kind: KIND_CPU, count: 3 }]" in (root / "sam3_r112" / "config.pbtxt").read_text()
    assert [entry["model"] for entry in result["written"]] == [
        *("sam3_vision_encoder_r112", "sam3_text_encoder", "sam3_geometry_encoder_r112"),
        *("sam3_decoder_r112_q20", "sam3_mask_head_r112_q20"),
    ]


def test_steps_and_log_lines_are_shown_where_there_is_no_terminal(capsys):
    log = logging.getLogger("export.engines")
    with Bar(2) as bar:
        bar.step("decoder: building model.plan")
        log.info("decoder: TensorRT builds %d layers", 7)
        log.debug("not shown")
    log.info("not shown either")
    shown = capsys.readouterr().err
    assert "decoder: building model.plan" in shown
    assert "decoder: TensorRT builds 7 layers" in shown
    assert "not shown" not in shown
