"""Live streams: clocks of their own, bursts, segments, parts with odd boundaries, silence beside sound, proxies."""

import socket
import time

import pytest

from clients.video import address, streams
from clients.video.frames import SourceError, SourceRefused
from clients.video.sources import open_source
from clients.video.streams import Stream
from tests.clients.video.cameras import FakeCamera
from tests.clients.video.films import encoded, grey, noise
from tests.clients.video.web import WebCamera, has_ipv6, picture, send, stream


def until_it_ends(source):
    """The frames before the error that ends a live stream."""
    frames = []
    try:
        with source:
            for frame in source:
                frames.append(frame)
    except SourceError as error:
        return frames, str(error)
    return frames, "it ended"


CLOCKS = {
    "even": [{}],
    "begins at 26 hours": [{"start_s": 94_000}],
    "jumps ahead and comes back": [{}, {"start_s": 3000}, {"start_s": 4}],
    "jumps back": [{"start_s": 3000}, {}],
}


@pytest.mark.parametrize("case", CLOCKS)
def test_a_live_stream_runs_on_this_machines_clock(case):
    """Pieces of two seconds arrive at once: they take their time, no more than this machine's clock says, in order."""
    pieces = [encoded([grey(8 * i) for i in range(20)], **piece) for piece in CLOCKS[case]]

    def act(connection: socket.socket, n: int) -> None:
        connection.sendall(b"".join(pieces))

    with FakeCamera(act) as camera:
        source = Stream(camera.address)
        began = time.monotonic()
        frames, _ = until_it_ends(source)
        took = time.monotonic() - began
    times = [frame.time_s for frame in frames]
    assert len(frames) >= 20 * len(pieces) - 1
    assert times == sorted(times)
    assert times[-1] <= took
    assert times[-1] - times[0] >= (len(frames) - 3) * 0.1 / 1.25  # a quarter faster than its clock at most


def test_a_stream_without_times_is_not_paced():
    """JPEG parts carry no times; FFmpeg takes 25 a second for granted."""
    parts = [part(picture(8 * i)) for i in range(75)]
    with WebCamera(lambda request: stream(request, iter(parts), MULTIPART)) as camera:
        frames, _ = until_it_ends(Stream(f"{camera.address}/video"))
    assert [abs(int(frame.rgb.mean()) - 8 * i % 256) < 9 for i, frame in enumerate(frames)] == [True] * 75
    assert frames[-1].time_s < 2.4 or frames[1].time_s > 0.05  # unless this machine cannot go faster itself


def test_video_that_stops_while_sound_goes_on_is_silence(monkeypatch):
    monkeypatch.setattr(address, "READ_TIMEOUT_S", 0.5)
    both, whole = (encoded([grey(i) for i in range(frames)], audio=True) for frames in (10, 100))
    packets = [whole[at : at + 188] for at in range(0, len(whole), 188)]
    sound = [p for p in packets if int.from_bytes(p[1:3], "big") & 0x1FFF != 0x100]  # the video's

    def act(connection: socket.socket, n: int) -> None:
        connection.sendall(both + b"".join(sound[: len(sound) // 2]))
        while True:
            for packet in sound:
                connection.sendall(packet)
                time.sleep(0.02)

    with FakeCamera(act) as camera:
        frames, error = until_it_ends(Stream(camera.address))
    assert frames
    assert "fell silent after" in error


def test_packets_without_a_frame_are_no_video(monkeypatch):
    monkeypatch.setattr(streams, "BAD_S", 0.0)
    monkeypatch.setattr(streams, "BAD_PACKETS", 15)
    parts = [part(picture(i)) for i in range(3)] + [part(picture(i)[:200]) for i in range(40)]
    with WebCamera(lambda request: stream(request, iter(parts), MULTIPART)) as camera:
        source = Stream(f"{camera.address}/video")
        frames, error = until_it_ends(source)
    assert 1 <= len(frames) <= 3
    assert "15 packets in a row without a frame" in error
    assert source.skipped.count >= 15


# ---- parts with boundaries
MULTIPART = "multipart/x-mixed-replace; boundary=frame"


def part(jpeg, head=b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n", end=b"\r\n"):
    return (head % len(jpeg) if b"%d" in head else head) + jpeg + end


PARTS = {
    "as they should be": (MULTIPART, {}),
    "without a length": (MULTIPART, {"head": b"--frame\r\nContent-Type: image/jpeg\r\n\r\n"}),
    "image/jpg": (MULTIPART, {"head": b"--frame\r\nContent-Type: image/jpg\r\nContent-Length: %d\r\n\r\n"}),
    "without a type": (MULTIPART, {"head": b"--frame\r\nContent-Length: %d\r\n\r\n"}),
    "without a head": (MULTIPART, {"head": b"--frame\r\n\r\n"}),
    "without dashes": (MULTIPART, {"head": b"frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"}),
    "dashes in the name": ("multipart/x-mixed-replace;boundary=--frame", {}),
    "quoted": ('multipart/x-mixed-replace; boundary="frame"', {}),
    "only line feeds": (MULTIPART, {"head": b"--frame\nContent-Type: image/jpeg\n\n", "end": b"\n"}),
    "no line end": (MULTIPART, {"end": b""}),
    "text between": (
        MULTIPART,
        {"end": b"\r\n--frame\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nhello\r\n"},
    ),
    "a wrong length": (MULTIPART, {"head": b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: 7\r\n\r\n"}),
    "no type of the whole": ("application/octet-stream", {}),
}


@pytest.mark.parametrize("case", PARTS)
def test_jpegs_between_odd_boundaries(case):
    kind, options = PARTS[case]
    parts = [part(picture(12 * i), **options) for i in range(20)]
    with WebCamera(lambda request: stream(request, iter(parts), kind)) as camera:
        frames, _ = until_it_ends(Stream(f"{camera.address}/video"))
    assert len(frames) >= 18
    levels = [int(frame.rgb.mean()) for frame in frames]
    assert levels == sorted(levels)


# ---- segments
class Playlist:
    """A live playlist that lists the newest three of segments of `seconds` at 10 frames a second."""

    def __init__(self, seconds: int, ended: bool = False) -> None:
        self.seconds, self.began, self.ended = seconds, time.monotonic() - 3 * seconds, ended
        self.count = 10 * seconds

    def __call__(self, request) -> None:
        newest = 3 if self.ended else int((time.monotonic() - self.began) / self.seconds)
        if request.path.endswith(".ts"):
            number = int(request.path[1:-3])
            levels = [number * self.count + i for i in range(self.count)]
            send(request, encoded([grey(i) for i in levels], start_s=number * self.seconds, gop=10), "video/mp2t")
            return
        first = newest - 3
        lines = ["#EXTM3U", f"#EXT-X-TARGETDURATION:{self.seconds}", f"#EXT-X-MEDIA-SEQUENCE:{first}"]
        lines += [line for n in range(first, newest) for line in (f"#EXTINF:{self.seconds},", f"{n}.ts")]
        lines += ["#EXT-X-ENDLIST"] if self.ended else []
        send(request, "\n".join([*lines, ""]).encode(), "application/vnd.apple.mpegurl")


@pytest.mark.parametrize("path", ["live.m3u8", "cam"])
def test_segments_are_even_and_none_comes_twice(path, monkeypatch):
    """Segments of 2 s, of which each arrives whole: longer than a live source may be silent."""
    monkeypatch.setattr(address, "READ_TIMEOUT_S", 1.0)
    with WebCamera(Playlist(2)) as camera, Stream(f"{camera.address}/{path}") as source:
        assert source.live
        frames = [frame for frame, _ in zip(source, range(50), strict=False)]
    levels = [round(float(frame.rgb.mean())) for frame in frames]
    assert levels == pytest.approx(range(levels[0], levels[0] + 50), abs=2)
    times = [frame.time_s for frame in frames]
    assert times[-1] - times[0] >= 4.85
    assert times[19] - times[0] >= 1.85  # within one segment too


def test_a_playlist_with_an_end_is_a_film():
    with WebCamera(Playlist(1, ended=True)) as camera, open_source(f"{camera.address}/film.m3u8") as source:
        assert not source.live
        assert [len(list(source)) for _ in range(2)] == [30, 30]


# ---- films on web servers
@pytest.mark.parametrize(
    ("suffix", "codec", "options"),
    [
        ("mp4", "libx264", {}),
        ("mp4", "libx264", {"movflags": "frag_keyframe+empty_moov"}),
        ("h264", "libx264", {}),
        ("mjpeg", "mjpeg", {}),
        ("ts", "mpeg2video", {}),
    ],
    ids=["index at the end", "in fragments", "no container", "JPEG files", "transport stream"],
)
def test_a_film_on_a_web_server_without_ranges(suffix, codec, options, tmp_path):
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    data = encoded([noise(i, (240, 320)) for i in range(20)], suffix, codec, options=options, pix_fmt=pix_fmt)
    with (
        WebCamera(lambda request: send(request, data, "application/octet-stream")) as camera,
        open_source(f"{camera.address}/film.{suffix}") as source,
    ):
        assert not source.live
        assert [len(list(source)) for _ in range(2)] == [20, 20]


# ---- refusals and proxies
@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_path_is_refused(status):
    with (
        WebCamera(lambda request: send(request, b"", "text/plain", status)) as camera,
        pytest.raises(SourceRefused, match=str(status)),
    ):
        open_source(f"{camera.address.replace('://', '://me:secret@')}/video")


@pytest.mark.parametrize("interface", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("path", ["film.ts", "film.m3u8", "snapshot.jpg"])
def test_this_machine_is_never_asked_by_way_of_a_proxy(path, interface, monkeypatch, closed_port):
    if ":" in interface and not has_ipv6():
        pytest.skip("no IPv6 on this machine")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    playlist, data = Playlist(1, ended=True), encoded([grey(i) for i in range(10)])

    def answer(request):
        if request.path == "/film.ts":
            send(request, data, "video/mp2t")
        elif request.path == "/snapshot.jpg":
            send(request, picture(9), "image/jpeg")
        else:
            playlist(request)

    with WebCamera(answer, interface) as camera, open_source(f"{camera.address}/{path}") as source:
        assert next(iter(source)).rgb.shape == (48, 64, 3)
