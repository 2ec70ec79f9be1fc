"""The fleet's configuration: frozen records, read from a YAML file in which every mistake is reported with its line.

Values under `defaults` hold for each camera that does not set its own. No server is contacted here, so a file can be
checked before anything runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clients.fleet.config_parts import (
    read_classes,
    read_model,
    read_motion,
    read_threshold,
    read_track,
    read_zone,
    read_zoom,
)
from clients.fleet.yaml_lines import ConfigError, Entry, load
from clients.fleet.zones import Zone
from clients.fleet.zoom import Zoom
from clients.outputs.files import SUFFIXES
from clients.transport import DEFAULT_TIMEOUT_S, Server
from clients.video.motion import Motion
from clients.video.sources import is_address
from ensemble.spec import DEFAULT_THRESHOLD, MASK_FORMATS
from ensemble.video.variant import (
    DEFAULT_DETECT_EVERY,
    DEFAULT_OBJECTS,
    MAX_DETECT_EVERY,
    MAX_OBJECTS,
    is_video_name,
)

CAMERA_KEYS = {
    "threshold",
    "resolution",
    "model",
    "fps",
    "least_fps",
    "weight",
    "deadline_ms",
    "in_flight",
    "masks",
    "realtime",
    "loop",
    "raw",
    "transport",
    "output",
    "track",
    "detect_every",
    "max_objects",
    "zones",
    "zoom",
    "motion",
    "webhook",
}
LONGEST_SILENCE_S = 30.0
"""Of a camera with `track: masks`: a server forgets a session after a minute without a frame."""
FILE_KEYS = {"servers", "protocol", "ca", "timeout_s", "in_flight", "defaults", "cameras"}


@dataclass(frozen=True, slots=True)
class CameraConfig:
    """One camera. `thresholds` are by class; `model` is the front model (None: the server's only one); `fps` the most
    frames per second (None: all of them), `least_fps` the floor that it gets before others get more than theirs,
    and `weight` its share of the rest where the servers cannot answer all; `deadline_s` seconds from capture to
    answer (infinite: none); `in_flight` the most frames under way at once. `realtime` plays a file at its own
    speed, `loop` again and again; `raw` sends pixels instead of JPEG; `transport` is what RTSP is asked for (None:
    TCP, else UDP). `outputs` are files, written as their suffixes say; `track` gives objects ids, and so do
    `zones`: "boxes" matches boxes from frame to frame, with "masks" the server's tracker follows at most
    `max_objects` objects at a time, and its detector looks at each `detect_every`-th frame. `zoom` looks at small
    objects again at a higher resolution; `motion` says which frames are not sent since nothing moved (None: all are
    sent); `webhook` is the address to which events are posted. Raises ValueError for what does not go together.
    """

    name: str
    source: str = field(repr=False)  # holds passwords, as `webhook` may
    classes: tuple[str, ...]
    thresholds: tuple[float, ...]
    model: str | None = None
    fps: float | None = None
    least_fps: float = 0.0
    weight: float = 1.0
    deadline_s: float = math.inf
    in_flight: int = 2
    masks: str = "none"
    realtime: bool = False
    loop: bool = False
    raw: bool = False
    transport: str | None = None
    outputs: tuple[Path, ...] = ()
    track: str | None = None
    detect_every: int = DEFAULT_DETECT_EVERY
    max_objects: int = DEFAULT_OBJECTS
    zones: tuple[Zone, ...] = ()
    zoom: Zoom | None = None
    motion: Motion | None = None
    webhook: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.fps is not None and self.least_fps > self.fps:
            raise ValueError(
                f"expected a floor (least_fps) of at most fps {self.fps:g}, got {self.least_fps:g}; write less, or a"
                " higher fps"
            )
        if self.track != "masks":
            if self.model and is_video_name(self.model):
                raise ValueError(f"{self.model} follows objects; write `track: masks`, or a model of pictures")
            return
        if self.model and not is_video_name(self.model):
            raise ValueError(
                f"`track: masks` needs a video front model such as sam3_video_r672, got {self.model}; write"
                " `resolution` in place of `model`, or neither"
            )
        if self.in_flight != 1:
            raise ValueError(
                "with `track: masks` frames go in order, so there is one under way at a time; got in_flight"
                f" {self.in_flight}, write 1"
            )
        if self.zoom is not None:
            raise ValueError(
                "with `track: masks` the tracker looks at whole frames, so there is no zoom; leave `zoom` out, and give"
                " the camera a higher `resolution`"
            )
        if self.motion is not None and self.motion.refresh_s > LONGEST_SILENCE_S:
            raise ValueError(
                "with `track: masks` the server forgets its objects after a minute without a frame; expected a"
                f" `refresh_s` of `motion` of at most {LONGEST_SILENCE_S:g}, got {self.motion.refresh_s:g}; write less"
            )

    @property
    def threshold(self) -> float:
        """The lowest of the thresholds: the one that is sent to the server."""
        return min(self.thresholds)


@dataclass(frozen=True, slots=True)
class FleetConfig:
    """All cameras and the servers that they share. `in_flight` is the most frames that one server has at once,
    `timeout_s` the longest wait for an answer in seconds, `ca` the certificates of who signed those of servers that are
    spoken to over TLS."""

    cameras: tuple[CameraConfig, ...]
    servers: tuple[str, ...] = ("localhost",)
    protocol: str = "grpc"
    timeout_s: float = DEFAULT_TIMEOUT_S
    in_flight: int = 32
    ca: Path | None = None


def read_config(path: Path | str) -> FleetConfig:
    """Reads a YAML file, in which relative paths count from the file's folder. Raises ConfigError, whose message begins
    with `file:line:`."""
    file = load(path)
    top = file.mapping(FILE_KEYS, ("cameras",))
    protocol = top["protocol"].choice("grpc", "http") if "protocol" in top else "grpc"
    servers, ca = ["localhost"], None
    if "ca" in top:
        ca = Path(path).parent / top["ca"].text("a file of certificates")
        if "servers" not in top:
            top["ca"].fail("it beside `servers`, such as [grpcs://host]")
    if "servers" in top:
        given = top["servers"]
        entries = given.items("a list of host:port") if isinstance(given.value, list) else [given]
        servers = [_server(entry, protocol, ca) for entry in entries]
    defaults = top["defaults"].mapping(CAMERA_KEYS) if "defaults" in top else {}
    cameras: list[CameraConfig] = []
    lines: dict[str, int] = {}
    for entry in top["cameras"].items("a list of cameras, each with name, source and classes"):
        own = entry.mapping(CAMERA_KEYS | {"name", "source", "classes"}, ("name", "source", "classes"))
        # `model` and `resolution` both choose the front model: a camera that sets one of them inherits neither
        skipped = {"model", "resolution"} if {"model", "resolution"} & set(own) else set()
        inherited = {key: value for key, value in defaults.items() if key not in skipped}
        camera = _camera(inherited | own, Path(path).parent)
        if camera.track != "masks" and (unused := {"detect_every", "max_objects"} & set(own)):
            key = own[min(unused)]
            raise ConfigError(f"{key.file}:{key.line}: {key.what}: only with `track: masks`; write that too")
        if camera.name in lines:
            raise ConfigError(
                f"{own['name'].file}:{own['name'].line}: the name {camera.name!r} is on line {lines[camera.name]}"
                " already"
            )
        lines[camera.name] = own["name"].line
        if shared := [str(p) for c in cameras for p in c.outputs if p in camera.outputs and p.suffix != ".jsonl"]:
            raise ConfigError(
                f"{entry.file}:{entry.line}: {camera.name!r} would write the same {shared[0]} as another camera, which"
                " only works for .jsonl; put {name} into the file's name"
            )
        cameras.append(camera)
    timeout, flight = top.get("timeout_s"), top.get("in_flight")
    return FleetConfig(
        cameras=tuple(cameras),
        servers=tuple(dict.fromkeys(servers)),
        protocol=protocol,
        timeout_s=timeout.number(0.1, 3600, "seconds from 0.1 to 3600") if timeout else DEFAULT_TIMEOUT_S,
        in_flight=flight.whole(1, 1024, "a whole number from 1 to 1024") if flight else 32,
        ca=ca,
    )


def _camera(given: dict[str, Entry], home: Path) -> CameraConfig:
    threshold = DEFAULT_THRESHOLD
    if "threshold" in given:
        threshold = read_threshold(given["threshold"])
    classes, thresholds = read_classes(given["classes"], threshold)
    source = given["source"].text("a file, a folder, or an address such as rtsp://...")
    if not is_address(source):
        source = str(home / source)
    options: dict[str, Any] = {}
    if "fps" in given:
        options["fps"] = given["fps"].number(0.01, 1000, "frames per second from 0.01 to 1000")
    if "least_fps" in given:
        options["least_fps"] = given["least_fps"].number(0, 1000, "frames per second from 0 (no floor) to 1000")
    if "weight" in given:
        options["weight"] = given["weight"].number(0.01, 100, "a weight from 0.01 to 100")
    if "deadline_ms" in given:
        options["deadline_s"] = given["deadline_ms"].number(1, 3.6e6, "milliseconds from 1 to 3600000") / 1e3
    if "in_flight" in given:
        options["in_flight"] = given["in_flight"].whole(1, 64, "a whole number from 1 to 64")
    if "masks" in given:
        options["masks"] = given["masks"].choice(*MASK_FORMATS)
    if "transport" in given:
        options["transport"] = given["transport"].choice("tcp", "udp")
    if "track" in given:
        options["track"] = read_track(given["track"])
    if options.get("track") == "masks":
        options = {"in_flight": 1, "masks": "bits"} | options
    if "detect_every" in given:
        options["detect_every"] = given["detect_every"].whole(
            1, MAX_DETECT_EVERY, f"frames from 1 to {MAX_DETECT_EVERY}"
        )
    if "max_objects" in given:
        options["max_objects"] = given["max_objects"].whole(1, MAX_OBJECTS, f"objects from 1 to {MAX_OBJECTS}")
    for key in ("realtime", "loop", "raw"):
        if key in given:
            options[key] = given[key].flag()
    if "zones" in given:
        options["zones"] = tuple(
            read_zone(entry, classes) for entry in given["zones"].items("a list of zones, each with name and polygon")
        )
    if "webhook" in given:
        options["webhook"] = given["webhook"].text("an address such as http://host/events")
        if not options["webhook"].startswith(("http://", "https://")):
            given["webhook"].fail("an address such as http://host/events")
    if "zoom" in given:
        options["zoom"] = read_zoom(given["zoom"], classes)
    if "motion" in given:
        options["motion"] = read_motion(given["motion"])
    if "output" in given:
        entry = given["output"]
        paths = entry.items("a list of files") if isinstance(entry.value, list) else [entry]
        options["outputs"] = tuple(_output(path, given["name"].text(), home) for path in paths)
    name, model = given["name"].text("a name"), read_model(given, options.get("track") == "masks")
    said = given.get("track", given.get("model", given["name"]))
    if options.get("least_fps", 0.0) > options.get("fps", math.inf):
        said = max(given["least_fps"], given["fps"], key=lambda entry: entry.line)  # the other may be a default
    camera: CameraConfig = said.check(lambda: CameraConfig(name, source, classes, thresholds, model, **options))
    return camera


def _server(entry: Entry, protocol: str, ca: Path | None) -> str:
    """`host:port`, with its scheme where one is written."""
    url = entry.text("host:port")
    server: Server = entry.check(lambda: Server(url, protocol, ca=ca))
    return server.full_address if "://" in url else server.address


def _output(entry: Entry, name: str, home: Path) -> Path:
    """`{name}` is replaced by the camera's name, so that one default serves all cameras."""
    path = home / entry.text("a file").replace("{name}", name.replace("/", "_").replace(" ", "-"))
    if path.suffix not in SUFFIXES:
        entry.fail(f"a file that ends in {', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}")
    return path
