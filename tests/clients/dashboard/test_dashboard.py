"""The dashboard's HTTP interface: figures, images, edits while the fleet runs, and access."""

import io
import json
import urllib.parse
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from clients.dashboard.app import is_loopback, main, metrics_of
from clients.dashboard.board import Board
from clients.dashboard.load import Load, cpu_times, gpus
from clients.fleet.camera import Camera
from clients.fleet.config import CameraConfig, FleetConfig
from clients.fleet.request import Answer, Exemplar
from clients.video.reader import CapturedFrame
from ensemble.spec import MAX_CLASSES, MAX_PROMPT_CHARACTERS
from tests.clients.dashboard.pages import page
from tests.clock import Clock

CONFIG = CameraConfig("yard / west", "none", ("blue square", "red circle"), (0.3, 0.6))


@pytest.fixture
def clock():
    return Clock(100.0)


@pytest.fixture
def board(clock):
    return Board([Camera(CONFIG), Camera(CameraConfig("gate", "none", ("person",), (0.5,)))], clock)


def answer(found, index=0, grey=90):
    rgb = np.full((360, 640, 3), grey, np.uint8)
    return Answer(CapturedFrame(index, 0.0, rgb, 0.0, 0, b""), "answered", 42.0, found)


def frame_of(name):
    return f"/api/cameras/{urllib.parse.quote(name, safe='')}/frame.jpg"


async def test_the_page_and_its_parts(board):
    async with page(board) as ask:
        for path, holds in (
            ("/", b"page.js"),
            ("/page.js", b"common.js"),
            ("/common.js", b"fetch("),
            ("/large.js", b"exemplars"),
            ("/style.css", b"color-scheme"),
            ("/icon.svg", b"svg"),
        ):
            status, body = await ask(path)
            assert status == 200
            assert holds in body
        assert (await ask("/../app.py"))[0] == 404


async def test_figures(board, detections):
    camera = board.cameras[CONFIG.name]
    camera.stats.answered = 7
    camera.reader.state = "live"
    board(camera, answer(detections(), index=5))
    async with page(board) as ask:
        yard, gate = json.loads((await ask("/api/cameras"))[1])
    assert (yard["name"], yard["state"], yard["frame"], yard["latency_ms"], yard["answered"]) == (
        CONFIG.name,
        "live",
        5,
        42,
        7,
    )
    assert [(d["label"], d["score"], d["box"]) for d in yard["detections"]] == [
        ("red circle", 0.9, [0.25, 0.25, 0.5, 0.75]),
        ("blue square", 0.6, [0.5, 0.0, 1.0, 0.5]),
    ]
    assert [c["name"] for c in yard["classes"]] == list(CONFIG.classes)
    assert yard["fps"] == 0.2  # one answer in five seconds
    assert (gate["state"], gate["frame"], gate["detections"], gate["latency_ms"]) == ("connecting", -1, [], None)


async def test_figures_contain_tracks(board, detections):
    board(board.cameras["gate"], replace(answer(detections()), tracks=(3, -1)))
    assert [d.get("track") for d in board.figures()[1]["detections"]] == [3, None]


async def test_images_change(board, detections):
    camera = board.cameras["gate"]
    async with page(board) as ask:
        assert (await ask(frame_of("gate")))[0] == 204
        board(camera, answer(detections(), 1, grey=90))
        _, first = await ask(frame_of("gate"))
        board(camera, answer(detections(), 2, grey=200))
        _, second = await ask(frame_of("gate"))
        assert (await ask(frame_of("nowhere")))[0] == 404
        assert (await ask(frame_of(CONFIG.name)))[0] == 204  # a name may contain anything
    assert Image.open(io.BytesIO(first)).size == (640, 360)
    assert np.asarray(Image.open(io.BytesIO(second))).mean() > np.asarray(Image.open(io.BytesIO(first))).mean() + 50


async def test_a_camera_without_answers_is_silent(board, detections, clock):
    gate = board.cameras["gate"]
    gate.reader.state = "live"
    async with page(board) as ask:
        assert json.loads((await ask("/api/cameras"))[1])[1]["state"] == "silent"
    board(gate, answer(detections()))
    assert board.figures()[1]["state"] == "live"
    clock.now += 5.1
    assert (board.figures()[1]["state"], board.figures()[1]["fps"]) == ("silent", 0.0)


async def test_an_error_is_shown_until_the_next_answer(board, detections):
    gate = board.cameras["gate"]
    board(gate, Answer.now(answer(detections()).frame, "refused", error="classes[0]: at most 32 tokens"))
    assert board.figures()[1]["error"] == "classes[0]: at most 32 tokens"
    board(gate, answer(detections(), 1))
    assert board.figures()[1]["error"] == ""


async def test_classes_are_edited(board):
    async with page(board) as ask:
        assert await ask("/api/cameras/gate/classes", ["dog", " person "]) == (204, b"")
    assert board.cameras["gate"].config.classes == ("dog", "person")


def test_a_class_keeps_its_threshold_and_its_exemplars(board):
    red, blue = Exemplar("red circle", (0.1, 0.1, 0.2, 0.2)), Exemplar("blue square", (0.1, 0.1, 0.2, 0.2))
    board.set_exemplars(CONFIG.name, [red, blue])
    board.set_classes(CONFIG.name, ["red circle", "dog"])
    assert board.cameras[CONFIG.name].config.thresholds == (0.6, 0.3)
    assert board.cameras[CONFIG.name].exemplars == (red,)


@pytest.mark.parametrize(
    ("names", "why"),
    [
        ([], "expected 1 to 100 classes, got 0"),
        (["a", " a"], "'a' more than once"),
        ([" "], "1 to 300 characters, got 0"),
        (["x" * (MAX_PROMPT_CHARACTERS + 1)], "got 301"),
        ([str(i) for i in range(MAX_CLASSES + 1)], "got 101"),
        ([1], "0: Input should be a valid string"),
        ("dog", "body: Input should be a valid list"),
    ],
    ids=str,
)
async def test_unusable_classes_are_refused(board, names, why):
    async with page(board) as ask:
        status, body = await ask("/api/cameras/gate/classes", names)
    assert status == 422
    assert why in json.loads(body)["detail"]
    assert board.cameras["gate"].config.classes == ("person",)


def box(*sides, name="person", **more):
    return {"name": name, "box": sides} | more


async def test_exemplars_are_set_reported_and_cleared(board):
    async with page(board) as ask:
        boxes = [box(0.1, 0.2, 0.3, 0.4), box(0.5, 0.5, 1, 1, like=False)]
        assert (await ask("/api/cameras/gate/exemplars", boxes))[0] == 204
        told = json.loads((await ask("/api/cameras"))[1])[1]["exemplars"]
        assert told == [box(*b["box"], like=b.get("like", True)) | {"box": list(b["box"])} for b in boxes]
        assert (await ask("/api/cameras/gate/exemplars", []))[0] == 204
    assert board.cameras["gate"].exemplars == ()


async def test_exemplars_are_cut_at_the_edges_of_the_frame(board):
    """A found box reaches beyond the frame where its edge cuts the object, of which little may be left."""
    async with page(board) as ask:
        found = [box(-0.0013, 0.2, 0.5, 1.0021), box(-0.4, 0.2, 0.0012, 0.8)]
        assert (await ask("/api/cameras/gate/exemplars", found))[0] == 204
    assert [e.box for e in board.cameras["gate"].exemplars] == [(0, 0.2, 0.5, 1), (0, 0.2, 0.0012, 0.8)]


@pytest.mark.parametrize(
    ("boxes", "why"),
    [
        ([box(0, 0, 1, 1, name="dog")], "one of the camera's classes (person), got 'dog'"),
        ([box(0.5, 0, 0.2, 1)], "expected x0 < x1"),
        ([box(0, 0, 640, 360)], "fractions of the frame"),
        ([box(-0.2, 0, 0, 1)], "some of it inside the frame"),
        ([box(0, 0, 1)], "0.box.3: Field required"),
        ([box(0, 0, 1, "NaN")], "expected x0 < x1"),
        ([box(0, 0, 1, "wide")], "0.box.3: Input should be a valid number"),
        ([box(0, 0, 1, 1)] * 9, "at most 8 exemplars of a class, got 9 of 'person'"),
        ({}, "body: Input should be a valid list"),
    ],
    ids=str,
)
async def test_unusable_exemplars_are_refused(board, boxes, why):
    async with page(board) as ask:
        status, body = await ask("/api/cameras/gate/exemplars", boxes)
    assert status == 422
    assert why in json.loads(body)["detail"]
    assert board.cameras["gate"].exemplars == ()


@pytest.mark.parametrize(("what", "body"), [("classes", ["dog"]), ("exemplars", []), ("frame.jpg", None)], ids=str)
async def test_an_unknown_camera(board, what, body):
    async with page(board) as ask:
        status, said = await ask(f"/api/cameras/nowhere/{what}", body)
    assert status == 404
    assert json.loads(said)["detail"] == "there is no camera 'nowhere'; there are yard / west, gate"


METRICS = """# HELP nv_gpu_utilization GPU utilization rate [0.0 - 1.0)
nv_gpu_utilization{gpu_uuid="GPU-a"} 0.61
nv_gpu_utilization{gpu_uuid="GPU-b"} 0
nv_gpu_memory_total_bytes{gpu_uuid="GPU-a"} 150754820096
nv_gpu_memory_used_bytes{gpu_uuid="GPU-a"} 5.2e+09
nv_inference_count{model="sam3_r252",version="1"} 7
"""


@pytest.mark.parametrize(
    ("text", "figures"),
    [
        (
            METRICS,
            [{"use": 0.61, "used_mb": 4959, "total_mb": 143771}, {"use": 0.0, "used_mb": None, "total_mb": None}],
        ),
        (METRICS.replace("gpu", "cpu"), []),
        ("", []),
    ],
    ids=["two, one incomplete", "no GPU", "empty"],
)
def test_gpu_figures(text, figures):
    assert gpus(text) == figures


def test_processor_ticks(tmp_path):
    stat = tmp_path / "stat"
    stat.write_text("cpu  100 5 20 700 30 1 2 3 50 0\ncpu0 1 2 3\n")
    assert cpu_times(stat) == (
        131,
        861,
    )  # idle and waiting for disks are not busy; guests' ticks are part of the user's
    assert cpu_times(tmp_path / "none") is None


async def test_load_is_reported_and_missing_figures_are_named(board, closed_port):
    async with page(board, load=Load([f"127.0.0.1:{closed_port}"])) as ask:
        told = json.loads((await ask("/api/load"))[1])
    assert told["cpu"] is None or 0 <= told["cpu"] <= 1
    assert told["servers"][0]["gpus"] == []
    assert f"no metrics at http://127.0.0.1:{closed_port}/metrics" in told["servers"][0]["error"]


def test_default_addresses_of_metrics():
    config = FleetConfig((), ("gpu-host", "[::1]:9001", "grpcs://edge.example:8443"))
    assert metrics_of(config) == ["gpu-host:8002", "[::1]:8002"]


def test_the_command_reports_mistakes_in_the_file(tmp_path, capsys):
    assert main(["--config", str(tmp_path / "none.yaml")]) == 2
    assert "none.yaml:1: cannot be read" in capsys.readouterr().err


async def test_a_token_is_required(board):
    async with page(board, token="s3cret") as ask:
        assert (await ask("/"))[0] == 401
        assert (await ask("/api/cameras"))[0] == 401
        assert (await ask("/api/cameras/gate/classes", ["dog"]))[0] == 401
        assert (await ask("/?token=wrong"))[0] == 401
        assert (await ask("/?token=s3cret"))[0] == 200
        assert (await ask("/api/cameras", headers={"Authorization": "Bearer s3cret"}))[0] == 200
        assert (await ask("/api/cameras", headers={"Cookie": "sam3-token=s3cret"}))[0] == 200
    assert board.cameras["gate"].config.classes == ("person",)


@pytest.mark.parametrize(
    ("host", "local"),
    [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("10.0.0.7", False)],
)
def test_loopback_addresses(host, local):
    assert is_loopback(host) is local
