"""The fleet's configuration: a YAML file flows in, frozen records flow out, and every mistake is named with its line.

What stands under `defaults` holds for each camera that does not say otherwise. Nothing is looked up on a server here: a
file can be checked before anything runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from clients.fleet.config_parts import read_classes, read_model, read_threshold, read_zone, read_zoom
from clients.fleet.yaml_lines import ConfigError, Entry, load
from clients.fleet.zones import Zone
from clients.fleet.zoom import Zoom
from clients.transport import DEFAULT_TIMEOUT_S, Server
from ensemble.spec import DEFAULT_THRESHOLD, MASK_FORMATS

CAMERA_KEYS = {
    "threshold",
    "resolution",
    "model",
    "fps",
    "deadline_ms",
    "in_flight",
    "masks",
    "realtime",
    "loop",
    "output",
    "track",
    "zones",
    "zoom",
    "webhook",
}
FILE_KEYS = {"servers", "protocol", "timeout_s", "in_flight", "defaults", "cameras"}


@dataclass(frozen=True, slots=True)
class CameraConfig:
    """One camera. `thresholds` are by class; `model` is the front model (None: the server's only one); `fps` the most
    frames a second (None: all of them); `deadline_s` from capture to answer (infinite: none); `in_flight` frames under
    way at once; `realtime` plays a file at its own speed, `loop` for ever; `outputs` are files by suffix; `track` gives
    things ids, and so do `zones`; `zoom` looks at small things again; `webhook` is where events are posted.
    """

    name: str
    source: str
    classes: tuple[str, ...]
    thresholds: tuple[float, ...]
    model: str | None = None
    fps: float | None = None
    deadline_s: float = math.inf
    in_flight: int = 2
    masks: str = "none"
    realtime: bool = False
    loop: bool = False
    outputs: tuple[Path, ...] = ()
    track: bool = False
    zones: tuple[Zone, ...] = ()
    zoom: Zoom | None = None
    webhook: str | None = None

    @property
    def threshold(self) -> float:
        """The least of the thresholds: what the server is asked for."""
        return min(self.thresholds)


@dataclass(frozen=True, slots=True)
class FleetConfig:
    """All cameras and the servers that they share; `in_flight` is the most frames that one server has at once."""

    cameras: tuple[CameraConfig, ...]
    servers: tuple[str, ...] = ("localhost",)
    protocol: str = "grpc"
    timeout_s: float = DEFAULT_TIMEOUT_S
    in_flight: int = 32


def read_config(path: Path | str) -> FleetConfig:
    """Raises ConfigError, whose message begins with `file:line:`. Relative paths in the file count from its folder."""
    file = load(path)
    top = file.mapping(FILE_KEYS, ("cameras",))
    protocol = top["protocol"].choice("grpc", "http") if "protocol" in top else "grpc"
    servers = ["localhost"]
    if "servers" in top:
        entries = (
            top["servers"].items("a list of host:port") if isinstance(top["servers"].value, list) else [top["servers"]]
        )
        servers = [_server(entry, protocol) for entry in entries]
    defaults = top["defaults"].mapping(CAMERA_KEYS) if "defaults" in top else {}
    cameras: list[CameraConfig] = []
    lines: dict[str, int] = {}
    for entry in top["cameras"].items("a list of cameras, each with name, source and classes"):
        given = entry.mapping(CAMERA_KEYS | {"name", "source", "classes"}, ("name", "source", "classes"))
        # a camera that names its model means it, whatever resolution the others have, and the other way round
        inherited = {
            k: v
            for k, v in defaults.items()
            if k not in ("model", "resolution") or not {"model", "resolution"} & set(given)
        }
        camera = _camera(inherited | given, Path(path).parent)
        if camera.name in lines:
            raise ConfigError(
                f"{given['name'].file}:{given['name'].line}: the name {camera.name!r} is on line {lines[camera.name]}"
                " already"
            )
        lines[camera.name] = given["name"].line
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
    )


def _camera(given: dict[str, Entry], home: Path) -> CameraConfig:
    threshold = DEFAULT_THRESHOLD
    if "threshold" in given:
        threshold = read_threshold(given["threshold"])
    classes, thresholds = read_classes(given["classes"], threshold)
    source = given["source"].text("a file, a folder, or an address such as rtsp://...")
    options: dict[str, Any] = {}
    if "fps" in given:
        options["fps"] = given["fps"].number(0.01, 1000, "frames a second from 0.01 to 1000")
    if "deadline_ms" in given:
        options["deadline_s"] = given["deadline_ms"].number(1, 3.6e6, "milliseconds from 1 to 3600000") / 1e3
    if "in_flight" in given:
        options["in_flight"] = given["in_flight"].whole(1, 64, "a whole number from 1 to 64")
    if "masks" in given:
        options["masks"] = given["masks"].choice(*MASK_FORMATS)
    for key in ("realtime", "loop", "track"):
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
    if "output" in given:
        entry = given["output"]
        paths = entry.items("a list of files") if isinstance(entry.value, list) else [entry]
        options["outputs"] = tuple(_output(path, given["name"].text(), home) for path in paths)
    if not is_address(source):
        source = str(home / source)
    return CameraConfig(given["name"].text("a name"), source, classes, thresholds, read_model(given), **options)


def _server(entry: Entry, protocol: str) -> str:
    url = entry.text("host:port")
    return str(entry.check(lambda: Server(url, protocol).address))


def is_address(source: str) -> bool:
    return "://" in source or source.startswith("webcam:")


def _output(entry: Entry, name: str, home: Path) -> Path:
    """`{name}` becomes the camera's name, so that one default serves all."""
    path = home / entry.text("a file").replace("{name}", name.replace("/", "_").replace(" ", "-"))
    if path.suffix not in (".jsonl", ".json", ".mp4", ".png"):
        entry.fail("a file that ends in .jsonl, .json, .mp4 or .png")
    return path
