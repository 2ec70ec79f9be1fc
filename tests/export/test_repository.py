"""A model's folder: current once it is complete, until something in it or of what it was made from changes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from ensemble import spec
from ensemble.spec import Variant
from export.engines.engine import Tool
from export.engines.registry import ENGINES
from export.manifest import ROOM, recipe
from export.repository import MANIFEST, VERSION, Written, file_sha256, is_current, publish, write_configurations

DATA = {
    "model": "sam3_text_encoder",
    "artifact": "model.onnx",
    "recipe": "flour",
    "build_seconds": 3.5,
    "gate": {"outputs": {"a": {"cosine": 1.0, "relative_error": 1e-6}, "b": {"cosine": 0.9, "relative_error": 1e-7}}},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Published over what an earlier run left."""
    staged, folder = tmp_path / "staged", tmp_path / "sam3_text_encoder"
    for path, content in ((staged, b"graph"), (folder, b"old")):
        (path / VERSION).mkdir(parents=True)
        (path / VERSION / "model.onnx").write_bytes(content)
    (staged / VERSION / "model.onnx.data").write_bytes(b"weights" * 200_000)
    publish(staged, folder, DATA)
    return folder


def test_what_is_published_is_current_and_describes_itself(folder):
    assert is_current(folder, "flour")
    assert (folder / VERSION / "model.onnx").read_bytes() == b"graph"
    said = json.loads((folder / MANIFEST).read_text())
    assert said["files"] == {name: file_sha256(folder / VERSION / name) for name in ("model.onnx", "model.onnx.data")}
    assert Written.at(folder, kept=True) == Written(
        "sam3_text_encoder", "sam3_text_encoder/1/model.onnx", 1.3, "kept", 3.5, cosine=0.9, relative_error=1e-6
    )


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda folder: (folder / VERSION / "model.onnx.data").write_bytes(b"damaged"), id="another file"),
        pytest.param(lambda folder: (folder / VERSION / "model.onnx").unlink(), id="a file is gone"),
        pytest.param(lambda folder: (folder / MANIFEST).unlink(), id="no manifest"),
        pytest.param(lambda folder: (folder / MANIFEST).write_text('{"recipe": "flo'), id="half a manifest"),
        pytest.param(
            lambda folder: (folder / MANIFEST).write_text('{"recipe": "flour"}'), id="a manifest without files"
        ),
    ],
)
def test_a_folder_that_was_changed_is_not_current(folder, change):
    change(folder)
    assert not is_current(folder, "flour")


def test_a_folder_is_not_current_before_it_is_complete(folder, tmp_path, monkeypatch):
    """The disk is full after the first of two files: neither the new content nor the old passes for current."""
    staged, move = tmp_path / "again", shutil.move
    (staged / VERSION).mkdir(parents=True)
    for name in ("model.onnx", "model.onnx.data"):
        (staged / VERSION / name).write_bytes(b"new")

    def until_full(source: Path, target: Path) -> None:
        if source.name == "model.onnx.data":
            raise OSError("no space left on device")
        move(source, target)

    monkeypatch.setattr("export.repository.shutil.move", until_full)
    with pytest.raises(OSError, match="no space left"):
        publish(staged, folder, {**DATA, "recipe": "rye"})
    assert (folder / VERSION / "model.onnx").read_bytes() == b"new"
    assert not is_current(folder, "rye")
    assert not is_current(folder, "flour")


def test_configurations_of_another_engine_leave_nothing_behind(tmp_path):
    """The front is Python whatever runs the sub-models; TensorRT's plans need no `model.py`."""
    variant = Variant(resolution=112)
    scripts = {}
    for engine in ("onnxruntime", "tensorrt"):
        written = write_configurations(variant, engine, tmp_path)
        scripts[engine] = {path.parent.parent.name for path in tmp_path.glob("*/1/model.py")}
        assert {path.parent.name for path in written if path.name == "config.pbtxt"} == {
            model.name for model in (*variant.sub_models, variant.front)
        }
    assert len(scripts["onnxruntime"]) == 6
    assert scripts["tensorrt"] == {"sam3_r112"}


def recipe_of(
    part: str = "decoder",
    engine: str = "tensorrt",
    weights: str = "00",
    level: int = 3,
    room: Path = ROOM,
    **choices: int | str,
) -> str:
    tool = Tool(ENGINES[engine], None, None, {"gpu": "NVIDIA H200"}, {"level": level})
    return recipe(SimpleNamespace(part_sha256=lambda _: weights), Variant(**choices), part, tool, room)


def test_a_recipe_names_all_that_an_artifact_is_made_from():
    """Whatever differs, the hash does; and a sub-model that a choice does not affect keeps its own."""
    changed = [
        recipe_of(weights="ff"),
        recipe_of(level=4),
        recipe_of(precision="fp32"),
        recipe_of(queries=100),
        recipe_of(resolution=672),
        recipe_of(part="mask_head"),
    ]
    recipes = [*changed, *(recipe_of(engine=engine) for engine in ENGINES)]
    assert len(set(recipes)) == len(recipes)
    assert recipe_of("text_encoder", queries=100, resolution=672) == recipe_of("text_encoder")


def test_every_engine_has_both_records():
    assert {name: engine.spec for name, engine in ENGINES.items()} == spec.ENGINES


@pytest.mark.parametrize(
    ("path", "stale"),
    [
        pytest.param("checkpoint/source.py", set(ENGINES), id="another size of the same weights"),
        pytest.param("checkpoint/loading.py", set(), id="how checkpoints are read: what was read is in the hash"),
        pytest.param("sub_models/attention.py", set(ENGINES), id="a sub-model"),
        pytest.param("sub_models/new.py", set(ENGINES), id="a new file of the sub-models"),
        pytest.param("engines/onnx.py", set(ENGINES), id="inputs for tracing"),
        pytest.param("engines/tensorrt/host.py", {"tensorrt", "tensorrt_rtx"}, id="how plans are built"),
        pytest.param("engines/tensorrt/v8.py", {"tensorrt", "tensorrt_rtx"}, id="one version of TensorRT"),
        pytest.param("engines/tensorrt_rtx/build.py", {"tensorrt_rtx"}, id="how plans for cards are built"),
        pytest.param("engines/aoti.py", {"aoti"}, id="how packages are built"),
        pytest.param("fused/decoder.py", {"aoti"}, id="a sub-model for one GPU"),
        pytest.param("fused/kernels/attention.py", {"aoti"}, id="a kernel"),
        pytest.param("engines/onnxruntime.py", {"onnxruntime"}, id="how ONNX files are run"),
        pytest.param("gate/verify.py", set(), id="the gate"),
        pytest.param("cli.py", set(), id="the command line"),
        pytest.param("tiny/train.py", set(), id="how the small checkpoint was trained"),
    ],
)
def test_artifacts_become_stale_when_the_code_that_makes_them_changes(path, stale, tmp_path):
    room = tmp_path / "export"
    shutil.copytree(ROOM, room, ignore=shutil.ignore_patterns("*.safetensors", "__pycache__"))
    before = {engine: recipe_of(engine=engine, room=room) for engine in ENGINES}
    assert before == {engine: recipe_of(engine=engine) for engine in ENGINES}, "the folder itself does not matter"
    with (room / path).open("a") as file:
        file.write("# changed\n")
    assert {engine for engine in ENGINES if recipe_of(engine=engine, room=room) != before[engine]} == stale
