"""The motion gate on drawn films of quiet cameras: what it leaves out, what it misses, what it costs.

An event is found where its first frame, or the one after it, is sent. With a repository each film also goes through a
fleet and the embedded server, with the gate and without it, and average precision is taken over all frames: a frame
that was not sent has what was found in the last one that was.

With --cameras so many films are played at once, in real time, before that server instead (`quiet_cameras.py`): how long
after its beginning is an event's first frame answered, and how busy is the server? A file that is there already keeps
its other rows.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clients.errors import Sam3ServerError
from clients.fleet.camera import Camera
from clients.fleet.config import CameraConfig, FleetConfig
from clients.fleet.fleet import open_pool, run_fleet
from clients.fleet.request import Answer
from clients.video.frames import Frame
from clients.video.motion import Motion, MotionGate
from clients.video.sources import open_source
from ensemble.server.embedded import EmbeddedServer
from ensemble.server.requirements import ServerError
from export.tiny.scenes import Rendering
from perf import record
from perf.bench import quiet_cameras
from perf.bench.quiet_films import FPS, TROUBLES, QuietFilm, draw
from perf.bench.zoom import FLOOR, Comparison
from perf.console import make_parser, refuse

WAYS = ("gated", "all")
FULL_HD = (1080, 1920)
DECODED = 64
"""Frames that are decoded at once."""
EXAMPLES = """examples:
  sam3-perf bench gate
  sam3-perf bench gate --repository build/test-repository --output perf/results/cpu/gate.json
  sam3-perf bench gate --cameras 16 --repository build/test-repository --output perf/results/cpu/gate.json"""
log = logging.getLogger(__name__)


def through(film: QuietFilm, motion: Motion) -> tuple[list[bool], float]:
    """Which frames are sent where a server is never behind, and the median milliseconds of processor time a frame."""
    gate, sent, took = MotionGate(motion), [], []
    with open_source(film.path) as source:
        for frames in batches(source):
            looked = [looks(gate, frame.rgb, frame.time_s) for frame in frames]
            sent += [not still for still, _ in looked]
            took += [ms for _, ms in looked]
    return sent, float(np.median(took))


def batches(source: Iterable[Frame]) -> Iterator[list[Frame]]:
    """Frames that were decoded before any of them is looked at: a decoder at work beside the gate slows it down."""
    frames = iter(source)
    while batch := list(islice(frames, DECODED)):
        yield batch


def looks(gate: MotionGate, rgb: NDArray[np.uint8], time_s: float) -> tuple[bool, float]:
    """Whether a frame is still, and the milliseconds that it took to see that; one that is not still is sent."""
    begin = time.thread_time()
    view = gate.look(rgb, time_s)
    took = (time.thread_time() - begin) * 1e3
    if not view.still:
        gate.sent(view)
    return view.still, took


def row(name: str, film: QuietFilm, sent: Sequence[bool], gate_ms: float) -> dict[str, Any]:
    """The figures of one film."""
    firsts = film.firsts
    found = sum(any(sent[k : k + 2]) for k in firsts)
    return {
        "scene": name,
        "activity": round(float(np.mean(film.moving)), 3),
        "frames": len(sent),
        "sent": sum(sent),
        "saved": round(1 - sum(sent) / len(sent), 3),
        "events": len(firsts),
        "first_frame_recall": round(found / len(firsts), 3) if firsts else None,
        "gate_ms": round(gate_ms, 3),
    }


def full_hd_ms(film: QuietFilm, motion: Motion) -> float:
    """Median milliseconds of processor time for frames of 1920 x 1080, each from memory of its own."""
    gate = MotionGate(motion)
    with open_source(film.path) as source:
        frames = next(batches(source))
    large = [np.asarray(Image.fromarray(frame.rgb).resize(FULL_HD[::-1])) for frame in frames]
    return round(float(np.median([looks(gate, rgb, i / FPS)[1] for i, rgb in enumerate(large)])), 3)


async def precision(film: QuietFilm, url: str, model: str, motion: Motion) -> dict[str, Any]:
    """AP50 over all frames of a film, with the gate and without it, and how many frames a fleet sent with it."""
    compared = Comparison()
    empty = np.zeros((0, 0), np.uint8)
    images = [compared.scene(Rendering(empty, empty, instances), film.classes) for instances in film.instances]
    sent = 0
    for way in WAYS:
        compared.found[way], compared.took[way] = [], []

        def keep(camera: Camera, answer: Answer, way: str = way) -> None:
            if answer.found is None or not answer.usable:
                raise ServerError(f"frame {answer.frame.index} of {film.path.name}: {answer.outcome} {answer.error}")
            number = answer.frame.index
            compared.found[way] += answer.found.to_coco(number + 1, images[number])
            compared.took[way].append(answer.latency_ms)

        thresholds = (FLOOR,) * len(film.classes)
        gate = motion if way == "gated" else None
        config = CameraConfig(way, str(film.path), film.classes, thresholds, model=model, motion=gate)
        summary = await run_fleet([Camera(config)], open_pool(FleetConfig((config,), (url,))), keep, asyncio.Event())
        if summary["unhandled"]:
            raise ServerError(summary["each"][0]["handler_error"])
        sent = sent if gate is None else summary["answered"]
    gated, everything = compared.rows()
    return {"fleet_sent": sent, "map50": gated["ap50"], "map50_all_frames": everything["ap50"]}


def main(argv: Sequence[str] | None = None) -> int:
    """0: measured, and at least 0.99 of the events found, with --cameras answered in time; 1: fewer; 2: the server
    cannot start or answer."""
    parser = make_parser("bench gate", __doc__, EXAMPLES)
    parser.add_argument("--repository", type=Path, help="as sam3-export writes it, for average precision too")
    parser.add_argument("--model", default="sam3_r140", help="front model; default %(default)s")
    parser.add_argument("--seconds", type=float, default=150, help="of each film; default %(default)s")
    parser.add_argument(
        "--activity", type=float, default=0.05, help="of which something moves so much; default %(default)s"
    )
    parser.add_argument("--seeds", type=int, default=2, help="films of each kind; default %(default)s")
    parser.add_argument("--scenes", nargs="+", choices=TROUBLES, default=list(TROUBLES), help="default: all")
    parser.add_argument("--sensitivity", type=float, default=Motion().sensitivity, help="default %(default)s")
    parser.add_argument("--cameras", type=int, help="films that are played at once; needs --repository")
    record.add_output(parser)
    options = parser.parse_args(argv)
    motion = Motion(options.sensitivity)
    if options.cameras is not None:
        if options.cameras < 1 or options.repository is None:
            parser.error("--cameras: expected at least one camera and a --repository")
        return many(parser.prog, argv, options, motion)
    films: list[tuple[str, QuietFilm]] = []
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for kind, name in enumerate(options.scenes):
            for seed in range(options.seeds):
                path = Path(folder) / f"{kind}-{seed}.mp4"
                films.append((name, draw(path, TROUBLES[name], options.seconds, options.activity, 100 * kind + seed)))
                rows.append(row(name, films[-1][1], *through(films[-1][1], motion)))
                log.info("%s: %s", name, rows[-1])
        head = {"gate_ms_1920x1080": full_hd_ms(films[0][1], motion)}
        if options.repository is not None:
            try:
                with EmbeddedServer(options.repository) as server:
                    for one, (name, film) in zip(rows, films, strict=True):
                        one |= asyncio.run(precision(film, server.grpc_url, options.model, motion))
                        log.info("%s: AP50 %s, %s without the gate", name, one["map50"], one["map50_all_frames"])
            except ServerError as error:
                return refuse(parser.prog, error)
    events = sum(one["events"] for one in rows)
    head |= {"events": events, "first_frame_recall": found_share(rows)}
    _, kept = before(options.output, [one["scene"] for one in rows])
    data = record.new(parser.prog, argv) | head | {"rows": rows + [one for one in kept if "cameras" in one]}
    record.publish(options.output, data, f"{events} events")
    return 0 if head["first_frame_recall"] >= 0.99 else 1


def many(prog: str, argv: Sequence[str] | None, options: argparse.Namespace, motion: Motion) -> int:
    """Plays films at once and adds their row, which says by which command, to the file."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            films = quiet_cameras.films(Path(folder), options.cameras, options.seconds, options.activity)
            watches = [quiet_cameras.Watch(film) for film in films]
            with EmbeddedServer(options.repository) as server:
                found = asyncio.run(quiet_cameras.play(watches, server, options.model, motion))
    except (ServerError, Sam3ServerError) as error:
        return refuse(prog, error)
    made = record.new(prog, argv)
    head, kept = before(options.output, [found["scene"]])
    data = (head or made) | {"rows": [*kept, found | {"command": made["command"], "date": made["date"]}]}
    record.write(options.output, data)
    log.info("%s: %s", options.output, found)
    print(json.dumps(found))
    return 0 if quiet_cameras.within_limits(found) else 1


def before(path: Path, scenes: Sequence[str]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What a result file holds already, and those of its rows that are of none of these scenes."""
    head = json.loads(path.read_text()) if path.exists() else {}
    return head, [row for row in head.get("rows", []) if row["scene"] not in scenes]


def found_share(rows: Sequence[dict[str, Any]]) -> float:
    """The share of all rows' events that were found."""
    events = sum(one["events"] for one in rows)
    return round(sum(one["events"] * one["first_frame_recall"] for one in rows if one["events"]) / max(events, 1), 4)


if __name__ == "__main__":
    raise SystemExit(main())
