"""The page's server: figures, pictures, classes edited while the fleet runs, and who may look."""

import asyncio
import contextlib
import io
import json
import re
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from clients.config import CameraConfig
from clients.dashboard.app import build_app, is_loopback
from clients.dashboard.board import Board
from clients.fleet import Answer, Camera
from clients.reader import Picture

uvicorn = pytest.importorskip("uvicorn")

CONFIG = CameraConfig("yard / west", "none", ("blue square", "red circle"), (0.3, 0.6))


@pytest.fixture
def board():
    return Board([Camera(CONFIG), Camera(CameraConfig("gate", "none", ("person",), (0.5,)))])


@contextlib.asynccontextmanager
async def page(board, token=""):
    """The page on a free port; yields a function that asks it and returns (status, body)."""
    server = uvicorn.Server(uvicorn.Config(build_app(board, token), port=0, log_level="error"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

    def ask(path, data=None, headers=None):
        body = None if data is None else json.dumps(data).encode()
        about = {"Content-Type": "application/json"} | (headers or {})
        request = urllib.request.Request(address + path, body, about, method="GET" if data is None else "PUT")
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def asking(*words, **more):
        return asyncio.to_thread(ask, *words, **more)

    asking.address = address
    try:
        yield asking
    finally:
        server.should_exit = True
        await serving


def answer(found, index=0, grey=90):
    rgb = np.full((360, 640, 3), grey, np.uint8)
    return Answer(Picture(index, 0.0, 0.0, 0, rgb, b""), "answered", 42.0, found)


def frame_of(name):
    return f"/api/cameras/{urllib.parse.quote(name, safe='')}/frame.jpg"


async def test_the_page_and_its_parts(board):
    async with page(board) as ask:
        for path, holds in (("/", b"page.js"), ("/page.js", b"fetch("), ("/style.css", b"color-scheme")):
            status, body = await ask(path)
            assert status == 200
            assert holds in body
        assert (await ask("/../app.py"))[0] == 404


async def test_figures(board, detections):
    camera = board.cameras[CONFIG.name]
    camera.tally.answered = 7
    camera.reader.state = "live"
    board(camera, answer(detections(), index=5))
    async with page(board) as ask:
        yard, gate = json.loads((await ask("/api/cameras"))[1])
    assert (yard["name"], yard["state"], yard["frame"], yard["latency_ms"], yard["answered"]) == (CONFIG.name, "live", 5, 42, 7)
    assert yard["detections"] == [{"label": "red circle", "score": 0.9}, {"label": "blue square", "score": 0.6}]
    assert yard["fps"] > 0
    assert (gate["state"], gate["frame"], gate["detections"], gate["latency_ms"]) == ("connecting", -1, [], None)


async def test_tracks_are_told_where_there_are_any(board, detections):
    board(board.cameras["gate"], replace(answer(detections()), tracks=(3, -1)))
    assert [d.get("track") for d in board.figures()[1]["detections"]] == [3, None]


async def test_pictures_change(board, detections):
    camera = board.cameras["gate"]
    async with page(board) as ask:
        assert (await ask(frame_of("gate")))[0] == 204
        board(camera, answer(detections(), 1, grey=90))
        _, first = await ask(frame_of("gate"))
        board(camera, answer(detections(), 2, grey=200))
        _, second = await ask(frame_of("gate"))
        assert (await ask(frame_of("nowhere")))[0] == 404
        assert (await ask(frame_of(CONFIG.name)))[0] == 204  # a name may hold anything
    assert Image.open(io.BytesIO(first)).size == (640, 360)
    assert np.asarray(Image.open(io.BytesIO(second))).mean() > np.asarray(Image.open(io.BytesIO(first))).mean() + 50


async def test_a_camera_that_says_nothing_is_not_live(board):
    board.cameras["gate"].reader.state = "live"
    async with page(board) as ask:
        assert json.loads((await ask("/api/cameras"))[1])[1]["state"] == "silent"


async def test_classes_are_edited(board):
    async with page(board) as ask:
        status, body = await ask("/api/cameras/gate/classes", ["dog", " person "])
    assert (status, json.loads(body)) == (200, {"classes": ["dog", "person"]})
    assert board.cameras["gate"].config.classes == ("dog", "person")


def test_a_class_keeps_its_threshold(board):
    board.set_classes(CONFIG.name, ["red circle", "dog"])
    assert board.cameras[CONFIG.name].config.thresholds == (0.6, 0.3)


@pytest.mark.parametrize("names", [[], ["a", "a"], [" "], ["x" * 201], ["a"] * 101, [1], "dog"], ids=str)
async def test_unusable_classes_are_refused(board, names):
    async with page(board) as ask:
        assert (await ask("/api/cameras/gate/classes", names))[0] == 422
    assert board.cameras["gate"].config.classes == ("person",)


async def test_a_token_is_needed(board):
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
    ("host", "local"), [("127.0.0.1", True), ("localhost", True), ("::1", True), ("0.0.0.0", False), ("10.0.0.7", False)]
)
def test_which_addresses_are_this_machine(host, local):
    assert is_loopback(host) is local


async def test_a_browser_shows_it(board, detections, tmp_path):
    """Headless Chromium runs the page; its document is looked at after four seconds of its own clock."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no browser here: apt-get install chromium")
    camera = board.cameras[CONFIG.name]
    camera.reader.state = "live"

    async def film():
        for i in range(10_000):
            board(camera, answer(detections(), i))
            await asyncio.sleep(0.005)

    filming = asyncio.create_task(film())
    async with page(board) as ask:
        options = (
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={tmp_path}",
            "--virtual-time-budget=4000",
            "--dump-dom",
        )
        command = [chromium, *options, ask.address]
        process = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        document = (await asyncio.wait_for(process.communicate(), 60))[0].decode()
    filming.cancel()
    west, gate = document.split("<article")[1:3]
    assert "yard / west" in west
    assert ">live<" in west
    assert "red circle 0.9" in west
    shown = re.search(r"frame\.jpg\?n=(\d+)", west)
    assert shown is not None
    assert int(shown[1]) > 1  # the picture has changed since the page was opened
    assert 'class="dead"' in gate
    assert ">connecting<" in gate
