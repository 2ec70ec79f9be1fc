"""What a fleet writes besides its lines: COCO results and webhooks."""

import http.server
import json
import threading

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from clients.draw import annotate
from clients.fleet.ask import Answer
from clients.fleet.config import CameraConfig
from clients.fleet.fleet import Camera
from clients.fleet.watch import CocoResults, Outputs
from clients.fleet.webhook import Webhook
from clients.video.reader import CapturedFrame


@pytest.fixture
def receiver():
    """An HTTP server that keeps what is posted, and refuses as many first posts as it is told: (url, posts, refuse)."""
    posts, refuse = [], [0]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            refuse[0] -= 1
            if refuse[0] < 0:
                posts.append(body)
            self.send_response(500 if refuse[0] >= 0 else 204)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/", posts, refuse
        server.shutdown()


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


async def test_events_nobody_takes_are_counted(closed_port, monkeypatch):
    monkeypatch.setattr("clients.fleet.webhook.PAUSE_S", 0.01)
    monkeypatch.setattr("clients.fleet.webhook.QUEUE", 5)
    webhook = Webhook(f"http://127.0.0.1:{closed_port}/")
    for i in range(8):  # five wait, three find the queue full
        webhook.send({"event": i})
    await webhook.close()
    assert (webhook.sent, webhook.lost) == (0, 8)


async def test_what_is_under_way_at_the_end_is_counted(silent_port, monkeypatch):
    monkeypatch.setattr("clients.fleet.webhook.TIMEOUT_S", 0.5)
    webhook = Webhook(f"http://127.0.0.1:{silent_port}/")
    for i in range(3):  # one is sent and never answered, two wait
        webhook.send({"event": i})
    await webhook.close(grace_s=0.2)
    assert (webhook.sent, webhook.lost) == (0, 3)


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


async def test_pictures_show_tracks(detections, tmp_path):
    path, rgb, tracks = tmp_path / "yard.png", np.full((360, 640, 3), 90, np.uint8), (7, -1)
    camera = Camera(CameraConfig("yard", "none", ("blue square", "red circle"), (0.5, 0.5), outputs=(path,)))
    outputs = Outputs([camera])
    await outputs(camera, Answer(CapturedFrame(0, 0.0, 0.0, 0, rgb, b""), "answered", 1.0, detections(), tracks=tracks))
    await outputs.close()
    assert np.array_equal(np.asarray(Image.open(path)), annotate(rgb, detections(), tracks=tracks))
