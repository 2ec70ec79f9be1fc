"""A server whose python processes are killed is noticed by a real inference, which Triton's own readiness is not, and
started again on the same ports."""

import contextlib
import os
import signal
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import pytest

from clients.connection import Client
from ensemble.server import cli as serve
from ensemble.server.embedded import EmbeddedServer
from ensemble.server.requirements import ServerError

pytestmark = pytest.mark.server

FRAME = np.zeros((28, 28, 3), np.uint8)


@pytest.fixture
def own_server(repository):
    """A server of this test's own, since it is going to be hurt."""
    with EmbeddedServer(repository) as running:
        yield running


def stubs(server, model):
    """Process ids of a model's python instances; a stub is told its server's shared-memory prefix."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = path.read_bytes().decode(errors="replace").split("\0")
            if any(w.startswith(server.identity) for w in words) and any(f"/{model}/" in w for w in words):
                found.append(int(path.parent.name))
    return found


def test_a_healthy_server_passes_the_probe(own_server):
    own_server.probe()
    assert own_server.running


def test_a_killed_sub_model_fails_the_probe_while_triton_says_ready(own_server):
    pids = stubs(own_server, "sam3_vision_encoder_r252")
    assert len(pids) == 1
    os.kill(pids[0], signal.SIGKILL)
    time.sleep(1)
    with pytest.raises(ServerError, match="sam3_r252 does not answer"):
        own_server.probe()
    with urllib.request.urlopen(f"http://{own_server.http_url}/v2/health/ready") as answer:
        assert answer.status == 200  # why the probe exists


def test_a_broken_server_is_started_again_on_the_same_ports(own_server):
    said, ended = [], threading.Event()
    thread = threading.Thread(target=serve.supervise, args=(own_server, 0.5, said.append, ended), daemon=True)
    thread.start()
    with Client(own_server.grpc_url, model="sam3_r252") as client:
        client.detect(FRAME, ("object",))
        os.kill(stubs(own_server, "sam3_vision_encoder_r252")[0], signal.SIGKILL)
        deadline = time.monotonic() + 60
        while "ready again" not in said and time.monotonic() < deadline:
            time.sleep(0.2)
        assert "ready again" in said
        assert "sam3_r252 does not answer" in said[0]
        client.detect(FRAME, ("object",))
    ended.set()
    thread.join(30)
    assert not thread.is_alive()


def test_stopping_leaves_nothing_behind(repository):
    with EmbeddedServer(repository) as running:
        identity, pid = running.identity, running.pid
        assert list(Path("/dev/shm").glob(f"{identity}*"))
    assert not list(Path("/dev/shm").glob(f"{identity}*"))
    assert not Path(f"/proc/{pid}").exists()
    running.stop()  # twice is harmless
