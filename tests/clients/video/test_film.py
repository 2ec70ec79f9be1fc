"""Video files: every container, clocks of their own, damage, covers, and what is no film at all."""

import re
import struct

import numpy as np
import pytest

from clients.video.encode import to_jpeg
from clients.video.frames import SourceError
from clients.video.sources import open_source
from tests.clients.video.films import encoded, grey, noise


def read(path):
    """The frames of a file, and what was skipped of it."""
    with open_source(path) as source:
        return list(source), source.skipped


def written(tmp_path, data, name):
    path = tmp_path / name
    path.write_bytes(data)
    return path


KINDS = {
    "H.264 without a container": ("h264", "libx264", "yuv420p"),
    "H.265 without a container": ("hevc", "libx265", "yuv420p"),
    "JPEG files in a row": ("mjpeg", "mjpeg", "yuvj422p"),
    "4:4:4": ("matroska", "libx264", "yuv444p"),
    "10 bits": ("mp4", "libx264", "yuv420p10le"),
    "16 bits of grey": ("avi", "ffv1", "gray16le"),
    "grey": ("mp4", "libx264", "gray"),
    "a palette": ("gif", "gif", "rgb8"),
    "uncompressed": ("avi", "rawvideo", "bgr24"),
    "Flash": ("flv", "flv1", "yuv420p"),
    "WebM": ("webm", "libvpx", "yuv420p"),
    "program stream": ("mpg", "mpeg2video", "yuv420p"),
    "transport stream": ("ts", "libx264", "yuv422p"),
    "Windows Media": ("asf", "wmv2", "yuv420p"),
    "mobile phone": ("3gp", "mpeg4", "yuv420p"),
}


@pytest.mark.parametrize("case", KINDS)
def test_every_container_gives_all_frames_twice(case, tmp_path):
    suffix, codec, pix_fmt = KINDS[case]
    options = {"movflags": "empty_moov"} if suffix == "3gp" else {}
    data = encoded([grey(8 * i) for i in range(20)], suffix, codec, pix_fmt=pix_fmt, options=options)
    with open_source(written(tmp_path, data, f"film.{suffix}")) as source:
        frames = list(source)
        again = [frame.time_s for frame in source]
    assert len(frames) == 20
    assert [abs(int(f.rgb.mean()) - 8 * i) < 20 for i, f in enumerate(frames)] == [True] * 20
    times = [frame.time_s for frame in frames]
    assert times[0] == 0
    assert times == sorted(times) == again
    assert source.skipped.count == 0


CLOCKS = {
    "begins at two hours": [{"start_s": 7200}],
    "jumps ahead": [{}, {"start_s": 3002}],
    "jumps back": [{"start_s": 3000}, {"start_s": 2}],
    "jumps ahead and comes back": [{}, {"start_s": 3000}, {"start_s": 4}],
    "two recordings": [{}, {}],
    "33 bits are full": [{"start_s": 2**33 / 90_000 - 1}, {"start_s": 1}],
    "B-frames": [{"codec": "libx264", "b_frames": 3}],
}


@pytest.mark.parametrize("suffix", ["ts", "mpg"])
@pytest.mark.parametrize("case", CLOCKS)
def test_a_films_own_clock_keeps_seconds(case, suffix, tmp_path):
    """Pieces of two seconds, joined."""
    pieces = CLOCKS[case]
    data = b"".join(encoded([grey(i) for i in range(20)], suffix, **piece) for piece in pieces)
    times = [frame.time_s for frame in read(written(tmp_path, data, f"film.{suffix}"))[0]]
    assert len(times) == 20 * len(pieces)
    assert times[0] == 0
    assert times == sorted(times)
    assert times[-1] == pytest.approx(2 * len(pieces) - 0.1, abs=0.2)


@pytest.mark.parametrize(
    ("fps", "times", "expected_fps"),
    [
        (90_000, [i / 10 for i in range(10)], 10),
        (10, [0, 0.05, 0.5, 0.6, 0.7, 1.5, 2.0], None),
    ],
    ids=["90,000 a second", "uneven"],
)
def test_times_count_and_not_the_rate(fps, times, expected_fps, tmp_path):
    data = encoded([grey(i) for i in range(len(times))], "matroska", "libx264", fps=fps, times=times)
    with open_source(written(tmp_path, data, "film.mkv")) as source:
        assert [frame.time_s for frame in source] == pytest.approx(times, abs=2e-3)
        assert 1 <= source.fps <= 100
        assert expected_fps is None or source.fps == pytest.approx(expected_fps, rel=0.2)


# ---- damage
def holed(data, codec):
    """An AVI with frame 20 blanked, others with 4 kB of 255 in the middle."""
    data = bytearray(data)
    if codec == "mjpeg":
        chunks = [found.start() for found in re.finditer(b"00dc", data)]
        a, b = chunks[20] + 8, chunks[21]
        data[a:b] = bytes(b - a)
    else:
        middle = len(data) // 2
        data[middle : middle + 4000] = b"\xff" * 4000
    return bytes(data)


@pytest.mark.parametrize(
    ("suffix", "codec"),
    [("avi", "mjpeg"), ("mp4", "libx264"), ("ts", "mpeg2video"), ("ts", "libx264"), ("matroska", "libx264")],
)
def test_a_film_goes_on_behind_damage(suffix, codec, tmp_path):
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    data = encoded([noise(i) for i in range(60)], suffix, codec, pix_fmt=pix_fmt)
    frames, skipped = read(written(tmp_path, holed(data, codec), f"film.{suffix}"))
    times = [frame.time_s for frame in frames]
    assert 45 <= len(frames) < 60
    assert times == sorted(times)
    assert times[-1] > 5.5
    assert skipped.count > 0
    assert f"film.{suffix}' after " in next(iter(skipped.why))


def test_a_transport_stream_that_begins_in_the_middle(tmp_path):
    data = encoded([noise(i) for i in range(60)], "ts", "libx264", gop=25)
    frames, _ = read(written(tmp_path, data[188 * 200 :], "film.ts"))
    assert len(frames) >= 30
    assert frames[0].time_s == 0


def test_the_size_changes(tmp_path):
    data = encoded([grey(9)] * 10) + encoded([grey(9, (96, 128))] * 10, start_s=1)
    frames, _ = read(written(tmp_path, data, "film.ts"))
    assert {frame.rgb.shape for frame in frames} == {(48, 64, 3), (96, 128, 3)}


def test_the_pixels_change(tmp_path):
    data = encoded([grey(9)] * 10, codec="libx264") + encoded(
        [grey(9)] * 10, codec="libx264", pix_fmt="yuv444p", start_s=1
    )
    frames, _ = read(written(tmp_path, data, "film.ts"))
    assert len(frames) == 20


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "ts"])
def test_a_title_in_an_unknown_encoding(suffix, tmp_path):
    data = encoded([grey(9)] * 5, suffix, "libx264", title="Garten in Koeln")
    latin = data.replace(b"Koeln", "Kööln".encode("latin-1"))
    assert latin != data
    frames, skipped = read(written(tmp_path, latin, f"film.{suffix}"))
    assert (len(frames), skipped.count) == (5, 0)


# ---- which of the streams
def box(kind, data):
    return struct.pack(">I", 8 + len(data)) + kind + data


def with_cover(film):
    """An MP4 with artwork before its tracks, as taggers write it."""
    head = box(b"hdlr", bytes(8) + b"mdirappl" + bytes(9))
    cover = box(b"data", struct.pack(">II", 13, 0) + to_jpeg(grey(200, (100, 100))))
    artwork = box(b"udta", box(b"meta", bytes(4) + head + box(b"ilst", box(b"covr", cover))))
    at, first = film.index(b"moov") - 4, film.index(b"mvhd") - 4
    (size,), (length,) = struct.unpack(">I", film[at : at + 4]), struct.unpack(">I", film[first : first + 4])
    moov = film[first : first + length] + artwork + film[first + length : at + size]
    return film[:at] + box(b"moov", moov) + film[at + size :]


def test_a_cover_is_not_the_film(tmp_path):
    data = with_cover(encoded([grey(5 * i) for i in range(30)], "mp4", "libx264"))
    frames, _ = read(written(tmp_path, data, "film.mp4"))
    assert {frame.rgb.shape for frame in frames} == {(48, 64, 3)}
    assert len(frames) == 30


def test_sound_beside_the_film_is_left_unread(tmp_path):
    frames, skipped = read(written(tmp_path, encoded([grey(i) for i in range(20)], audio=True), "film.ts"))
    assert (len(frames), skipped.count) == (20, 0)


# ---- no film
def sound(cover=b""):
    """An MP3 file, with a cover if one is given."""
    import io

    import av

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp3") as out:
        track = out.add_stream("libmp3lame", rate=44100)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 44100), np.float32), "fltp", "mono")
        frame.sample_rate = 44100
        out.mux(track.encode(frame))
        out.mux(track.encode(None))
    if not cover:
        return buffer.getvalue()
    body = b"\0image/jpeg\0\3\0" + cover
    tag = b"APIC" + struct.pack(">I", len(body)) + b"\0\0" + body
    size = len(tag)
    sizes = bytes([size >> 21 & 127, size >> 14 & 127, size >> 7 & 127, size & 127])
    return b"ID3\3\0\0" + sizes + tag + buffer.getvalue()[buffer.getvalue().index(b"\xff") :]


def film():
    return encoded([noise(i) for i in range(10)], "mp4", "libx264")


def blank(film):
    """An MP4 whose packets are all 255."""
    start, end = film.index(b"mdat") + 4, film.index(b"moov") - 4
    return film[:start] + b"\xff" * (end - start) + film[end:]


NONE = {
    "empty": (lambda: b"", "is an empty file"),
    "zeros": (lambda: bytes(5000), "not a video"),
    "a recording that was never finished": (lambda: film()[:-600], "cut short, or its recording is not finished"),
    "only sound": (sound, r"has no video \(it has audio\)"),
    "sound with a cover": (lambda: sound(to_jpeg(grey(9))), r"no video, only a cover picture \(it has audio\)"),
    "nothing decodable": (
        lambda: blank(film()),
        "holds no frame that can be decoded: .*film.mp4' after 0 frames",
    ),
}


@pytest.mark.parametrize("case", NONE)
def test_what_is_no_film_is_told_in_a_sentence(case, tmp_path):
    make, says = NONE[case]
    with pytest.raises(SourceError, match=says):
        read(written(tmp_path, make(), "film.mp4"))


def test_a_picture_that_is_called_a_film(tmp_path):
    frames, _ = read(written(tmp_path, to_jpeg(grey(90)), "film.mp4"))
    assert [frame.rgb.shape for frame in frames] == [(48, 64, 3)]


def test_a_file_may_be_an_address(tmp_path):
    path = written(tmp_path, encoded([grey(9)] * 5), "a film.ts")
    assert len(read(path.as_uri())[0]) == 5
    with pytest.raises(SourceError, match="there is no file"):
        read((tmp_path / "none.ts").as_uri())
