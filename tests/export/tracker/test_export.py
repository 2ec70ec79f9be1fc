"""The tracker's sub-models in a repository, run by ONNX Runtime: built, verified, kept, refused."""

import json
import shutil

import pytest
import torch

from ensemble import pbtxt
from ensemble.engines.onnxruntime import OnnxSubModel
from ensemble.gate.compare import GateError
from ensemble.gate.limits import TRACKER_RELATIVE
from ensemble.server.repository import read_variant
from export import checkpoint
from export.checkpoint import at_size
from export.engines.engine import Tool
from export.engines.onnx import export_onnx
from export.engines.onnxruntime import ENGINE, onnx_session
from export.gate.frames import drawn_frames
from export.gate.tracker.verify import verify_tracker
from export.manifest import code_files
from export.repository import write_configurations
from export.sub_models.parts import Style, make_part
from export.sub_models.tracker.parts import TRACKER_PARTS
from export.tiny import CHECKPOINT
from export.tracker import export_tracker, truths_of
from export.variant import Job


@pytest.fixture(scope="module")
def job(video_repository, tmp_path_factory):
    """In a copy of the repository that the server's tests use: a step and a seed take long to trace, the neck, which
    is missing, does not."""
    root = shutil.copytree(video_repository, tmp_path_factory.mktemp("tracker") / "repository")
    variant = read_variant(root / "sam3_r140" / "config.pbtxt")
    shutil.rmtree(root / variant.tracker_neck.name)
    source = checkpoint.load(str(CHECKPOINT), video=True)
    return Job(source, variant, "onnxruntime", root, drawn_frames(2, 140))


@pytest.fixture(scope="module")
def written(job):
    return export_tracker(job)


def test_four_parts_pass_the_gate_and_lie_in_the_repository(job, written):
    assert [entry.model for entry in written] == [model.name for model in job.variant.tracker_parts]
    assert [entry.state for entry in written] == ["built", "kept", "kept", "kept"]
    assert max(entry.relative_error for entry in written) <= TRACKER_RELATIVE
    for model in job.variant.tracker_parts:
        told = json.loads((job.root / model.name / "manifest.json").read_text())
        assert set(told["gate"]["outputs"]) == {tensor.name for tensor in model.outputs}
        assert (job.root / model.name / "1" / "model.onnx").is_file()
    assert not job.staged.exists()


def test_artifacts_answer_what_a_step_asks_for(job, written):
    """Other sizes than those of tracing: one frame of one object, and eight objects of two frames."""
    files = {part: job.root / getattr(job.variant, part).name / "1" / "model.onnx" for part in TRACKER_PARTS}
    truths = truths_of(job.source, job.variant, job.frames)
    runs = {part: onnx_session(path, 1) for part, path in files.items()}
    assert verify_tracker(runs, job.variant, truths).failures == ()
    feed = {tensor.name: truths[0].inputs["tracker_step"][tensor.name] for tensor in job.variant.tracker_step.inputs}
    few = OnnxSubModel(files["tracker_step"])(feed, ["mask_bits", "track_score"])
    assert {name: array.shape for name, array in few.items()} == {"mask_bits": (1, 40, 5), "track_score": (1,)}


def test_a_second_export_keeps_what_is_current(job, written, monkeypatch):
    monkeypatch.setattr("export.tracker.make_tracker_part", lambda *_: pytest.fail("nothing is to be built"))
    assert {entry.state for entry in export_tracker(job)} == {"kept"}


def test_nothing_is_moved_in_that_the_gate_refuses(job, written, monkeypatch):
    """Of all that is kept only the neck is built again, by an engine whose artifacts answer nonsense."""
    broken = job.root / "sam3_tracker_neck_r140" / "manifest.json"
    before = broken.read_text()
    broken.write_text(json.dumps(json.loads(before) | {"recipe": "another"}))

    def halved(path):
        run = onnx_session(path, 1)
        factor = 0.5 if "neck" in str(path) else 1.0
        return lambda feed: {name: (array * factor).astype(array.dtype) for name, array in run(feed).items()}

    tool = Tool(ENGINE, lambda module, model, variant, path: export_onnx(module, model, path) and {}, halved)
    monkeypatch.setattr("export.tracker.ready", lambda *_: tool)
    try:
        with pytest.raises(GateError, match="sam3_tracker_neck_r140: track_0 has relative error"):
            export_tracker(job)
        assert json.loads(broken.read_text())["recipe"] == "another"
    finally:
        broken.write_text(before)


def test_configurations_name_the_tracker_and_its_parts(job, tmp_path):
    write_configurations(job.variant, "onnxruntime", tmp_path)
    assert read_variant(tmp_path / job.variant.front_name / "config.pbtxt") == job.variant
    for model in job.variant.tracker_parts:
        assert pbtxt.read(tmp_path / model.name / "config.pbtxt").parameters["engine"] == "onnxruntime"


def test_the_vision_encoder_gives_its_tokens_and_the_same_maps(video, error):
    model = at_size(video.model, 140, 50)
    pixels = torch.randint(0, 256, (2, 3, 140, 140), dtype=torch.uint8)
    plain, more = (make_part("vision_encoder", model, Style("explicit", "plain"), "fp32", h) for h in (False, True))
    *maps, hidden = more(pixels)
    assert all((mine == its).all() for mine, its in zip(maps, plain(pixels), strict=True))
    wanted = model.vision_encoder.backbone(pixels.float() / 127.5 - 1.0).last_hidden_state
    assert error(hidden, wanted) < 5e-6


def test_code_of_the_tracker_makes_no_other_artifact_stale():
    own, others = set(code_files(ENGINE, tracker=True)), set(code_files(ENGINE))
    assert others < own
    assert {path.name for path in own - others} == {
        *("__init__.py", "arithmetic.py", "mask_decoder.py", "memory_attention.py", "memory_encoder.py", "neck.py"),
        *("parts.py", "seed.py", "step.py", "tracker.py"),
    }
