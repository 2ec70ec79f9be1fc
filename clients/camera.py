"""`sam3-camera`: detection in the frames of one camera, or with `--config` of a fleet of cameras.

One camera is a fleet of one: both go through `clients/fleet/fleet.py`. The last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clients.console import make_parser, say
from clients.conversation import Tracks
from clients.fleet.camera import Camera
from clients.fleet.config import CameraConfig, FleetConfig, read_config
from clients.fleet.fleet import open_pool, watch
from clients.fleet.request import Answer
from clients.fleet.stats import percentiles
from clients.outputs.files import SUFFIXES
from clients.outputs.outputs import Outputs
from clients.outputs.records import frame_record
from clients.redact import without_password
from clients.tls import CA_HELP, URL_HELP
from clients.transport import DEFAULT_TIMEOUT_S, Server
from clients.video.frames import IMAGE_SUFFIXES
from clients.video.reader import Reader
from clients.video.sources import is_address
from ensemble.spec import DEFAULT_THRESHOLD
from ensemble.video.variant import DEFAULT_DETECT_EVERY, DEFAULT_OBJECTS

EXAMPLES = """examples:
  sam3-camera --source video.mp4 --classes "red circle" "blue square"
  sam3-camera --source video.mp4 --classes person dog --masks --output annotated.mp4
  sam3-camera --source photos/ --classes "traffic light" --url gpu-host:8001 --output found.jsonl
  sam3-camera --source yard.mp4 --classes person --track masks --detect-every 4 --output tracks.mp4 tracks.jsonl
  sam3-camera --source photo.jpg --classes cat --protocol http --model sam3_r672 --output cat.png
  sam3-camera --config cameras.yaml --seconds 60
"""
OF_MASKS = ("detect_every", "max_objects")
"""Options that only `--track masks` has."""


class Failed(Exception):  # noqa: N818 - the name says what happened
    """The run cannot start or continue; the message is for the user."""


async def run_fleet_file(config: FleetConfig, seconds: float | None) -> dict[str, Any]:
    """Runs the cameras of a configuration; returns the summary."""
    cameras = [Camera(camera) for camera in config.cameras]
    outputs = Outputs(cameras)
    await outputs.open()
    try:
        summary = await watch(cameras, open_pool(config), outputs, asyncio.Event(), seconds=seconds)
    finally:
        written = await outputs.close()
    return summary | written


async def run_source(arguments: argparse.Namespace) -> dict[str, Any]:
    """Sends the frames of one source, one after the other, and prints a line for each; returns the summary.

    A frame that times out is counted as failed and the run continues; any other failure of a request ends it. What
    cannot be written any more is counted. Raises Failed.
    """
    config = CameraConfig(
        name=without_password(arguments.source),
        source=str(arguments.source),
        classes=tuple(arguments.classes),
        thresholds=(arguments.threshold,) * len(arguments.classes),
        model=arguments.model,
        in_flight=1,
        masks="bits" if arguments.masks or arguments.track == "masks" else "none",
        track=arguments.track,
        raw=arguments.raw,
        outputs=tuple(arguments.output),
        **given(arguments, *OF_MASKS),
    )
    server = Server(arguments.url, arguments.protocol, arguments.timeout, arguments.ca)
    pool = open_pool(FleetConfig((config,), (server.full_address,), server.protocol, server.timeout, ca=arguments.ca))
    camera = Camera(config, Reader(config.source, raw=config.raw, reconnect=False), arguments.limit)
    outputs = Outputs([camera], plain_record, append=False)
    if wrong := await outputs.open():
        raise Failed("; ".join(wrong))
    stop, latencies, errors = asyncio.Event(), [], []
    model = arguments.model

    async def handle(camera: Camera, answer: Answer) -> None:
        nonlocal model
        start = f"{answer.frame.index:6d} {answer.frame.time_s:8.2f} s"
        if answer.found is not None:
            model = answer.found.model
            latencies.append(answer.found.latency_ms)
            hidden = len(answer.found.hidden_ids) if isinstance(answer.found, Tracks) else 0
            told = answer.found.summary() + (f", {hidden} hidden" if hidden else "")
            say(f"{start} {answer.found.latency_ms:8.1f} ms  {told}")
            await outputs(camera, answer)
        elif answer.outcome == "timeout":
            say(f"{start}  failed: {answer.error}")
        else:
            errors.append(answer.error)
            stop.set()

    try:
        summary = await watch([camera], pool, handle, stop, seconds=arguments.seconds, status=False)
    finally:
        written = await outputs.close()
    if camera.reader.state == "failed":
        errors.append(camera.reader.error)
    if errors:
        raise Failed(errors[0])
    why = {"skipped_why": dict(camera.stats.skipped.why)} if summary["skipped"] else {}
    p50, p95 = percentiles(latencies)
    return (
        {
            "source": config.name,
            "model": model,
            "frames": summary["answered"],
            "failed": summary["failed"],
            "dropped": summary["dropped"],
            "skipped": summary["skipped"],
            "unhandled": summary["unhandled"],
            "detections": summary["detections"],
            "fps": summary["fps"],
            "p50_ms": round(p50, 2),
            "p95_ms": round(p95, 2),
            "output": [str(path) for path in arguments.output],
        }
        | written
        | why
    )


def given(arguments: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Those of the options that the command line has."""
    return {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}


def plain_record(camera: Camera, answer: Answer) -> dict[str, Any]:
    """The JSON line of an answered frame where there is only one camera."""
    assert answer.found is not None
    return frame_record(answer.frame, answer.found, answer.tracks)


def default_output(source: str) -> Path:
    """The default of `--output`: `street.mp4` becomes `street-annotated.mp4` in the current folder."""
    path = Path(source)
    if is_address(source):  # the file's name must not show a password, nor hold what a shell reads as its own
        words = re.sub(r"[^\w.-]+", "-", Path(re.split("[?#]", without_password(source))[0]).name)
        path = Path(words.strip("-.") or "camera")
    return Path(f"{path.stem}-annotated{'.png' if path.suffix.lower() in IMAGE_SUFFIXES else '.mp4'}")


def parser() -> argparse.ArgumentParser:
    p = make_parser(
        "sam3-camera",
        "Send frames of a video, a folder or an image to a SAM3 server, show what it finds.",
        EXAMPLES,
    )
    p.add_argument("--source", help="video file, image, folder of images, rtsp:// or another address, or webcam:0")
    p.add_argument("--classes", nargs="+", metavar="NAME", help="what to look for, each in a few words")
    p.add_argument(
        "--config", type=Path, metavar="FILE", help="many cameras: a YAML file instead of --source and --classes"
    )
    p.add_argument("--seconds", type=float, metavar="S", help="stop after S seconds")
    p.add_argument("--url", default="localhost", help=f"{URL_HELP} (default: %(default)s with Triton's port)")
    p.add_argument("--ca", type=Path, metavar="FILE", help=CA_HELP)
    p.add_argument("--protocol", choices=("grpc", "http"), default="grpc", help="default: %(default)s")
    p.add_argument("--model", help="front model, such as sam3_r672 (default: the server's only one)")
    p.add_argument(
        "--threshold", type=float, default=DEFAULT_THRESHOLD, help="lowest score, 0 to 1 (default: %(default)s)"
    )
    p.add_argument("--masks", action="store_true", help="request masks too")
    p.add_argument(
        "--track", choices=("boxes", "masks"), help="ids that stay: by matching boxes, or by the server's tracker"
    )
    p.add_argument(
        "--detect-every",
        type=int,
        metavar="N",
        help=f"with --track masks: frames from one detection to the next (default: {DEFAULT_DETECT_EVERY})",
    )
    p.add_argument(
        "--max-objects",
        type=int,
        metavar="N",
        help=f"with --track masks: objects at a time (default: {DEFAULT_OBJECTS})",
    )
    p.add_argument("--raw", action="store_true", help="send pixels instead of JPEG: exact, and ten times the bytes")
    p.add_argument("--limit", type=int, metavar="N", help="stop after N frames")
    p.add_argument(
        "--timeout",
        type=float,
        default=DEFAULT_TIMEOUT_S,
        metavar="S",
        help="seconds to wait for a frame (default: %(default)s)",
    )
    p.add_argument(
        "--output",
        type=Path,
        nargs="*",
        metavar="FILE",
        help=(
            f"write one or several of {', '.join(SUFFIXES)}; without FILE nothing is written "
            "(default: SOURCE-annotated.mp4 in this folder, .png for an image)"
        ),
    )
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """0: every frame was answered (or, in a fleet, dropped as configured) and written; 1: some failed, could not be
    decoded or could not be written, or none was answered; 2: it could not start or continue, and stderr says why."""
    p = parser()
    arguments = p.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    if arguments.config is not None:
        if arguments.source or arguments.classes:
            p.error("--config names the cameras; leave --source and --classes out")
        if given(arguments, "track", *OF_MASKS):
            p.error("with --config the file says which camera tracks what, as `track: masks`; leave --track out")
        about = {"config": str(arguments.config)}
    else:
        if not arguments.source or not arguments.classes:
            p.error("--source and --classes are needed, or --config")
        if arguments.track != "masks" and (unused := given(arguments, *OF_MASKS)):
            p.error(f"--{min(unused).replace('_', '-')} is of tracked masks; write --track masks too")
        if arguments.output is None:
            arguments.output = [default_output(arguments.source)]
        if wrong := [str(path) for path in arguments.output if path.suffix not in SUFFIXES]:
            p.error(f"--output must end in {', '.join(SUFFIXES)}, got {', '.join(wrong)}")
        about = {"source": without_password(arguments.source)}
    try:
        if arguments.config is not None:
            result = asyncio.run(run_fleet_file(read_config(arguments.config), arguments.seconds))
            answered = result["answered"]
            say(*(camera_line(each) for each in result["each"]))
        else:
            result = asyncio.run(run_source(arguments))
            answered = result["frames"]
            say(
                f"{answered} frames, {result['failed']} failed, {result['skipped']} skipped,"
                f" {result['detections']} detections, {result['fps']} fps, p50 {result['p50_ms']} ms,"
                f" p95 {result['p95_ms']} ms"
            )
    except (Failed, ValueError, ImportError, OSError, KeyboardInterrupt) as error:
        told = without_password(str(error)) or "interrupted before it had started"
        print(f"sam3-camera: {told}", file=sys.stderr)
        say(json.dumps(about | {"error": told}))
        return 2
    troubles = [output for output in result["outputs"] if "error" in output]
    say(*(f"{output['output']}: {output['lost']} lost; {output['error']}" for output in troubles))
    if not say(json.dumps(result)):
        print(json.dumps(result), file=sys.stderr)
    bad = result["failed"] or result["skipped"] or result["unhandled"] or troubles
    return 1 if bad or not answered else 0


def camera_line(each: dict[str, Any]) -> str:
    """One camera's counts on one line."""
    return (
        f"{each['name']}: {each['read']} read = {each['answered']} answered"
        + (f" + {each['still']} still" if each["still"] else "")
        + f" + {sum(each['dropped'].values())} dropped + {sum(each['failed'].values())} failed"
        + f", {each['fps']} fps, p95 {each['p95_ms']} ms"
        + (f", {each['skipped']} skipped" if "skipped" in each else "")
        + (f", {each['unhandled']} not handled ({each['handler_error']})" if "unhandled" in each else "")
        + (f"; {each['error']}" if "error" in each else "")
    )


if __name__ == "__main__":
    sys.exit(main())
