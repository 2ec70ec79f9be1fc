"""`sam3-dashboard` with a real server in Chromium: what the page shows, and edits with keyboard and mouse."""

import json
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request

import numpy as np
import pytest
from PIL import Image, ImageDraw

from clients.video.encode import VideoWriter
from ensemble.spec import Variant

playwright = pytest.importorskip("playwright.sync_api")

pytestmark = pytest.mark.server

SIZES = {"desk": (1280, 720), "phone": (375, 812)}
WAIT_MS = 120_000


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """A red disc that moves back and forth over grey, and a blue square that does not move."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    with VideoWriter(path, 10) as writer:
        for i in (*range(12), *reversed(range(12))):
            image = Image.new("RGB", (320, 240), (90, 95, 90))
            ImageDraw.Draw(image).ellipse((20 + 10 * i, 60, 120 + 10 * i, 160), fill=(220, 40, 40))
            ImageDraw.Draw(image).rectangle((240, 160, 310, 230), fill=(40, 70, 220))
            writer.write(np.asarray(image))
    return path


@pytest.fixture(scope="module")
def address(server, film, tmp_path_factory):
    """The page of a fleet of two cameras, one of which is dead."""
    yard = {
        "name": "yard / west",
        "source": str(film),
        "classes": ["red circle"],
        "track": True,
        "masks": "bits",
        "fps": 4,
        "motion": True,
    }
    dead = {"name": "gate", "source": "nowhere.mp4", "classes": ["person"]}
    config = tmp_path_factory.mktemp("dashboard") / "cameras.yaml"
    config.write_text(  # JSON is YAML
        json.dumps(
            {
                "servers": [server.grpc_url],
                "defaults": {"model": Variant(252).front_name, "realtime": True, "loop": True},
                "cameras": [yard, dead],
            }
        )
    )
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    command = [sys.executable, "-m", "clients.dashboard.app", "--config", str(config), "--port", str(port)]
    with subprocess.Popen([*command, "--metrics", server.metrics_url], stdout=subprocess.PIPE, text=True) as process:
        url = f"http://127.0.0.1:{port}/"
        deadline = time.monotonic() + WAIT_MS / 1e3
        while True:
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, "sam3-dashboard has ended"
                assert time.monotonic() < deadline, "sam3-dashboard does not answer"
                time.sleep(0.1)
        yield url
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=WAIT_MS / 1e3)


@pytest.fixture(scope="module")
def browser():
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("no browser here: apt-get install chromium")
    with playwright.sync_playwright() as p:
        running = p.chromium.launch(executable_path=chromium, args=["--no-sandbox"])  # root has no sandbox
        yield running
        running.close()


@pytest.fixture(params=SIZES)
def view(browser, address, request):
    """The page at a size and in a colour scheme; fails if the browser's console reports an error."""
    width, height = SIZES[request.param]
    context = browser.new_context(
        viewport={"width": width, "height": height}, color_scheme="dark" if request.param == "desk" else "light"
    )
    context.set_default_timeout(WAIT_MS)
    page = context.new_page()
    complaints = []
    refused = "status of 422"  # of a request that the test makes on purpose
    page.on("console", lambda m: complaints.append(m.text) if m.type == "error" and refused not in m.text else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.goto(address)
    page.get_by_text("live").first.wait_for()
    yield page
    context.close()
    assert complaints == []


def card(view, name):
    return view.locator("article").filter(has=view.get_by_role("heading", name=name))


def seen(view, name):
    """The detections in the alternative text of a camera's image."""
    return card(view, name).locator("img").get_attribute("alt")


def until_seen(view, name, *words, without=()):
    """Waits until the detections contain these words and not the others."""
    wanted = f"[{', '.join(map(json.dumps, words))}].every(w => alt.includes(w))"
    unwanted = f"[{', '.join(map(json.dumps, without))}].some(w => alt.includes(w))"
    view.wait_for_function(
        f"alt => {{ alt = alt.getAttribute('alt'); return {wanted} && !{unwanted}; }}",
        arg=card(view, name).locator("img").element_handle(),
    )


def test_frames_change_and_fit_the_screen(view):
    image = card(view, "yard / west").locator("img").element_handle()
    view.wait_for_function("image => image.complete && image.naturalWidth === 320", arg=image)
    card(view, "yard / west").get_by_text("% saved").wait_for()
    first, deadline = image.screenshot(), time.monotonic() + WAIT_MS / 1e3
    while image.screenshot() == first:
        assert time.monotonic() < deadline, "the picture stays the same"
        view.wait_for_timeout(100)
    until_seen(view, "yard / west", "red circle 0.9")
    assert view.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_dead_camera_is_shown_as_dead(view):
    gate = card(view, "gate")
    assert "dead" in gate.get_attribute("class")
    assert gate.locator(".state").text_content() == "failed"
    assert "there is no file" in gate.locator(".error").text_content()
    assert gate.locator("img").is_hidden()
    assert "dead" not in (card(view, "yard / west").get_attribute("class") or "")


def test_load_is_in_the_header(view):
    view.wait_for_function("() => /CPU here \\d+ %/.test(document.querySelector('#load').textContent)")
    told = json.load(urllib.request.urlopen(view.url + "api/load"))
    shown = view.locator("#load").text_content()
    assert ("GPU –" in shown) == (not told["servers"][0]["gpus"])
    assert "error" not in told["servers"][0]


def test_classes_are_edited_with_the_keyboard(view):
    """New classes change what is found; the field keeps the focus, so that several can be typed in a row."""
    west = card(view, "yard / west")
    until_seen(view, "yard / west", "red circle")
    field = west.get_by_label("add a class")
    field.focus()
    view.keyboard.type("blue square")
    view.keyboard.press("Enter")
    until_seen(view, "yard / west", "red circle", "blue square")
    assert field.evaluate("field => field === document.activeElement && field.value === ''")
    view.keyboard.press("Shift+Tab")  # to the last chip's button
    assert view.evaluate("document.activeElement.ariaLabel") == "remove blue square"
    view.keyboard.press("Enter")
    until_seen(view, "yard / west", "red circle", without=["blue square"])
    west.get_by_label("remove red circle").click()
    west.get_by_text("a camera has to look for something").wait_for()
    until_seen(view, "yard / west", "red circle")


def test_a_box_is_dragged_and_cleared(view):
    card(view, "yard / west").get_by_label("enlarge").click()
    large = view.get_by_role("dialog")
    large.get_by_text("red circle #").wait_for()  # a detection with its track
    frame = large.locator(".frame")
    left, top, width, height = (frame.bounding_box()[side] for side in ("x", "y", "width", "height"))
    assert left >= 0
    assert left + width <= view.viewport_size["width"]
    assert width / height == pytest.approx(4 / 3, rel=0.02)  # boxes are placed relative to the image
    view.mouse.move(left + 0.75 * width, top + 0.65 * height)
    view.mouse.down()
    view.mouse.move(left + 0.97 * width, top + 0.96 * height, steps=3)
    assert large.locator(".boxes div").count() == 1  # while it is dragged
    view.mouse.up()
    large.get_by_text("like red circle: 75 65 97 96 %").wait_for()
    assert large.locator(".stages").text_content()
    view.wait_for_function(
        "() => /geometry (?!0 ms)/.test(document.querySelector('.stages').textContent)"
    )  # the server has used it
    large.get_by_text("clear all boxes").click()
    view.wait_for_function("() => /geometry 0 ms/.test(document.querySelector('.stages').textContent)")
    assert large.locator(".exemplars li").count() == 0


def test_a_masked_region_is_dragged_and_cleared(view):
    card(view, "yard / west").get_by_label("enlarge").click()
    large = view.get_by_role("dialog")
    large.locator("select[name=sign]").select_option("masked")
    frame = large.locator(".frame")
    frame.locator("img").wait_for()
    left, top, width, height = (frame.bounding_box()[side] for side in ("x", "y", "width", "height"))
    view.mouse.move(left + 0.05 * width, top + 0.1 * height)
    view.mouse.down()
    view.mouse.move(left + 0.25 * width, top + 0.3 * height, steps=3)
    view.mouse.up()
    large.locator(".regions li").get_by_text("masked: 5 10 %, 25 10 %, 25 30 %, 5 30 %").wait_for()
    assert "polygon(5" in large.locator(".masks div").evaluate("element => element.style.clipPath")
    assert large.locator(".exemplars li").count() == 0
    large.locator(".regions").get_by_role("button", name="clear").click()
    large.locator(".regions li").wait_for(state="detached")
    assert large.locator(".masks div").count() == 0


def test_a_detection_becomes_an_exemplar_with_the_keyboard(view):
    card(view, "yard / west").get_by_label("enlarge").focus()
    view.keyboard.press("Enter")
    large = view.get_by_role("dialog")
    large.get_by_role("button", name="like this").first.focus()
    view.keyboard.press("Enter")
    large.locator(".exemplars li").get_by_text("like red circle").wait_for()
    large.locator(".exemplars").get_by_role("button", name="clear").focus()
    view.keyboard.press("Enter")
    large.locator(".exemplars li").wait_for(state="detached")
    view.keyboard.press("Escape")
    assert large.count() == 0
