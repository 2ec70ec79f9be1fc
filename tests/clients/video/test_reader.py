"""The reading thread: which frames it keeps and counts, and recovery from failures, also of real RTSP cameras."""

import asyncio
import threading

import numpy as np
import pytest

from clients.video import address
from clients.video.frames import Frame, SourceError
from clients.video.motion import Motion, MotionGate
from clients.video.reader import AHEAD, Reader
from tests.clients.video.cameras import FakeCamera, transport_stream


class Script:
    """A source of grey frames. It waits for `gate` before each frame but the first, and raises `end` after the last."""

    fps, count = 10.0, None

    def __init__(self, frames, live=False, gate=None, end=None):
        self.frames, self.live, self.gate, self.end = frames, live, gate, end

    def read(self, wanted):
        for i in range(self.frames):
            if self.gate and i:
                self.gate.wait(120)
            if wanted(i / self.fps):
                yield Frame(i, i / self.fps, np.full((8, 8, 3), i, np.uint8))
        if self.end:
            raise SourceError(self.end)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


async def until(condition, seconds=120.0):
    """Waits until `condition()`; fails after a time that only an error can take."""
    for _ in range(int(seconds / 0.01)):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail("the condition was never met")


async def everything(reader):
    taken = []
    while (frame := await reader.next()) is not None:
        taken.append(frame)
    return taken


async def test_a_file_is_read_whole_and_in_order(film):
    reader = Reader(str(film)).start()
    frames = await everything(reader)
    assert [f.index for f in frames] == list(range(6))
    assert [int(f.rgb.mean().round(-1)) for f in frames] == [30 * i for i in range(6)]
    assert all(f.jpeg.startswith(b"\xff\xd8") and f.image is f.jpeg for f in frames)
    assert (reader.read, reader.replaced, reader.state, reader.source_fps) == (6, 0, "ended", 12.0)


async def test_raw_frames_have_no_jpeg(film):
    frame = await Reader(str(film), raw=True).start().next()
    assert (frame.jpeg, frame.image is frame.rgb) == (b"", True)


async def test_a_file_waits_for_its_reader():
    reader = Reader("film", opener=lambda _: Script(10)).start()
    await until(lambda: reader.read == AHEAD)
    await asyncio.sleep(0.1)
    assert reader.read == AHEAD
    assert len(await everything(reader)) == 10


async def test_a_live_camera_keeps_its_newest_frame():
    reader = Reader("camera", opener=lambda _: Script(7, live=True, end="enough"), first_pause=60).start()
    await until(lambda: reader.state == "lost")
    frame = await reader.next()
    assert (frame.index, frame.replaced, int(frame.rgb[0, 0, 0])) == (6, 6, 6)
    assert (reader.read, reader.replaced) == (7, 6)
    assert reader.take() is None
    assert reader.stop() == 0
    assert reader.join(120)


@pytest.mark.parametrize(("fps", "expected"), [(5, [0, 2, 4, 6, 8]), (3, [0, 4, 7]), (100, list(range(10)))], ids=str)
async def test_frame_rate(fps, expected):
    """Of ten frames at 10 fps."""
    reader = Reader("film", fps=fps, opener=lambda _: Script(10)).start()
    assert [int(p.rgb[0, 0, 0]) for p in await everything(reader)] == expected


async def test_real_time_drops_frames_that_are_not_taken():
    reader = Reader("film", realtime=True, opener=lambda _: Script(4)).start()
    await until(lambda: reader.state == "ended")
    assert [p.index for p in await everything(reader)] == [3]
    assert (reader.read, reader.replaced) == (4, 3)


async def test_a_loop_starts_over():
    reader = Reader("film", loop=True, opener=lambda _: Script(3)).start()
    taken = [int((await reader.next()).rgb[0, 0, 0]) for _ in range(7)]
    assert taken == [0, 1, 2, 0, 1, 2, 0]
    reader.stop()
    assert reader.join(120)


async def test_the_rate_holds_over_rounds():
    """Three frames at 10 fps in a loop: at 2 fps every fifth frame of all rounds."""
    reader = Reader("film", loop=True, fps=2, opener=lambda _: Script(3)).start()
    frames = [await reader.next() for _ in range(4)]
    assert [int(f.rgb[0, 0, 0]) for f in frames] == [0, 2, 1, 0]
    assert [f.time_s for f in frames] == pytest.approx([0, 0.5, 1.0, 1.5])
    reader.stop()


async def test_a_missing_file_fails_once(tmp_path):
    reader = Reader(str(tmp_path / "none.mp4")).start()
    assert await reader.next() is None
    assert (reader.state, reader.reconnects) == ("failed", 0)
    assert "no file" in reader.error


async def test_frames_in_which_nothing_moves_are_marked_and_not_encoded():
    """Grey levels 0, 1, 2, ... are a slow change of light."""
    reader = Reader("film", gate=MotionGate(Motion()), opener=lambda _: Script(6)).start()
    frames = await everything(reader)
    assert [f.still for f in frames] == [False, *[True] * 5]
    assert [bool(f.jpeg) for f in frames] == [True, *[False] * 5]
    assert frames[3].image is frames[3].rgb


async def test_what_replaces_a_frame_that_was_to_be_sent_is_sent():
    """Nobody takes a frame before the seventh: of a live camera the first goes over to the last."""
    gate = threading.Event()
    reader = Reader("camera", gate=MotionGate(Motion()), opener=lambda _: Script(7, live=True, gate=gate)).start()
    await until(lambda: reader.read == 1)
    assert not reader.still
    gate.set()
    await until(lambda: reader.read == 7)
    frame = reader.take()
    assert (frame.index, frame.replaced, frame.still, bool(frame.jpeg)) == (6, 6, False, True)
    reader.stop()


async def test_still_is_what_does_not_differ_from_the_latest_frame_that_was_taken():
    gate = threading.Event()
    reader = Reader("camera", gate=MotionGate(Motion()), opener=lambda _: Script(9, live=True, gate=gate)).start()
    first = await reader.next()
    assert (first.index, first.still, reader.still) == (0, False, False)
    gate.set()
    await until(lambda: reader.read == 9)
    assert reader.still
    frame = reader.take()
    assert (frame.index, frame.replaced, frame.still) == (8, 7, True)
    reader.stop()


async def test_stop_returns_the_number_of_frames_not_taken():
    gate = threading.Event()
    reader = Reader("film", opener=lambda _: Script(3, gate=gate)).start()
    await until(lambda: reader.read == 1)
    assert reader.stop() == 1
    assert await reader.next() is None
    gate.set()
    assert reader.join(120)


async def test_reading_continues_after_an_unexpected_error():
    visits = []

    def opener(_):
        visits.append(1)
        if len(visits) == 1:
            raise MemoryError("a frame of 10 terapixels")
        return Script(2, live=True)

    reader = Reader("tcp://camera", opener=opener, first_pause=0.01).start()
    assert (await reader.next()) is not None
    assert reader.reconnects >= 1
    reader.stop()


@pytest.mark.parametrize(
    ("script", "state", "error"),
    [
        (Script(3, live=True), "ended", ""),
        (Script(3, live=True, end="broke off"), "failed", "broke off"),
        (SourceError("no camera there"), "failed", "no camera there"),
    ],
    ids=["ends", "fails", "cannot be opened"],
)
async def test_without_reconnect_a_live_camera_is_opened_once(script, state, error):
    visits = []

    def opener(_):
        visits.append(1)
        if isinstance(script, SourceError):
            raise script
        return script

    reader = Reader("tcp://camera", opener=opener, reconnect=False).start()
    await everything(reader)
    assert (reader.state, reader.error, len(visits)) == (state, error, 1)


# ---- streams over a real socket
async def test_a_camera_that_disconnects_is_opened_again():
    data = transport_stream([(48, 64)])
    with FakeCamera(lambda connection, n: connection.sendall(data)) as camera:
        reader = Reader(camera.address, first_pause=0.05).start()
        await until(lambda: reader.read > 15)
        reader.stop()
        assert reader.join(120)
    assert camera.visits >= 2
    assert reader.reconnects >= 1


async def test_a_camera_that_freezes_is_opened_again(monkeypatch):
    monkeypatch.setattr(address, "READ_TIMEOUT_S", 0.5)
    monkeypatch.setattr(address, "OPEN_TIMEOUT_S", 3.0)
    data, thaw = transport_stream([(48, 64)]), threading.Event()

    def act(connection, n):
        connection.sendall(data)
        if n == 1:
            thaw.wait(120)  # the connection stays open and silent

    with FakeCamera(act) as camera:
        reader = Reader(camera.address, first_pause=0.05).start()
        await until(lambda: reader.reconnects >= 1)
        thaw.set()
        seen = reader.read
        assert seen > 0
        await until(lambda: reader.read > seen)
        reader.stop()


async def test_a_camera_may_change_its_size():
    sizes = [(48, 64), (96, 128)]
    with FakeCamera(lambda connection, n: connection.sendall(transport_stream(sizes))) as camera:
        reader, seen = Reader(camera.address, first_pause=0.05).start(), set()
        while len(seen) < 2:
            seen.add((await reader.next()).rgb.shape[:2])
        reader.stop()
    assert seen == set(sizes)


async def test_garbage_is_skipped():
    """The first connection sends only noise, the next ones a good stream with noise in the middle."""
    noise = np.random.default_rng(0).integers(0, 256, 20_000, np.uint8).tobytes()
    data = transport_stream([(48, 64)])

    def act(connection, n):
        connection.sendall(noise if n == 1 else data[: len(data) // 2] + noise + data[len(data) // 2 :])

    with FakeCamera(act) as camera:
        reader = Reader(camera.address, first_pause=0.05).start()
        frame = await reader.next()
        assert frame.rgb.shape == (48, 64, 3)
        assert reader.reconnects >= 1
        reader.stop()


async def test_nothing_listens(closed_port):
    reader = Reader(f"tcp://127.0.0.1:{closed_port}", first_pause=0.01).start()
    await until(lambda: reader.reconnects >= 3)
    assert (reader.state, reader.read) == ("connecting", 0)
    assert "not a video" in reader.error
    reader.stop()


async def test_two_cameras_of_a_real_rtsp_server(rtsp):
    readers = [Reader(address).start() for address in rtsp]
    for number, reader in enumerate(readers):
        frames = [await asyncio.wait_for(reader.next(), 120) for _ in range(5)]
        assert {f.rgb.shape for f in frames} == {(240, 320 + 64 * number, 3)}
        assert [f.index for f in frames] == sorted({f.index for f in frames})
        assert any((frames[0].rgb != f.rgb).any() for f in frames)  # the ball moves
        assert reader.state == "live"
        reader.stop()
    assert all(reader.join(120) for reader in readers)
