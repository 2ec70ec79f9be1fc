"""Outputs: annotated videos and images, JSON lines, COCO results, and webhooks."""

import asyncio
import http.server
import json
import threading
from dataclasses import replace

import av
import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from clients.draw import annotate
from clients.fleet.camera import Camera
from clients.fleet.config import CameraConfig
from clients.fleet.fleet import run_fleet
from clients.fleet.request import Answer
from clients.fleet.webhook import Webhook
from clients.outputs.files import CocoResults, Drawing, JsonLines
from clients.outputs.outputs import Outputs
from clients.outputs.records import frame_record
from clients.video.frames import Frame
from clients.video.reader import CapturedFrame
from tests.clients.answering import answering


@pytest.mark.parametrize("refused", [0, 2])
async def test_events_arrive_in_order(receiver, refused, monkeypatch):
    monkeypatch.setattr("clients.fleet.webhook.PAUSE_S", 0.01)
    url, posts, refuse = receiver
    refuse[0] = refused
    webhook = Webhook(url)
    for i in range(4):
        webhook.send({"event": i})
    await webhook.close()
    assert posts == [{"event": i} for i in range(4)]
    assert (webhook.sent, webhook.lost) == (4, 0)


async def test_undeliverable_events_are_counted(closed_port, monkeypatch):
    monkeypatch.setattr("clients.fleet.webhook.PAUSE_S", 0.01)
    monkeypatch.setattr("clients.fleet.webhook.QUEUE", 5)
    webhook = Webhook(f"http://127.0.0.1:{closed_port}/")
    for i in range(8):  # five are queued, three find the queue full
        webhook.send({"event": i})
    await webhook.close()
    assert (webhook.sent, webhook.lost) == (0, 8)


async def test_events_in_flight_at_the_end_are_counted(silent_port, monkeypatch):
    monkeypatch.setattr("clients.fleet.webhook.TIMEOUT_S", 0.5)
    webhook = Webhook(f"http://127.0.0.1:{silent_port}/")
    for i in range(3):  # one is sent and never answered, two are queued
        webhook.send({"event": i})
    await webhook.close(grace_s=0.2)
    assert (webhook.sent, webhook.lost) == (0, 3)


@pytest.mark.parametrize("status", [302, 307])
async def test_events_go_to_nobody_else(receiver, status, monkeypatch):
    """A receiver that redirects to another host: that one gets neither the event nor the password, and is not named
    with its path."""
    monkeypatch.setattr("clients.fleet.webhook.PAUSE_S", 0.01)
    other, posts, _ = receiver
    seen = []

    class Redirect(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            seen.append((self.rfile.read(int(self.headers["Content-Length"])), self.headers["Authorization"]))
            self.send_response(status)
            self.send_header("Location", f"{other}services/Tr0ub4dor")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Redirect) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        webhook = Webhook(f"http://me:pass@127.0.0.1:{server.server_port}/hook/Tr0ub4dor")
        webhook.send({"event": 1})
        await webhook.close()
        server.shutdown()
    assert posts == []
    assert [json.loads(body) for body, _ in seen] == [{"event": 1}] * 3
    assert all(sign.startswith("Basic ") for _, sign in seen)
    account = webhook.record()
    assert (account["written"], account["lost"]) == (0, 1)
    assert account["output"] == f"http://127.0.0.1:{server.server_port}/…"
    assert f"got {status}" in account["error"]
    assert f"to {other}…" in account["error"]
    assert "Tr0ub4dor" not in str(account)


async def test_a_slow_receiver_holds_no_camera(silent_port, film, detections, monkeypatch):
    """All frames of a film are answered before its first event is given up; each event is counted."""
    monkeypatch.setattr("clients.fleet.webhook.QUEUE", 2)
    config = CameraConfig(
        "yard", str(film), ("blue square", "red circle"), (0.5, 0.5), webhook=f"http://127.0.0.1:{silent_port}/"
    )
    camera = Camera(config)
    monkeypatch.setattr(
        camera, "_tracked", lambda answer: replace(answer, events=({"zone": "gate", "event": "enter"},))
    )
    outputs = Outputs([camera])
    summary = await run_fleet([camera], answering(detections()), outputs, asyncio.Event())
    (webhook,) = outputs.webhooks.values()
    assert summary["answered"] == 6
    assert webhook.sent == 0
    assert webhook.lost <= 4  # of six one is under way and two wait
    await webhook.close(grace_s=0.1)
    account = webhook.record()
    assert (account["written"], account["lost"]) == (0, 6)


async def test_outputs(tmp_path, detections, masks):
    """One file per suffix, of two frames of which the second has more detections."""
    paths = tuple(tmp_path / "out" / name for name in ("a.mp4", "a.png", "a.jsonl", "a.json"))
    camera = Camera(CameraConfig("yard", "none", ("blue square", "red circle"), (0.5, 0.5), fps=10, outputs=paths))
    outputs = Outputs([camera], lambda _, answer: frame_record(answer.frame, answer.found))
    for i, found in enumerate((detections(0), detections(masks=masks))):
        frame = CapturedFrame(i, i / 10, np.full((360, 640, 3), 90, np.uint8), 0.0, 0, b"")
        await outputs(camera, Answer(frame, "answered", 1.0, found))
    assert [(o["written"], o["lost"]) for o in (await outputs.close())["outputs"]] == [(2, 0)] * 4

    with av.open(str(paths[0])) as container:
        assert container.streams.video[0].average_rate == 10
        assert sum(1 for _ in container.decode(video=0)) == 2
    assert (np.asarray(Image.open(paths[1])) != 90).any()
    first, second = (json.loads(line) for line in paths[2].read_text().splitlines())
    assert first["detections"] == []
    assert [d["label"] for d in second["detections"]] == ["red circle", "blue square"]
    assert second["detections"][0]["box"] == [160, 90, 320, 270]
    assert isinstance(second["detections"][0]["mask"], str)
    assert [r["image_id"] for r in json.loads(paths[3].read_text())] == [1, 1]


def test_record_without_masks(detections):
    record = frame_record(Frame(0, 0.0, np.zeros((360, 640, 3), np.uint8)), detections())
    assert all("mask" not in d for d in record["detections"])


@pytest.mark.parametrize(("append", "expected"), [(True, [1, 2]), (False, [2])])
def test_json_lines_are_appended_or_replaced(tmp_path, append, expected):
    for number in (1, 2):
        lines = JsonLines(tmp_path / "a.jsonl", append)
        lines.write({"n": number})
        lines.close()
    assert [json.loads(line)["n"] for line in (tmp_path / "a.jsonl").read_text().splitlines()] == expected


def test_a_drawing_keeps_the_frame_with_the_most_detections(detections, tmp_path):
    drawing, rgb = Drawing(tmp_path / "a.png", 10.0), np.full((360, 640, 3), 90, np.uint8)
    for i, count in enumerate((1, 2, 0)):
        drawing.write(Frame(i, 0.0, rgb), detections(count))
    drawing.close()
    assert np.array_equal(np.asarray(Image.open(tmp_path / "a.png")), annotate(rgb, detections(2)))


def test_coco_results(detections, masks, tmp_path):
    results = CocoResults(tmp_path / "found.json")
    results.write(3, detections(masks=masks))
    results.write(4, detections(0))
    results.write(5, detections(1))
    results.close()
    records = json.loads((tmp_path / "found.json").read_text())
    assert [(r["image_id"], r["category_id"]) for r in records] == [(3, 1), (3, 0), (5, 1)]
    assert coco_mask.area(records[0]["segmentation"]) == pytest.approx(160 * 180, rel=0.01)
    assert "segmentation" not in records[2]


def test_coco_results_of_nothing(tmp_path):
    CocoResults(tmp_path / "found.json").close()
    assert json.loads((tmp_path / "found.json").read_text()) == []


async def test_drawings_show_tracks(detections, tmp_path):
    path, rgb, tracks = tmp_path / "yard.png", np.full((360, 640, 3), 90, np.uint8), (7, -1)
    camera = Camera(CameraConfig("yard", "none", ("blue square", "red circle"), (0.5, 0.5), outputs=(path,)))
    outputs = Outputs([camera])
    await outputs(camera, Answer(CapturedFrame(0, 0.0, rgb, 0.0, 0, b""), "answered", 1.0, detections(), tracks=tracks))
    await outputs.close()
    assert np.array_equal(np.asarray(Image.open(path)), annotate(rgb, detections(), tracks=tracks))
