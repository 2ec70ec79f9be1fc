"""A server whose processes are killed, idle or under load: it is noticed, started again on the same ports, and every
frame of every camera gets an answer or an error."""

import contextlib
import logging
import os
import signal
import threading
import time
import urllib.request
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from clients.connection import Client
from clients.errors import InvalidRequest, Sam3ServerError
from ensemble.server import supervision
from ensemble.server.embedded import EmbeddedServer
from ensemble.server.requirements import ServerError
from ensemble.server.supervision import supervise
from tests.ensemble.real_server import stubs
from tests.ensemble.waiting import PATIENCE_S, until

pytestmark = pytest.mark.server

FRAME = np.zeros((28, 28, 3), np.uint8)
FRONT = "sam3_r140"
CAMERAS = 4


@pytest.fixture(scope="module")
def own_server(repository):
    """A server of these tests' own, since it is going to be hurt: each test leaves it started again and answering."""
    with EmbeddedServer(repository, resolutions=[140]) as running:
        yield running


@pytest.fixture
def logged(caplog):
    """Messages of the supervision so far."""
    caplog.set_level(logging.INFO, "ensemble.server.supervision")
    return lambda: [r.getMessage() for r in caplog.records if r.name == "ensemble.server.supervision"]


@contextlib.contextmanager
def supervision_of(server, interval=PATIENCE_S):
    """One that probes rarely unless told otherwise: what it notices, it notices by the processes. It is told to end,
    which it does once the server's present process has ended."""
    ended = threading.Event()
    threading.Thread(target=supervise, args=(server, interval, ended), daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def test_a_healthy_server_passes_the_probe(own_server):
    own_server.probe()
    assert own_server.running
    own_server.wait(0)


def test_one_process_has_all_sub_models(own_server):
    """And each instance of a front model has one: nothing else runs Python."""
    assert len(stubs(own_server, "sam3_engine")) == 1
    assert 1 <= len(stubs(own_server, FRONT)) <= 4
    assert stubs(own_server, "sam3_vision_encoder_r140") == []


@pytest.mark.parametrize("model", [FRONT, "sam3_engine"])
def test_a_killed_process_fails_the_probe_and_the_server_is_started_again_on_the_same_ports(own_server, logged, model):
    with Client(own_server.grpc_url, model=FRONT) as client:
        client.detect(FRAME, ("object",))
        for pid in stubs(own_server, model):
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(ServerError, match=f"{model}: its process has ended"):
            own_server.wait(PATIENCE_S)
        with pytest.raises(ServerError, match="sam3_r140 does not answer"):
            own_server.probe()
        with urllib.request.urlopen(f"http://{own_server.http_url}/v2/health/ready") as answer:
            assert answer.status == 200  # why the processes are watched
        with supervision_of(own_server):
            until(lambda: "ready again" in logged())
        assert f"{model}: its process has ended" in logged()[0]
        client.detect(FRAME, ("object",))


def test_a_server_that_hangs_is_started_again(own_server, logged, monkeypatch):
    """A stopped process is there and answers nobody: only the probe tells."""
    monkeypatch.setattr(supervision, "SILENCE_S", 2.0)
    os.kill(stubs(own_server, "sam3_engine")[0], signal.SIGSTOP)
    with supervision_of(own_server, 0.1):
        until(lambda: "ready again" in logged())
        monkeypatch.setattr(supervision, "SILENCE_S", PATIENCE_S)
    assert "sam3_r140 does not answer" in logged()[0]
    with Client(own_server.grpc_url, model=FRONT, timeout=PATIENCE_S) as client:
        client.detect(FRAME, ("object",))


class Camera(threading.Thread):
    """Sends frames one after the other until it is told to end, and counts what came of them."""

    def __init__(self, url):
        super().__init__(daemon=True)
        self._url, self.sent, self.outcomes, self.ending = url, 0, Counter(), threading.Event()

    def run(self):
        with Client(self._url, model=FRONT, timeout=PATIENCE_S) as client:
            while not self.ending.is_set():
                self.sent += 1
                try:
                    client.detect(FRAME, ("red circle", "object"))
                    self.outcomes["answered"] += 1
                except Sam3ServerError as error:
                    self.outcomes[type(error).__name__] += 1
                    time.sleep(0.05)  # nobody there: do not spin


@pytest.mark.parametrize("model", [FRONT, "sam3_engine"])
def test_a_process_killed_under_load(own_server, logged, model):
    cameras = [Camera(own_server.grpc_url) for _ in range(CAMERAS)]
    with supervision_of(own_server):
        for camera in cameras:
            camera.start()
        until(lambda: all(camera.outcomes["answered"] >= 3 for camera in cameras))
        os.kill(stubs(own_server, model)[0], signal.SIGKILL)
        killed = time.monotonic()
        until(lambda: "ready again" in logged())
        print(f"{model}: ready again after {time.monotonic() - killed:.1f} s")
        before = [camera.outcomes["answered"] for camera in cameras]
        until(lambda: all(c.outcomes["answered"] >= n + 3 for c, n in zip(cameras, before, strict=True)))
    for camera in cameras:
        camera.ending.set()
    for camera in cameras:
        camera.join()
    assert f"{model}: its process has ended" in logged()[0]
    assert logged().count("ready again") == 1
    for camera in cameras:
        assert camera.sent == sum(camera.outcomes.values()), "every frame has an answer or an error"
        assert camera.outcomes[InvalidRequest.__name__] == 0, "no frame is called wrong because the server was"


def test_stopping_leaves_nothing_behind(own_server):
    """The last of this module: the server is not started again."""
    identity, pid = own_server.identity, own_server.pid
    assert list(Path("/dev/shm").glob(f"{identity}*"))
    for _ in range(2):  # twice is harmless
        own_server.stop()
        assert not list(Path("/dev/shm").glob(f"{identity}*"))
        assert not Path(f"/proc/{pid}").exists()
