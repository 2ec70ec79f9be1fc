"""A model's folder: current once it is whole and until something in it, or what it was made from, changes. No
checkpoint is needed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from ensemble.spec import ENGINES, Variant
from export.manifest import recipe
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


def test_what_is_published_is_current_and_tells_of_itself(folder):
    assert is_current(folder, "flour")
    assert (folder / VERSION / "model.onnx").read_bytes() == b"graph"
    said = json.loads((folder / MANIFEST).read_text())
    assert said["files"] == {name: file_sha256(folder / VERSION / name) for name in ("model.onnx", "model.onnx.data")}
    assert Written.at(folder, kept=True) == Written(
        "sam3_text_encoder", "sam3_text_encoder/1/model.onnx", 1.4, "kept", 3.5, cosine=0.9, relative_error=1e-6
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


def test_a_folder_is_not_current_before_it_is_whole(folder, tmp_path, monkeypatch):
    """The disk is full after the first of two files: neither what came nor what was there passes for current."""
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


def test_a_recipe_names_all_that_an_artifact_is_made_from():
    """Whatever differs, the hash does; and a sub-model that a choice does not reach keeps its own."""

    def of(
        part: str = "decoder", engine: str = "tensorrt", weights: str = "00", level: int = 3, **choices: int | str
    ) -> str:
        tool = SimpleNamespace(built_for={"gpu": "NVIDIA H200"}, settings={"level": level})
        return recipe(SimpleNamespace(sha256=weights), Variant(**choices), engine, part, tool)

    changed = [
        of(weights="ff"),
        of(level=4),
        of(precision="fp32"),
        of(queries=100),
        of(resolution=672),
        of(part="mask_head"),
    ]
    recipes = [*changed, *(of(engine=engine) for engine in ENGINES)]
    assert len(set(recipes)) == len(recipes)
    assert of("text_encoder", queries=100, resolution=672) == of("text_encoder")
