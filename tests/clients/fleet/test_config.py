"""The fleet's YAML: its meaning, and that every mistake is reported with its line."""

import math
from pathlib import Path

import pytest

from clients import camera
from clients.fleet.camera import Camera
from clients.fleet.config import read_config
from clients.fleet.yaml_lines import ConfigError
from clients.fleet.zones import Zone
from clients.fleet.zoom import Zoom
from clients.video.motion import Motion

GOOD = """\
servers: [gpu-1, gpu-2:9001]
in_flight: 16
defaults:
  threshold: 0.4
  fps: 5
  resolution: 672
  output: "out/{name}.jsonl"
cameras:
  - name: entrance
    source: rtsp://10.0.0.7/stream
    classes: [person, backpack]
    deadline_ms: 800
    in_flight: 1
  - name: yard
    source: films/yard.mp4
    classes:
      forklift: 0.7
      pallet:
    model: sam3_r1008
    masks: rle
    realtime: true
    output: [a.jsonl, b.mp4]
    zones:
      - name: gate
        polygon: [[0, 0], [1, 0], [0.5, 1]]
        seconds: 5
        classes: [pallet]
    zoom:
      resolution: 1008
      crops: 2
"""


@pytest.fixture
def write(tmp_path):
    def make(text):
        path = tmp_path / "cameras.yaml"
        path.write_text(text)
        return path

    return make


def test_meaning(write, tmp_path):
    config = read_config(write(GOOD))
    assert (config.servers, config.in_flight, config.protocol) == (("gpu-1:8001", "gpu-2:9001"), 16, "grpc")
    entrance, yard = config.cameras
    assert (entrance.source, entrance.classes, entrance.thresholds) == (
        "rtsp://10.0.0.7/stream",
        ("person", "backpack"),
        (0.4, 0.4),
    )
    assert (entrance.model, entrance.fps, entrance.deadline_s, entrance.in_flight) == ("sam3_r672", 5, 0.8, 1)
    assert entrance.outputs == (tmp_path / "out" / "entrance.jsonl",)
    assert (yard.source, yard.model) == (str(tmp_path / "films" / "yard.mp4"), "sam3_r1008")
    assert (yard.classes, yard.thresholds, yard.threshold) == (("forklift", "pallet"), (0.7, 0.4), 0.4)
    assert (yard.deadline_s, yard.masks, yard.realtime) == (math.inf, "rle", True)
    assert yard.zones == (Zone("gate", ((0, 0), (1, 0), (0.5, 1)), 5, ("pallet",)),)
    assert yard.zoom == Zoom("sam3_r1008", crops=2)
    assert yard.outputs == (tmp_path / "a.jsonl", tmp_path / "b.mp4")


def change(old, new):
    assert old in GOOD
    return GOOD.replace(old, new)


MISTAKES = {
    # mistake: (the file, the line, the message)
    "empty": ("", 1, "the file is empty"),
    "no YAML": ("cameras: [\n", 2, "not YAML"),
    "a list": ("- a\n", 1, "expected a mapping with ca, cameras"),
    "no cameras": ("servers: [a]\n", 1, "'cameras' is missing"),
    "cameras is empty": ("cameras: []\n", 1, "expected a list of cameras"),
    "unknown key": (change("deadline_ms: 800", "deadlin_ms: 800"), 12, "did you mean 'deadline_ms'?"),
    "key twice": (
        change("    in_flight: 1\n", "    in_flight: 1\n    in_flight: 2\n"),
        14,
        "duplicate key 'in_flight'; it is on line 13 already",
    ),
    "no source": (change("    source: rtsp://10.0.0.7/stream\n", ""), 9, "'source' is missing"),
    "name twice": (change("name: yard", "name: entrance"), 14, "'entrance' is on line 9 already"),
    "threshold": (change("forklift: 0.7", "forklift: 7"), 17, "expected a score from 0 to 1, got 7"),
    "threshold is a word": (change("threshold: 0.4", "threshold: high"), 4, "got 'high'"),
    "resolution": (change("resolution: 672", "resolution: 1000"), 6, "nearest: 994, 1008"),
    "fps": (change("fps: 5", "fps: 0"), 5, "expected frames per second"),
    "negative fps": (change("fps: 5", "fps: -1"), 5, "expected frames per second from 0.01 to 1000, got -1"),
    "negative floor": (change("fps: 5", "least_fps: -2"), 5, "expected frames per second from 0 (no floor) to 1000"),
    "a floor that is no number": (change("fps: 5", "least_fps: .nan"), 5, "got nan"),
    "floor above the target": (
        change("fps: 5", "fps: 5\n  least_fps: 6"),
        6,
        "floor (least_fps) of at most fps 5, got 6",
    ),
    "floor above the usual target": (
        change("realtime: true", "least_fps: 6"),
        21,
        "of at most fps 5, got 6; write less",
    ),
    "target below the usual floor": (
        change("fps: 5", "least_fps: 4").replace("realtime: true", "fps: 3"),
        21,
        "of at most fps 3, got 4",
    ),
    "weight 0": (change("realtime: true", "weight: 0"), 21, "expected a weight from 0.01 to 100, got 0"),
    "a weight that is no number": (change("realtime: true", "weight: .nan"), 21, "from 0.01 to 100, got nan"),
    "infinite weight": (change("realtime: true", "weight: .inf"), 21, "from 0.01 to 100, got inf"),
    "a word as weight": (change("realtime: true", "weight: high"), 21, "from 0.01 to 100, got 'high'"),
    "in_flight": (change("in_flight: 1\n", "in_flight: yes\n"), 13, "expected a whole number from 1 to 64, got True"),
    "masks": (change("masks: rle", "masks: png"), 20, "expected one of none, bits, rle, got 'png'"),
    "flag": (change("realtime: true", "realtime: 1"), 21, "expected true or false"),
    "classes is text": (change("[person, backpack]", "person"), 11, "expected a list of class names"),
    "class twice": (change("[person, backpack]", "[person, person]"), 11, "expected class names that differ"),
    "output": (change("b.mp4", "b.gif"), 22, "ends in .mp4, .png, .jpg, .jsonl or .json"),
    "corner": (change("[1, 0]", "[1]"), 25, "expected a corner [x, y], got a list"),
    "corner outside": (change("[1, 0]", "[640, 0]"), 25, "expected a fraction of the frame from 0 to 1, got 640"),
    "two corners": (change("[1, 0], ", ""), 25, "expected at least three corners, got 2"),
    "zone of another class": (change("[pallet]", "[dog]"), 27, "expected one of forklift, pallet, got 'dog'"),
    "zoom to where": (change("      resolution: 1008\n", ""), 28, "of the second pass is missing"),
    "transport": (change("    realtime: true", "    transport: sctp"), 21, "expected one of tcp, udp"),
    "webhook": (change("    realtime: true", "    webhook: localhost"), 21, "expected an address such as http://"),
    "two cameras in one film": (
        change("{name}.jsonl", "b.mp4").replace("[a.jsonl, b.mp4]", "out/b.mp4"),
        14,
        "put {name} into",
    ),
    "crops": (change("crops: 2", "crops: 0"), 30, "expected a whole number from 1 to 64"),
    "track": (change("realtime: true", "track: mask"), 21, "expected true, false, boxes or masks, got 'mask'"),
    "masks of a picture model": (
        change("realtime: true", "track: masks"),
        21,
        "needs a video front model such as sam3_video_r672, got sam3_r1008; write `resolution` in place of `model`",
    ),
    "masks and zoom": (
        change("realtime: true", "track: masks").replace("    model: sam3_r1008\n", ""),
        20,
        "the tracker looks at whole frames, so there is no zoom; leave `zoom` out",
    ),
    "masks and in_flight": (
        change("    in_flight: 1\n", "    in_flight: 2\n    track: masks\n"),
        14,
        "frames go in order, so there is one under way at a time; got in_flight 2, write 1",
    ),
    "a video model for pictures": (
        change("model: sam3_r1008", "model: sam3_video_r1008"),
        19,
        "sam3_video_r1008 follows objects; write `track: masks`",
    ),
    "max_objects without masks": (
        change("    in_flight: 1\n", "    max_objects: 4\n"),
        13,
        "only with `track: masks`; write that too",
    ),
    "no objects": (
        change("    in_flight: 1\n", "    max_objects: 0\n    track: masks\n"),
        13,
        "expected objects from 1 to 256, got 0",
    ),
    "motion": (change("realtime: true", "motion: often"), 21, "expected true, false, or a mapping with sensitivity"),
    "sensitivity": (change("realtime: true", "motion: {sensitivity: 5}"), 21, "a sensitivity from 0 to 1, got 5"),
    "smallest": (change("realtime: true", "motion: {smallest: 0}"), 21, "a fraction of the frame's area"),
    "region outside": (
        change("realtime: true", "motion: {regions: [[[0, 0], [1.2, 0], [1, 1]]]}"),
        21,
        "expected a fraction of the frame from 0 to 1, got 1.2",
    ),
    "region with two corners": (
        change("realtime: true", "motion: {regions: [[[0, 0], [1, 0]]]}"),
        21,
        "expected at least three corners, got 2",
    ),
    "regions cover everything": (
        change("realtime: true", "motion: {regions: [[[0, 0], [1, 0], [1, 1], [0, 1]]]}"),
        21,
        "leave a part of the frame, got regions that cover all of it",
    ),
    "silence of a session": (
        change("    in_flight: 1\n", "    track: masks\n    motion: {refresh_s: 90}\n"),
        13,
        "expected a `refresh_s` of `motion` of at most 30, got 90; write less",
    ),
    "server": (change("[gpu-1,", "[ftp://gpu-1,"), 1, "another scheme than grpc, grpcs"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_reported_with_their_line(case, write):
    text, line, says = MISTAKES[case]
    path = write(text)
    with pytest.raises(ConfigError) as error:
        read_config(path)
    assert str(error.value).startswith(f"{path}:{line}: ")
    assert says in str(error.value)


def test_tracked_masks(write):
    """What a camera tracks decides which front model `resolution` means, and how many frames are under way."""
    text = change("    in_flight: 1\n", "    track: masks\n    max_objects: 4\n").replace(
        "  fps: 5", "  detect_every: 3"
    )
    entrance, yard = read_config(write(text)).cameras
    assert (entrance.model, entrance.in_flight, entrance.masks) == ("sam3_video_r672", 1, "bits")
    assert (entrance.track, entrance.detect_every, entrance.max_objects) == ("masks", 3, 4)
    assert (yard.track, yard.model, yard.in_flight) == (None, "sam3_r1008", 2)
    assert read_config(write(change("fps: 5", "track: true"))).cameras[0].track == "boxes"


def test_rates(write):
    """Target, floor and weight; a camera that says nothing has no floor and the weight of all others."""
    entrance, yard = read_config(write(change("realtime: true", "least_fps: 2\n    weight: 3"))).cameras
    assert (entrance.fps, entrance.least_fps, entrance.weight) == (5, 0, 1)
    assert (yard.fps, yard.least_fps, yard.weight) == (5, 2, 3)


def test_motion(write):
    """A mapping says more than `true`, and a camera's own replaces that of the defaults."""
    text = change("  fps: 5", "  motion: true").replace("realtime: true", "motion: {smallest: 0.01, refresh_s: 4}")
    entrance, yard = read_config(write(text)).cameras
    assert entrance.motion == Motion()
    assert yard.motion == Motion(smallest=0.01, refresh_s=4.0)
    assert read_config(write(change("realtime: true", "motion: false"))).cameras[1].motion is None
    region = change("realtime: true", "motion: {regions: [[[0, 0], [0.5, 0], [0.5, 0.5]]]}")
    assert read_config(write(region)).cameras[1].motion.regions == (((0.0, 0.0), (0.5, 0.0), (0.5, 0.5)),)


def test_no_file(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config(tmp_path / "none.yaml")


def test_the_command_reports_it(write, capsys):
    path = write(change("fps: 5", "fps: fast"))
    assert camera.main(["--config", str(path)]) == 2
    assert f"{path}:5: defaults.fps: expected frames per second" in capsys.readouterr().err


def test_config_and_source_exclude_each_other(capsys):
    with pytest.raises(SystemExit):
        camera.main(["--config", "a.yaml", "--source", "a.mp4"])
    assert "leave --source" in capsys.readouterr().err


def test_the_example_can_be_read():
    config = read_config(Path(camera.__file__).with_name("cameras.example.yaml"))
    assert len(config.cameras) >= 3


def test_the_transport_reaches_the_reader(tmp_path):
    path = tmp_path / "cameras.yaml"
    path.write_text(
        "cameras:\n  - {name: gate, source: 'rtsp://192.0.2.10/a', classes: [person], transport: udp}\n"
        "  - {name: yard, source: 'rtsp://192.0.2.10/b', classes: [person]}\n"
    )
    cameras = [Camera(config) for config in read_config(path).cameras]
    assert [camera.reader._opener.keywords["transport"] for camera in cameras] == ["udp", None]
