"""`sam3-camera --config cameras.yaml`: a fleet on the command line.

A configuration flows in; JSON lines, COCO results, pictures, annotated videos and events flow out, a status line now
and then on stderr, and as the last line of stdout one JSON object in which every frame is accounted for, on Ctrl-C too.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from clients.detections import Detections
from clients.fleet.config import FleetConfig, read_config
from clients.fleet.fleet import Answer, Camera, open_pool, run_fleet
from clients.fleet.webhook import Webhook
from clients.fleet.yaml_lines import ConfigError
from clients.output import Output, frame_record
from clients.video.frames import Frame

STATUS_EVERY_S = 5.0


class Lines:
    """A JSON-lines file to which several may append: each line goes to the system in one piece, so that none is ever
    cut."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, record: dict[str, Any]) -> None:
        os.write(self._file, (json.dumps(record) + "\n").encode())

    def close(self) -> None:
        os.close(self._file)


class CocoResults:
    """A JSON array of COCO result records, as pycocotools' `loadRes` reads it; `image_id` is the frame's number,
    `category_id` the class's place in the camera's list, masks are RLE at the frame's size. The array is complete once
    it is closed.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w")
        self._separator = "["

    def write(self, frame: int, found: Detections) -> None:
        for item in found.to_coco(frame):
            if "segmentation" in item:
                item["segmentation"]["counts"] = item["segmentation"]["counts"].decode()
            self._file.write(f"{self._separator}\n{json.dumps(item)}")
            self._separator = ","

    def close(self) -> None:
        self._file.write("[]\n" if self._separator == "[" else "\n]\n")
        self._file.close()


class Outputs:
    """Every camera's files and webhooks; a handler for `run_fleet`."""

    def __init__(self, cameras: list[Camera]) -> None:
        self.lines: dict[Path, Lines] = {}
        self.coco: dict[Path, CocoResults] = {}
        self.drawn: dict[Path, Output] = {}
        self.hooks = {c.config.webhook: Webhook(c.config.webhook) for c in cameras if c.config.webhook}
        for camera in cameras:
            for path in camera.config.outputs:
                if path.suffix == ".jsonl":
                    self.lines.setdefault(path, Lines(path))
                elif path.suffix == ".json":
                    self.coco.setdefault(path, CocoResults(path))
                else:
                    self.drawn.setdefault(path, Output(path, camera.config.fps or 10.0))

    async def __call__(self, camera: Camera, answer: Answer) -> None:
        picture, found = answer.picture, answer.found if answer.outcome == "answered" else None
        for path in camera.config.outputs:
            if path in self.lines:
                self.lines[path].write(record(camera, answer))
            elif found is not None and path in self.coco:
                self.coco[path].write(picture.index, found)
            elif found is not None:  # drawing takes milliseconds, and other cameras' answers wait in this loop
                frame = Frame(picture.index, picture.time_s, picture.rgb)
                await asyncio.to_thread(self.drawn[path].write, frame, found, answer.tracks)
        if camera.config.webhook:
            for event in answer.events:
                about = {"camera": camera.config.name, "frame": picture.index, "captured": wall_clock(answer)}
                self.hooks[camera.config.webhook].send(about | event)

    async def close(self) -> dict[str, int]:
        """Completes all files; returns how many events were sent and lost."""
        close = [thing.close for files in (self.lines, self.coco, self.drawn) for thing in files.values()]  # type: ignore[attr-defined]
        for one in close:
            one()
        await asyncio.gather(*(hook.close() for hook in self.hooks.values()))
        return {
            "events_sent": sum(hook.sent for hook in self.hooks.values()),
            "events_lost": sum(hook.lost for hook in self.hooks.values()),
        }


def wall_clock(answer: Answer) -> float:
    """When the frame was captured, in seconds since 1970."""
    return round(time.time() - (time.monotonic() - answer.picture.captured), 3)


def record(camera: Camera, answer: Answer) -> dict[str, Any]:
    """One frame as plain data. `captured` is the wall clock in seconds, `replaced` the frames that this one replaced,
    `latency_ms` from capture to answer, `request_ms` of that the request.
    """
    picture = answer.picture
    line: dict[str, Any] = {
        "camera": camera.config.name,
        "frame": picture.index,
        "outcome": answer.outcome,
        "captured": wall_clock(answer),
        "replaced": picture.replaced,
    }
    if answer.error:
        line["error"] = answer.error
    if answer.found is not None and answer.outcome == "answered":
        about = frame_record(Frame(picture.index, picture.time_s, picture.rgb), answer.found)
        line |= about | {"request_ms": about["latency_ms"]}
        for detection, track in zip(line["detections"], answer.tracks, strict=False):
            detection |= {"track": track} if track >= 0 else {}
        if answer.events:
            line["events"] = list(answer.events)
    return line | {"time_s": round(picture.time_s, 3), "latency_ms": round(answer.latency_ms, 2)}


def status(cameras: list[Camera]) -> str:
    """One line for people: `yard 12.1 s: 120 answered, 3 dropped, live | ...`."""
    return " | ".join(
        f"{c.config.name}: {c.tally.answered} answered, {c.tally.dropped.total() + c.reader.replaced} dropped, "
        f"{c.tally.failed.total()} failed, {c.reader.state}"
        for c in cameras
    )


async def watch(config: FleetConfig, seconds: float | None = None) -> dict[str, Any]:
    """Runs the fleet until its sources end, `seconds` are over, or SIGINT or SIGTERM comes; returns the summary."""

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        with contextlib.suppress(NotImplementedError, RuntimeError):  # not on Windows, not outside the main thread
            loop.add_signal_handler(number, stop.set)
    if seconds is not None:
        loop.call_later(seconds, stop.set)
    cameras = [Camera(camera) for camera in config.cameras]
    outputs = Outputs(cameras)

    async def tell() -> None:
        while True:
            await asyncio.sleep(STATUS_EVERY_S)
            say(status(cameras))

    teller = asyncio.create_task(tell())
    try:
        result = await run_fleet(cameras, open_pool(config, say), outputs, stop)
    finally:
        teller.cancel()
        events = await outputs.close()
    return result | (events if outputs.hooks else {})


def run(path: Path, seconds: float | None = None) -> int:
    """0: every frame was answered or dropped; 1: some failed, or none was answered; 2: the configuration cannot be
    used."""
    try:
        config = read_config(path)
    except ConfigError as error:
        print(f"sam3-camera: {error}", file=sys.stderr)
        print(json.dumps({"config": str(path), "error": str(error)}))
        return 2
    result = asyncio.run(watch(config, seconds))
    for each in result["each"]:
        print(
            f"{each['name']}: {each['read']} read = {each['answered']} answered + {sum(each['dropped'].values())}"
            f" dropped + {sum(each['failed'].values())} failed, {each['fps']} fps, p95 {each['p95_ms']} ms"
            + (f"; {each['error']}" if "error" in each else "")
        )
    print(json.dumps(result))
    return 1 if result["failed"] or not result["answered"] else 0
