"""A real Prometheus with our rules, before two real servers and a page: what scales, and what the dashboard shows."""

from __future__ import annotations

import json
import re
import shutil
import threading
from contextlib import contextmanager

import pytest
import yaml

from clients.connection import Client
from clients.dashboard.app import build_app
from clients.dashboard.board import Board
from clients.dashboard.load import GPU_LINE, Load
from clients.dashboard.web import WebServer, listen
from clients.fleet.camera import Camera
from clients.fleet.config import CameraConfig
from tests.conftest import ROOT
from tests.deploy.monitoring import COMPONENT, WINDOW_S, prometheus
from tests.ensemble.drawn import CLASSES, FRAME
from tests.ensemble.waiting import until

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="needs Debian's package prometheus"),
]
MODEL = "sam3_r140"
IN_FLIGHT = 16
"""For each server: twice the frames of its largest batch."""
TOLERANCE = 0.1
"""Kubernetes leaves the number of pods as it is where a metric is within this of its target."""
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "sam3.json").read_text())


@pytest.fixture(scope="module")
def page():
    """The address of a page with one camera, of which a frame was answered and one was dropped."""
    camera = Camera(CameraConfig("gate", "none", ("person",), (0.5,), fps=10.0))
    camera.stats.answered, camera.stats.dropped["late"] = 1, 1
    camera.stats.latencies_ms.append(42.0)
    board = Board([camera])
    with listen("127.0.0.1", 0) as listener:
        web = WebServer(build_app(board, Load([])))
        thread = threading.Thread(target=web.run, kwargs={"sockets": [listener]})
        thread.start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        web.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def watching(server, video_server, page, tmp_path_factory):
    """Which has looked at all of them since each server answered a frame."""
    with Client(server.grpc_url, model=MODEL) as pictures, Client(video_server.grpc_url) as videos:
        pictures.detect(FRAME, CLASSES)
        with videos.session(CLASSES) as session:
            session.frame(FRAME)
    targets = {"sam3": [server.metrics_url, video_server.metrics_url], "sam3-page": [page]}
    with prometheus(tmp_path_factory.mktemp("prometheus"), targets) as running:
        until(lambda: running.value("sum(up)") == 3)
        until(lambda: running.query("sam3:wait_seconds:rate1m") and running.query("sam3_sub_model_calls_total"))
        yield running


@contextmanager
def cameras(servers, in_flight):
    """So many requests are under way at each server, each followed by the next."""
    over, errors = threading.Event(), []

    def send(url):
        try:
            with Client(url, model=MODEL, timeout=300) as client:
                while not over.is_set():
                    client.detect(FRAME, CLASSES)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=send, args=(server.grpc_url,)) for server in servers for _ in range(in_flight)]
    for thread in threads:
        thread.start()
    try:
        yield threads
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert errors == []


def test_more_cameras_ask_for_more_servers_and_fewer_for_fewer(watching, server, video_server):
    """KEDA's own queries, as `scaled-object.yaml` has them."""
    triggers = yaml.safe_load((COMPONENT / "scaled-object.yaml").read_text())["spec"]["triggers"]
    (wait, least), (oldest, _) = ((t["metadata"]["query"], float(t["metadata"]["threshold"])) for t in triggers)
    work = "sum(sam3:work_seconds:rate1m)"

    def few():
        return watching.value(work) > 0 and watching.value(wait) < least * (1 - TOLERANCE)

    with cameras([server, video_server], 1) as threads:
        until(few, *threads)
        with cameras([server, video_server], IN_FLIGHT - 1) as more:
            until(lambda: watching.value(wait) > least * (1 + TOLERANCE), *threads, *more)
            until(lambda: watching.value(oldest) > 0)
        until(few, *threads)
    until(lambda: watching.value(work) == 0)
    assert watching.value(wait) == 0, "without cameras nothing waits"


def panels():
    """Each expression of the dashboard, its variables filled in."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", ()):
            expression = target["expr"].replace("$instance", ".*").replace("$__rate_interval", f"{WINDOW_S}s")
            yield pytest.param(expression, id=f"{panel['title']}, {target['refId']}")


def names(expression):
    """The metrics that an expression names."""
    return set(re.findall(r"\b(?:sam3|nv)[_:][\w:]+", re.sub(r'"[^"]*"', "", expression)))


def family(name):
    """The metric that a series belongs to: of a histogram there are three."""
    return re.sub("_(bucket|sum|count)$", "", name)


@pytest.mark.parametrize("expression", panels())
def test_a_panel_shows_what_is_there(watching, expression):
    """Prometheus knows each metric that it names from a server, from the page or from the rules; a GPU's from a server
    that has one, so these are held to what the page reads of them."""
    watching.query(expression)
    known = set(json.loads(watching.get("/api/v1/label/__name__/values"))["data"])
    missing = {name for name in names(expression) - known if not GPU_LINE.match(f'{name}{{gpu_uuid="GPU-1"}} 1')}
    assert missing == set()


def told(watching):
    """What the servers and the page tell of themselves: kind and description of each of our metrics."""
    known = json.loads(watching.get("/api/v1/metadata"))["data"]
    return {name: (about[0]["type"], about[0]["help"]) for name, about in known.items() if name.startswith("sam3_")}


def test_the_dashboard_and_the_rules_leave_nothing_out(watching):
    rules = yaml.safe_load((COMPONENT / "rules.yaml").read_text())["spec"]["groups"]
    asked = [rule["expr"] for group in rules for rule in group["rules"]] + [p.values[0] for p in panels()]
    assert told(watching).keys() - {family(name) for expression in asked for name in names(expression)} == set()


def test_the_table_of_metrics(watching):
    """docs/scale.md has each with its kind."""
    text = (ROOT / "docs" / "scale.md").read_text()
    rows = re.findall(r"^\| `(sam3_\w+)` \| (\w+) \|", text, re.MULTILINE)
    assert dict(rows) == {name: kind for name, (kind, _) in told(watching).items()}
