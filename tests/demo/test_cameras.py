"""One bad camera does not end the others, and what failed is counted."""

import asyncio

import numpy as np
import pytest

from clients.errors import RequestTimeout
from clients.video.encode import VideoWriter
from demo.cameras import Reel, mean_batch, percentile, play, stream
from demo.steps import Film


@pytest.fixture
def films(tmp_path):
    """Two good films of five frames, and one that is no video."""
    made = []
    for name in ("one", "two"):
        with VideoWriter(tmp_path / f"{name}.mp4", 10) as writer:
            for i in range(5):
                writer.write(np.full((48, 64, 3), 40 * i, np.uint8))
        made.append(Film(name, tmp_path / f"{name}.mp4", {"classes": [name], "width": 64, "height": 48}))
    (tmp_path / "bad.mp4").write_text("no video")
    return [*made, Film("bad", tmp_path / "bad.mp4", {"classes": ["bad"], "width": 64, "height": 48})]


class Answers:
    """Stands in for a client: answers after a moment, except every `fail`-th request, and notes how many were under way
    at once."""

    def __init__(self, found, fail=0):
        self.found, self.fail, self.asked, self.open, self.most = found, fail, [], 0, 0

    async def detect(self, image, classes, **options):
        self.asked.append(classes)
        number = len(self.asked)
        self.open += 1
        self.most = max(self.most, self.open)
        await asyncio.sleep(0.01)
        self.open -= 1
        if self.fail and number % self.fail == 0:
            raise RequestTimeout("too late")
        return self.found


@pytest.fixture
def found(reel):
    return reel(["a"], [[]], [[]]).shots[0].found


async def test_frames_come_in_order_with_the_cameras_own_classes(films, found):
    client = Answers(found)
    reel = await play(films[0], client)
    assert [shot.index for shot in reel.shots] == list(range(5))
    assert client.asked == [["one"]] * 5
    assert (reel.errors, reel.fps, client.most) == ([], 10.0, 1)
    assert reel.frames_per_second > 0


async def test_several_in_flight(films, found):
    client = Answers(found)
    reel = await play(films[0], client, in_flight=3)
    assert [shot.index for shot in reel.shots] == list(range(5))
    assert 1 < client.most <= 3


async def test_limit(films, found):
    assert len((await play(films[0], Answers(found), limit=2)).shots) == 2


async def test_failures_are_counted_and_the_rest_goes_on(films, found):
    heard: list[Reel] = []
    client = Answers(found, fail=4)
    reels = await asyncio.gather(*(play(film, client, progress=heard.append) for film in films))
    assert [len(reel.shots) + len(reel.errors) for reel in reels] == [5, 5, 1]
    assert sum(len(reel.shots) for reel in reels) == 8
    assert "not a video" in reels[2].errors[0]
    assert len(heard) == 11


async def test_no_server_fails_every_frame_and_raises_nothing(films, unused_tcp_port):
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
    assert percentile([], 95) == 0.0
