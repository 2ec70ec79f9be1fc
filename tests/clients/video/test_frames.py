"""Sources: videos that are encoded here, images, and files that are neither."""

import numpy as np
import pytest
from PIL import Image

from clients.video.encode import VideoWriter, to_jpeg
from clients.video.frames import SourceError
from clients.video.sources import is_address, open_source


def test_video(film):
    with open_source(film) as source:
        assert (source.fps, source.count) == (12.0, 6)
        frames = list(source)
        again = [frame.index for frame in source]  # each iteration starts over
    assert [f.index for f in frames] == again == list(range(6))
    assert [f.time_s for f in frames] == pytest.approx([i / 12 for i in range(6)], abs=1e-3)
    for i, frame in enumerate(frames):
        assert frame.rgb.shape == (64, 96, 3)
        assert frame.rgb.dtype == np.uint8
        assert abs(int(frame.rgb.mean()) - 30 * i) <= 2


def test_unwanted_frames_are_skipped(film):
    with open_source(film) as source:
        assert [f.index for f in source.read(lambda time_s: round(time_s * 12) % 3 == 0)] == [0, 3]


def test_a_video_recorded_sideways_is_rotated(tmp_path):
    path = tmp_path / "phone.mp4"
    picture = np.zeros((64, 96, 3), np.uint8)
    picture[:, :48] = 255  # left half white
    with VideoWriter(path, 10) as writer:
        writer.write(picture)
    one, turned = (1 << 16).to_bytes(4, "big"), (-(1 << 16)).to_bytes(4, "big", signed=True)
    zero, last = bytes(4), (1 << 30).to_bytes(4, "big")
    data = path.read_bytes()
    upright = one + zero * 3 + one + zero * 3 + last  # the 3x3 matrix of the track header
    head = data.index(b"tkhd")
    at = data.index(upright, head)
    path.write_bytes(
        data[:at] + zero + one + zero + turned + zero * 4 + last + data[at + 36 :]
    )  # turn clockwise by 90 degrees
    with open_source(path) as source:
        (frame,) = source
    assert frame.rgb.shape == (96, 64, 3)
    assert frame.rgb[:40].mean() > 240
    assert frame.rgb[56:].mean() < 15


def test_a_folder_in_alphabetical_order(tmp_path):
    for name, grey in [("b.png", 20), ("a.jpg", 10), ("c.webp", 30)]:
        Image.new("RGB", (32, 24), (grey,) * 3).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    with open_source(tmp_path) as source:
        assert source.count == 3
        assert [int(frame.rgb.mean().round(-1)) for frame in source] == [10, 20, 30]


def test_an_image_is_rotated_as_its_exif_says(tmp_path):
    image = Image.new("RGB", (32, 24))
    exif = image.getexif()
    exif[0x0112] = 6  # orientation: turn clockwise
    image.save(tmp_path / "a.jpg", exif=exif)
    with open_source(tmp_path / "a.jpg") as source:
        (frame,) = source
    assert frame.rgb.shape == (32, 24, 3)


@pytest.mark.parametrize(
    ("source", "address"),
    [
        ("rtsp://10.0.0.7/stream", True),
        ("http://host/film.mp4", True),
        ("webcam:0", True),
        ("films/street.mp4", False),
        ("photos/", False),
    ],
)
def test_addresses(source, address):
    assert is_address(source) is address


def _text(path):
    path.write_text("hello")
    return path


def _cut(path):
    path.write_bytes(to_jpeg(np.zeros((64, 64, 3), np.uint8))[:300])
    return path


REFUSED = {
    "missing": (lambda tmp: tmp / "none.mp4", "no file"),
    "text called video": (lambda tmp: _text(tmp / "a.mp4"), "not a video"),
    "text called image": (lambda tmp: _text(tmp / "a.png"), "not an image"),
    "half a JPEG": (lambda tmp: _cut(tmp / "a.jpg"), "not an image"),
    "empty folder": (lambda tmp: tmp, "no images"),
    "nothing listens": (lambda tmp: "tcp://127.0.0.1:9", "not a video"),
    "no webcam": (lambda tmp: "webcam:63", "there is no webcam /dev/video63; this machine has"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unusable_sources_are_refused(case, tmp_path):
    make, says = REFUSED[case]
    with pytest.raises(SourceError, match=says), open_source(make(tmp_path)) as source:
        list(source)


def test_messages_contain_no_passwords(closed_port):
    with pytest.raises(SourceError) as error:
        open_source(f"rtsp://admin:secret@127.0.0.1:{closed_port}/1")
    assert "secret" not in str(error.value)
    assert f"rtsp://127.0.0.1:{closed_port}/1" in str(error.value)


def test_a_damaged_video_yields_its_good_frames_first(tmp_path):
    path = tmp_path / "long.mp4"
    rng = np.random.default_rng(0)
    with VideoWriter(path, 10) as writer:
        for _ in range(12):
            writer.write(rng.integers(0, 255, (64, 96, 3), np.uint8))
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat") + 4
    middle = start + (len(data) - start) // 2
    data[middle : middle + 4000] = bytes(4000)
    path.write_bytes(data)
    good, complaint = [], None
    try:
        with open_source(path) as source:
            good.extend(frame.index for frame in source)
    except SourceError as error:
        complaint = str(error)
    assert good
    assert complaint is None or f"after {len(good)} frames" in complaint


def test_a_video_has_one_frame_size(tmp_path):
    with VideoWriter(tmp_path / "a.mp4", 10) as writer:
        writer.write(np.zeros((65, 97, 3), np.uint8))  # the odd row and column are dropped
        with pytest.raises(ValueError, match="expected 96x64, got 64x64"):
            writer.write(np.zeros((64, 64, 3), np.uint8))
