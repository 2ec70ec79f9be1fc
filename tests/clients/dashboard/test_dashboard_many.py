"""The page of sixty-four cameras in Chromium: small tiles that can be read, pictures only of those that are seen."""

import shutil
import threading
import time

import numpy as np
import pytest

from clients.dashboard.app import build_app
from clients.dashboard.board import SMALL, Board
from clients.dashboard.load import Load
from clients.fleet.camera import Camera
from clients.fleet.config import CameraConfig
from clients.fleet.request import Answer
from clients.video.motion import Motion
from clients.video.reader import CapturedFrame

playwright = pytest.importorskip("playwright.sync_api")
uvicorn = pytest.importorskip("uvicorn")

CAMERAS = 64
RGB = np.full((720, 1280, 3), 90, np.uint8)


@pytest.fixture
def board(detections):
    """Cameras that have one answer each; every fourth gets less than it wishes for."""

    def config(i):
        return CameraConfig(f"camera {i:02d}", "none", ("blue square", "red circle"), (0.5, 0.5), motion=Motion())

    made = Board([Camera(config(i)) for i in range(CAMERAS)], clock=lambda: 100.0)
    for i, camera in enumerate(made.cameras.values()):
        camera.reader.state, camera.gate.still_s = "live", 0.0 if i % 2 else 60.0
        made(camera, Answer(CapturedFrame(0, 0.0, RGB, 0.0, 0, b""), "answered", 40.0, detections()))
        made.views[camera.config.name].share.look(96.0)
        camera.reader.read, camera.stats.answered = 40, 10 if i % 4 == 0 else 40
        camera.stats.dropped["no_turn"] = 30 if i % 4 == 0 else 0
    return made


@pytest.fixture
def view(board):
    """The page at the size of a desk, and the addresses of all pictures that it has asked for."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no browser here: apt-get install chromium")
    server = uvicorn.Server(uvicorn.Config(build_app(board, Load([])), port=0, log_level="error"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])  # root has no sandbox
        page = browser.new_page(viewport={"width": 1280, "height": 720})
        page.set_default_timeout(120_000)
        complaints, asked = [], []
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.append(request.url) if "frame.jpg" in request.url else None)
        page.goto(f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}")
        page.get_by_text("64 cameras").wait_for()
        yield page, asked
        browser.close()
    server.should_exit = True
    thread.join()
    assert complaints == []


def loaded(page, name):
    picture = page.locator("article").filter(has_text=name).locator("img").element_handle()
    page.wait_for_function("image => image.complete && image.naturalWidth > 0", arg=picture)
    return picture


def test_sixty_four_cameras(view):
    page, asked = view
    tiles = page.locator("article")
    assert tiles.count() == CAMERAS
    assert "16 below target" in page.locator("#total").text_content()
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    boxes = [tiles.nth(i).bounding_box() for i in range(CAMERAS)]
    in_view = sum(box["y"] + box["height"] <= 720 for box in boxes)
    assert in_view >= 24
    assert all(box["width"] >= 140 for box in boxes)
    picture = loaded(page, "camera 00")
    assert picture.evaluate("image => image.naturalWidth") <= SMALL
    first = tiles.nth(0)
    assert first.locator(".brief").text_content().endswith("still")
    assert first.get_attribute("title").startswith(
        "below target: 25 % of its wish, weight 1, still; waits for its turn"
    )
    assert first.locator(".classes").is_hidden()
    # one picture of each tile that is seen, or nearly: none of those far below, and none again without a new frame
    loaded(page, f"camera {in_view - 1:02d}")
    assert not any("camera%2063" in url for url in asked)
    page.mouse.wheel(0, 10_000)
    loaded(page, "camera 63")
    assert len(asked) == len(set(asked)) <= CAMERAS
    assert all("small=1" in url for url in asked)


def test_a_tile_is_enlarged_in_its_whole_size_and_tiles_can_be_large(view):
    page, asked = view
    loaded(page, "camera 00")
    page.locator("article").first.get_by_label("enlarge").click()
    picture = page.get_by_role("dialog").locator("img").element_handle()
    page.wait_for_function("image => image.complete && image.naturalWidth === 1280", arg=picture)
    page.keyboard.press("Escape")
    page.get_by_label("small tiles").uncheck()
    first = page.locator("article").first
    assert first.locator(".classes").is_visible()
    first.get_by_text("below target: 25 % of its wish, weight 1, still; waits for its turn").wait_for()
    page.evaluate("document.querySelectorAll('article')[40].scrollIntoView()")
    loaded(page, "camera 40")
    assert "camera%2040" in "".join(asked)
