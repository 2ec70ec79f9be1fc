"""What a container says of its server: ready while anything is answered, alive until it hangs."""

from __future__ import annotations

import subprocess
import sys

import pytest

from ensemble.server import probe, supervision
from ensemble.server.health import Health
from ensemble.server.ports import choose_ports
from ensemble.server.requirements import ServerError
from tests.ensemble.server.test_probe import FRONT
from tests.ensemble.server.test_probe import Health as Counters


class Server(Counters):
    """A server whose counters go on whenever somebody looks, where `busy`."""

    fronts = (FRONT,)

    def __init__(self, busy: bool = False, error: str = "", answers: bool = False) -> None:
        super().__init__()
        self.busy, self.error = busy, error
        if answers:
            self.back.set()

    def answered(self):
        self.counts[FRONT] += self.busy
        return super().answered()


CASES = {
    "it answers": ({"answers": True}, "", ""),
    "others are answered, and the frame waits": ({"busy": True}, "", ""),
    "nobody is answered for a moment": ({}, "nothing for 0 s, and a frame is waiting", ""),
    "it answers with an error": ({"answers": True, "error": "failed to enqueue"}, "failed to enqueue", "failed to enq"),
}


@pytest.mark.parametrize(("server", "not_ready", "not_alive"), CASES.values(), ids=CASES)
def test_ready_and_alive(server, not_ready, not_alive):
    for ask, sentence in ((probe.ready, not_ready), (probe.alive, not_alive)):
        asked = Server(**server)
        patience = 60.0 if asked.back.is_set() else 0.3
        if sentence:
            with pytest.raises(ServerError, match=sentence):
                ask(asked, patience)
        else:
            ask(asked, patience)
        asked.back.set()


def test_a_server_that_hangs_is_not_alive(monkeypatch):
    monkeypatch.setattr(supervision, "SILENCE_S", 0.2)
    hanging = Server()
    with pytest.raises(ServerError, match="sam3_r140 does not answer: nothing for"):
        probe.alive(hanging, 60.0)
    hanging.back.set()


@pytest.mark.parametrize("question", probe.SECONDS)
def test_a_server_that_is_not_there(question):
    (port,) = choose_ports("127.0.0.1", (0,))
    command = [sys.executable, "-m", probe.__name__, question, "--url", f"127.0.0.1:{port}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stderr) == (1, "")
    assert "expected a server with a front model, got none: it is starting, or has ended" in done.stdout


@pytest.mark.server
def test_the_server_says_itself_which_front_models_it_has(server):
    assert Health.ask(server.http_url, server.metrics_url).fronts == server.health.fronts == ["sam3_r140", "sam3_r252"]
