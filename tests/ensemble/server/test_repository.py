"""The folder from which the embedded server starts: the engine model or the sub-models, links to the artifacts, and
nothing that it cannot run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ensemble import pbtxt
from ensemble.server import repository as placement
from ensemble.server.embedded import EmbeddedServer
from ensemble.server.requirements import ServerError
from ensemble.spec import ENGINES, Variant
from tests.ensemble.server.repositories import write

PARTS = {model.part for model in Variant().sub_models}


@pytest.fixture
def lay_out(tmp_path):
    """Lays out a repository of two resolutions and returns the folder."""

    def run(engine: str = "onnxruntime", **options) -> Path:
        root = write(tmp_path / "exported", [672, 560], engine)
        (root / "sam3_text_encoder" / "1" / "tokenizer.json").write_text("{}")
        (tmp_path / "scratch").mkdir()
        return placement.lay_out(placement.read(root), tmp_path / "scratch", **options)

    return run


def models(root: Path) -> set[str]:
    return {path.parent.name for path in root.glob("*/config.pbtxt")}


def test_one_engine_model_for_all_resolutions(lay_out):
    root = lay_out()
    assert models(root) == {"sam3_r672", "sam3_r560", "sam3_engine"}
    config = pbtxt.read(root / "sam3_engine" / "config.pbtxt")
    fronts = json.loads(config.parameters["fronts"])
    assert {name: Variant.from_dict(front["variant"]).resolution for name, front in fronts.items()} == {
        "sam3_r672": 672,
        "sam3_r560": 560,
    }
    assert all(front["engines"] == dict.fromkeys(PARTS, "onnxruntime") for front in fronts.values())
    assert not config.on_gpu
    for name in fronts:
        assert pbtxt.read(root / name / "config.pbtxt").parameters["engine_model"] == "sam3_engine"


@pytest.mark.parametrize("engine", ["onnxruntime", "aoti"])
def test_artifacts_are_linked_and_not_copied(lay_out, tmp_path, engine):
    root = lay_out(engine)
    linked = {path.name: path.resolve() for path in (root / "sam3_engine" / "1").iterdir() if path.is_symlink()}
    assert len(linked) == 1 + 2 * 4, "both have the same text encoder"
    assert all(target.parent == tmp_path / "exported" for target in linked.values())
    assert all((target / "1" / ENGINES[engine].artifact).is_file() for target in linked.values())
    assert all((root / name / "1" / "tokenizer.json").is_file() for name in ("sam3_r672", "sam3_r560"))


@pytest.mark.parametrize(
    ("gpus", "place"),
    [
        pytest.param([], "kind: KIND_CPU, count: 1", id="none"),
        pytest.param([0], "kind: KIND_GPU, gpus: [ 0 ], count: 1", id="one"),
        pytest.param([1, 3], "kind: KIND_GPU, gpus: [ 1, 3 ], count: 1", id="an instance each"),
    ],
)
def test_an_engine_model_on_each_gpu(lay_out, gpus, place):
    root = lay_out("aoti", gpus=gpus)
    assert place in (root / "sam3_engine" / "config.pbtxt").read_text()
    assert "KIND_CPU" in (root / "sam3_r672" / "config.pbtxt").read_text(), "front models have no CUDA"


@pytest.mark.parametrize("engine", ["onnxruntime", "aoti"])
def test_sub_models_as_models_of_their_own(lay_out, tmp_path, engine):
    root = lay_out(engine, sub_models=True)
    exported = placement.read(tmp_path / "exported")
    names = {model.name for one in exported for model in one.variant.sub_models}
    assert models(root) == {"sam3_r672", "sam3_r560", *names}
    for name in names:
        assert (root / name / "1" / ENGINES[engine].artifact).resolve().parents[2] == tmp_path / "exported"
        assert pbtxt.read(root / name / "config.pbtxt").parameters["engine"] == engine
    assert "engine_model" not in pbtxt.read(root / "sam3_r672" / "config.pbtxt").parameters


def test_plans_are_refused(tmp_path):
    server = EmbeddedServer(write(tmp_path, [672], "tensorrt"))
    sentence = (
        "sam3_vision_encoder_r672 is a tensorrt model, which the embedded server cannot run; start it with docker"
        " compose up, or export for this server with sam3-export --engine onnxruntime"
    )
    for begin in (server.check, server.start):
        with pytest.raises(ServerError, match=sentence):
            begin()
    assert server.pid is None


@pytest.mark.parametrize("sub_models", [False, True])
def test_model_py_is_the_servers_own(lay_out, tmp_path, sub_models):
    """What was exported by another version names modules that may have moved, or is not there at all."""
    old = tmp_path / "exported" / "sam3_decoder_r672_q200" / "1" / "model.py"
    old.parent.mkdir(parents=True)
    root = lay_out(sub_models=sub_models)
    assert old.read_text().startswith("from ensemble.")
    old.unlink()
    modules = {path.parents[1].name: path.read_text().split()[1] for path in root.glob("*/1/model.py")}
    fronts = dict.fromkeys(("sam3_r672", "sam3_r560"), "ensemble.front")
    if sub_models:
        assert modules == fronts | dict.fromkeys(models(root) - set(fronts), "ensemble.sub_model")
    else:
        assert modules == fronts | {"sam3_engine": "ensemble.engine"}


def test_front_models_are_written_as_they_are_served(tmp_path):
    """Other batches than exported are in the new configuration alone."""
    root = write(tmp_path / "exported", [672], "onnxruntime")
    served = placement.adjusted(placement.read(root), {"max_batch": 2})
    laid_out = placement.lay_out(served, tmp_path / "scratch")
    assert "max_batch_size: 2" in (laid_out / "sam3_r672" / "config.pbtxt").read_text()
    assert "max_batch_size: 8" in (root / "sam3_r672" / "config.pbtxt").read_text()
