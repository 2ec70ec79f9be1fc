"""The process that started a server may be killed with -9: the server ends too. The thread that called `start` may end
without harm."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from clients.connection import Client
from ensemble.server.embedded import EmbeddedServer
from ensemble.server.requirements import ServerError
from tests.ensemble.waiting import until

pytestmark = pytest.mark.server

OWNER = """
import sys, time
from ensemble.server.embedded import EmbeddedServer
server = EmbeddedServer(sys.argv[1], resolutions=[140]).start()
print(server.pid, server.identity, flush=True)
time.sleep(600)
"""


def processes_of(identity: str) -> list[int]:
    """The server and its models' processes: all have its name among their arguments."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if identity.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def own_server(repository: Path) -> Iterator[EmbeddedServer]:
    """Started by a thread that has ended."""
    server = EmbeddedServer(repository, resolutions=[140])
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    yield server
    server.stop()


def test_kill_9_leaves_no_server_behind(repository: Path):
    with subprocess.Popen([sys.executable, "-c", OWNER, str(repository)], stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid, identity = owner.stdout.readline().split()
        running = processes_of(identity)
        owner.send_signal(signal.SIGKILL)
    assert int(pid) in running
    assert len(running) >= 3, "the server, the engine model and a front model"
    until(lambda: processes_of(identity) == [])
    assert list(Path("/dev/shm").glob(f"{identity}*")) == [], "it ended in order"


def test_a_thread_may_start_the_server_and_end(own_server: EmbeddedServer):
    own_server.probe()
    with Client(own_server.grpc_url, model="sam3_r140") as client:
        client.detect(np.zeros((28, 28, 3), np.uint8), ("object",))
    assert os.getpgid(own_server.pid or 0) == own_server.pid
    with pytest.raises(Exception, match="sam3_r252"), Client(own_server.grpc_url, model="sam3_r252") as other:
        other.detect(np.zeros((28, 28, 3), np.uint8), ("object",))


def test_a_server_that_crashed_leaves_no_model_behind(own_server: EmbeddedServer):
    assert own_server.pid is not None
    os.kill(own_server.pid, signal.SIGKILL)
    until(lambda: not own_server.running)
    assert len(processes_of(own_server.identity)) >= 2, "the engine model and a front model go on without it"
    own_server.stop()
    until(lambda: processes_of(own_server.identity) == [])
    own_server.start()
    own_server.probe()


def test_a_resolution_that_is_not_there(repository: Path):
    with pytest.raises(ServerError, match=r"resolutions of this repository \(140, 252\), got 672"):
        EmbeddedServer(repository, resolutions=[672]).start()
