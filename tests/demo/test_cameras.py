"""The demo's cameras: every frame is answered or counted as failed, and one bad film does not stop the others."""

import asyncio

import numpy as np
import pytest

from clients.errors import RequestTimeout
from clients.fleet.endpoint import Endpoint
from clients.fleet.pool import Pool
from clients.fleet.stats import percentiles
from clients.video.encode import VideoWriter
from demo.cameras import Reel, mean_batch, play, stream
from demo.steps import Film


@pytest.fixture
def films(tmp_path):
    """Two good films of five frames, and one that is no video."""
    made = []
    for name in ("one", "two"):
        with VideoWriter(tmp_path / f"{name}.mp4", 10) as writer:
            for i in range(5):
                writer.write(np.full((48, 64, 3), 40 * i, np.uint8))
        made.append(
            Film(name, tmp_path / f"{name}.mp4", {"classes": [name], "width": 64, "height": 48, "frames": [[]] * 5})
        )
    (tmp_path / "bad.mp4").write_text("no video")
    return [*made, Film("bad", tmp_path / "bad.mp4", {"classes": ["bad"], "width": 64, "height": 48})]


class Answers:
    """A client that answers all requests but every `fail`-th one, and records the most requests in flight. With
    `together` it answers once that many are in flight."""

    def __init__(self, found, fail=0, together=1):
        self.found, self.fail, self.together = found, fail, together
        self.classes, self.open, self.most = [], 0, 0
        self.full = asyncio.Event()

    def pool(self):
        return Pool([Endpoint(lambda model: self, "server")], 32)

    async def detect(self, image, classes, **options):
        self.classes.append(classes)
        number = len(self.classes)
        self.open += 1
        self.most = max(self.most, self.open)
        if self.open == self.together:
            self.full.set()
        await self.full.wait()
        self.open -= 1
        if self.fail and number % self.fail == 0:
            raise RequestTimeout("too late")
        return self.found

    async def close(self):
        pass


@pytest.fixture
def found(reel):
    return reel(["a"], [[]], [[]]).shots[0].found


async def test_frames_come_in_order_with_the_cameras_own_classes(films, found):
    client = Answers(found)
    (reel,) = await play(films[:1], client.pool())
    assert [shot.index for shot in reel.shots] == list(range(5))
    assert client.classes == [("one",)] * 5
    assert (reel.errors, reel.fps, client.most) == ([], 10.0, 1)
    assert reel.frames_per_second > 0


async def test_several_in_flight(films, found):
    client = Answers(found, together=3)
    (reel,) = await play(films[:1], client.pool(), in_flight=3)
    assert [shot.index for shot in reel.shots] == list(range(5))
    assert client.most == 3


async def test_limit(films, found):
    (reel,) = await play(films[:1], Answers(found).pool(), limit=2)
    assert len(reel.shots) == 2


async def test_failures_are_counted_and_the_others_continue(films, found):
    heard: list[Reel] = []
    client = Answers(found, fail=4)
    reels = await play(films, client.pool(), progress=heard.append)
    assert [len(reel.shots) + len(reel.errors) for reel in reels] == [5, 5, 1]
    assert sum(len(reel.shots) for reel in reels) == 8
    assert "not a video" in reels[2].errors[0]
    assert len(heard) == 11


async def test_without_a_server_every_frame_fails(films, unused_tcp_port):
    reels, seconds = await stream(films[:2], f"127.0.0.1:{unused_tcp_port}", "sam3_r252", timeout=5)
    assert [len(reel.errors) for reel in reels] == [5, 5]
    assert seconds > 0


def test_mean_batch_counts_executions(reel):
    """Four frames that shared one execution and two that ran alone are six frames in three executions."""
    truths, answers = [[]] * 4, [[]] * 4
    four = reel(["a"], truths, answers, batch=4)
    alone = reel(["a"], truths[:2], answers[:2], batch=1)
    assert mean_batch([four, alone]) == pytest.approx(2.0)
    assert mean_batch([]) == 0.0
    assert percentiles([]) == (0.0, 0.0)
