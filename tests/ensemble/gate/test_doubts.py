"""Which artifacts a start doubts, from manifests, files and record alone: nothing is run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ensemble.gate import believe, truths
from ensemble.gate.machine import conditions
from ensemble.gate.record import Record, sha256
from ensemble.server import repository as placement
from ensemble.server.gpu import Gpu
from ensemble.server.needs import need_of
from ensemble.server.requirements import ServerError
from ensemble.server.videos import videos_of
from ensemble.spec import Tracker
from tests.ensemble.server.repositories import write

CARD = Gpu("NVIDIA GeForce RTX 4090", "8.9", 24_000, 23_000)
PART = "sam3_decoder_r672"


@pytest.fixture
def believed(tmp_path) -> Path:
    """A repository of plans, each of which passed at its export on this very card, and its truths."""
    root = write(tmp_path / "repository", [672], "tensorrt_rtx", built_for={"compute_capability": "8.9"})
    for path in root.glob("*/1/model.[ro]*"):
        path.write_bytes(path.parent.parent.name.encode())
    for path in root.glob("*/manifest.json"):
        files = {file.name: sha256(file) for file in (path.parent / "1").glob("model.[ro]*")}
        gate = {"on": conditions("tensorrt_rtx", CARD)}
        path.write_text(json.dumps({**json.loads(path.read_text()), "files": files, "gate": gate}))
    (one,) = placement.read(root)
    truths.write(one.folder / truths.FILE, one.variant, "the checkpoint", {})
    return root


def doubted(root: Path) -> dict[str, str]:
    """Why each sub-model is measured before it is served."""
    found = believe.doubts(placement.read(root), {0: CARD}, Record.read(root))
    return {doubt.artifact.model.removesuffix("_q200"): doubt.why for doubt in found}


def alter(root: Path) -> None:
    (path,) = root.glob(f"{PART}*/1/model.rtx")
    path.write_bytes(b"another plan")


def edit(root: Path, **fields: object) -> None:
    (path,) = root.glob(f"{PART}*/manifest.json")
    data = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: value for name, value in data.items() if value != "gone"}))


def test_what_passed_on_this_card_is_believed(believed):
    assert doubted(believed) == {}


def test_a_plan_that_was_altered_is_doubted_whatever_its_manifest_says(believed):
    alter(believed)
    assert doubted(believed) == {PART: "its file is not the one that its manifest names"}


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        pytest.param({"gate": "gone"}, "built on a machine that could not run it", id="no word of a gate"),
        pytest.param({"gate": None}, "built on a machine that could not run it", id="not run"),
        pytest.param({"files": "gone"}, "its manifest does not name its file", id="no hashes"),
        pytest.param({"gate": {"on": {"gpu": "another"}}}, "it was measured on another", id="on another card"),
    ],
)
def test_a_manifest_that_does_not_say_that_it_passed(believed, fields, why):
    edit(believed, **fields)
    assert list(doubted(believed)) == [PART]
    assert why in doubted(believed)[PART]


@pytest.mark.parametrize("lost", [True, False], ids=["no truths", "cut off"])
def test_without_truths_an_altered_plan_is_refused(believed, lost):
    (one,) = placement.read(believed)
    path = one.folder / truths.FILE
    path.unlink() if lost else path.write_bytes(path.read_bytes()[:50])
    assert doubted(believed) == {}, "they passed, and are what passed"
    alter(believed)
    with pytest.raises(ServerError, match=rf"{PART}\w* is not served: its file is not the one .*\nsam3-export "):
        doubted(believed)
    edit(believed, gate="gone")
    with pytest.raises(ServerError, match=rf"{PART}\w* is not served: it was built on a machine that could not"):
        doubted(believed)


# ---- videos
@pytest.fixture
def tracked(tmp_path) -> Path:
    """Plans of a detector and a tracker at two resolutions, which nobody has run, and truths of both."""
    root = write(
        tmp_path / "repository", [672, 560], "tensorrt_rtx", built_for={"compute_capability": "8.9"}, tracker=Tracker()
    )
    for path in root.glob("*/manifest.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), "gate": None}))
    for one in placement.read(root):
        truths.write(one.folder / truths.FILE, one.variant, "the checkpoint", {"tracker/calls": np.int32(3)})
    return root


def measured_first(root: Path, tracker_resolution: int | None) -> list[str]:
    """Sub-models that are measured before 672 is served, with videos whose tracker has another resolution."""
    known = placement.read(root)
    videos = videos_of(known[:1], known, None, tracker_resolution)
    found = believe.doubts(known[:1], {0: CARD}, Record.read(root), videos)
    return [f"{doubt.served.variant.front_name} {doubt.part}" for doubt in found]


def test_a_trackers_plans_are_measured_before_videos_are_served(tracked):
    known = placement.read(tracked)
    parts = [model.part for model in (*known[0].variant.sub_models, *known[0].variant.tracker_parts)]
    assert measured_first(tracked, None) == [f"sam3_r672 {part}" for part in parts]
    alone = [d.part for d in believe.doubts(known[:1], {0: CARD}, Record.read(tracked))]
    assert alone == parts[:5], "where no videos are served"


def test_a_tracker_of_another_resolution_is_measured_by_that_ones_truths(tracked):
    own = ("vision_encoder", "tracker_neck", "tracker_step", "memory_encoder", "tracker_seed")
    assert measured_first(tracked, 560)[5:] == [f"sam3_r560 {part}" for part in own]


def test_truths_of_a_detector_alone_say_nothing_of_a_tracker(tracked):
    (one, _) = placement.read(tracked)
    truths.write(one.folder / truths.FILE, one.variant, "the checkpoint", {})
    with pytest.raises(ServerError, match=r"sam3_tracker_neck_r672 is not served: .* truths .*\n.* --video "):
        measured_first(tracked, None)


def test_what_a_trackers_plans_compute_in_counts_where_videos_are_served(tracked):
    known = placement.read(tracked)
    for artifact in (*known[0].artifacts, *known[0].tracker):
        path = artifact.folder / "manifest.json"
        scratch = {"scratch_mb": 7_777 if "step" in artifact.model else 100}
        path.write_text(json.dumps({**json.loads(path.read_text()), "build": scratch}))
    known = placement.read(tracked)
    videos = tuple(videos_of(known[:1], known, None, None))
    assert need_of(known[:1], None).activations == 100
    assert need_of(known[:1], None, videos).activations == 7_777
