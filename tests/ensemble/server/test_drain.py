"""A server that is told to end, with frames under way: those are answered, later ones refused, and the process ends."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from clients import Client, Sam3ServerError, ServerUnavailable
from ensemble.ending import Ending, ServerEnding
from ensemble.server.health import Health
from tests.ensemble.waiting import PATIENCE_S, until

FRONT = "sam3_r140"
HELD = 16
COMMAND = [sys.executable, "-m", "ensemble.server.cli", "--http-port", "0", "--grpc-port", "0", "--metrics-port", "0"]
FRAME = np.random.default_rng(0).integers(0, 255, (140, 140, 3), dtype=np.uint8)


def test_a_batch_under_way_is_waited_for_and_later_frames_are_refused(tmp_path):
    server, model, other = (Ending(tmp_path) for _ in range(3))
    with model.under_way(), other.under_way():
        model.check()
        assert not server.idle
        server.begin()
        with pytest.raises(ServerEnding, match="takes no more frames; send them to another"):
            other.check()
    assert server.idle
    assert other.idle


def test_without_a_folder_every_frame_is_taken(monkeypatch):
    monkeypatch.delenv("SAM3_ENDING", raising=False)
    ending = Ending.of_environment()
    with ending.under_way():
        ending.check()


class Camera(threading.Thread):
    """Sends up to `frames` frames, one after the other, each with classes that the server has not met, which takes it
    longer. Ends at the first that is not answered."""

    def __init__(self, url: str, protocol: str, name: str, frames: int) -> None:
        super().__init__(daemon=True)
        self._url, self._protocol, self._name, self._frames = url, protocol, name, frames
        self.answered, self.error = 0, None
        self.start()

    def run(self) -> None:
        with Client(self._url, model=FRONT, protocol=self._protocol, timeout=PATIENCE_S) as sam3:
            for number in range(self._frames):
                try:
                    sam3.detect(FRAME, [f"{self._name} {number} {n}" for n in range(8)])
                    self.answered += 1
                except Sam3ServerError as error:
                    self.error = error
                    return


@pytest.mark.server
def test_what_a_server_holds_is_answered_when_it_is_told_to_end(repository: Path):
    one_by_one = ["--resolution", "140", "--max-batch", "1", "--front-instances", "1"]
    command = [*COMMAND, "--repository", str(repository), *one_by_one, "--drain-seconds", str(PATIENCE_S)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        urls = json.loads(process.stdout.readline())
        health = Health(urls["http"], urls["metrics"], [FRONT])
        held = [Camera(urls[p], p, f"{p} {n}", 1) for p in ("grpc", "http") for n in range(HELD // 2)]
        until(lambda: health.waiting()[FRONT] + health.answered()[FRONT] >= HELD - 1)  # and one is worked on
        process.send_signal(signal.SIGTERM)
        late = [Camera(urls[p], p, f"late {p} {n}", 10**6) for p in ("grpc", "http") for n in range(2)]
        for camera in (*held, *late):
            camera.join(PATIENCE_S)
        assert process.wait(PATIENCE_S) == 0
    assert [str(camera.error) for camera in held if not camera.answered] == []
    for camera in late:
        assert isinstance(camera.error, ServerUnavailable)
        assert re.search("server is ending|Server is stopping|Connect", str(camera.error)), camera.error
