"""Many quiet cameras at once before the real server: how long after it has begun is an event's first frame answered?

Each camera plays a film of its own (`quiet_films.py`) in real time through the fleet, with the motion gate. An event
begins when its first frame would leave the camera; what a decoder or a queue is late counts as delay. It is answered by
the first answer to that frame or a later one that went to the server. The server's processor time is that of its
process and of all below it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clients.connection import AsyncClient
from clients.fleet.camera import Camera
from clients.fleet.config import CameraConfig, FleetConfig
from clients.fleet.fleet import open_pool, run_fleet
from clients.fleet.request import Answer
from clients.video.motion import Motion
from clients.video.sources import open_source
from ensemble.server.embedded import EmbeddedServer
from ensemble.server.requirements import ServerError
from ensemble.spec import DEFAULT_THRESHOLD
from perf.bench.quiet_films import FPS, TROUBLES, QuietFilm, draw

SIZE = (360, 640)
"""Height and width of the films: the second stream of a camera. The cameras' decoders work on the server's machine."""
LIMITS = {"first_answer_p95_ms": 1500.0, "server_cpu": 0.7}
"""What the first answers to 95 of 100 events, and the server's share of all cores, may come to."""
log = logging.getLogger(__name__)


def films(folder: Path, cameras: int, seconds: float, activity: float) -> list[QuietFilm]:
    """A film for each camera, of all kinds in turn."""
    kinds, drawn = list(TROUBLES), []
    for i in range(cameras):
        drawn.append(draw(folder / f"{i}.mp4", TROUBLES[kinds[i % len(kinds)]], seconds, activity, 1000 + i, SIZE))
        log.info("camera %d: %s, %d events", i, kinds[i % len(kinds)], len(drawn[-1].firsts))
    return drawn


@dataclass(slots=True)
class Watch:
    """What became of one camera's frames: for each that was sent and answered its number and when, and when the film's
    first frame was due; in seconds of one clock."""

    film: QuietFilm
    answered: list[tuple[int, float]] = field(default_factory=list)
    began: float = math.inf

    def __call__(self, answer: Answer) -> None:
        """Takes an answer; of those that came with a still frame only the time."""
        frame = answer.frame
        # the frame that was captured with the least delay tells when the film began
        self.began = min(self.began, frame.captured - frame.time_s)
        if answer.outcome == "answered":
            self.answered.append((frame.index, frame.captured + answer.latency_ms / 1e3))

    def delays(self) -> list[float]:
        """Seconds from each event's beginning to its first answer; infinite where there was none."""
        found = []
        for first in self.film.firsts:
            at = next((at for number, at in self.answered if number >= first), math.inf)
            found.append(at - self.began - first / FPS)
        return found


def quantile(delays: Sequence[float], share: float) -> float | None:
    """Milliseconds within which that share of the events was answered; None where they were not."""
    seconds = sorted(delays)[max(0, math.ceil(share * len(delays)) - 1)]
    return round(1e3 * seconds, 1) if math.isfinite(seconds) else None


def cpu_seconds(pid: int) -> float:
    """Processor seconds so far of a process and of those below it that run."""
    ticks, todo = 0, [pid]
    while todo:
        process = Path(f"/proc/{todo.pop()}")
        try:
            words = (process / "stat").read_text().rpartition(")")[2].split()
            todo += [int(child) for file in process.glob("task/*/children") for child in file.read_text().split()]
        except OSError:  # it has ended meanwhile
            continue
        ticks += int(words[11]) + int(words[12])  # utime and stime, fields 14 and 15 of proc(5)
    return ticks / os.sysconf("SC_CLK_TCK")


async def play(watches: Sequence[Watch], server: EmbeddedServer, model: str, motion: Motion) -> dict[str, Any]:
    """Plays all films at once; returns the row. Raises ServerError where frames fail."""
    configs = [
        CameraConfig(
            f"camera {i}",
            str(watch.film.path),
            watch.film.classes,
            (DEFAULT_THRESHOLD,) * len(watch.film.classes),
            model=model,
            realtime=True,
            motion=motion,
        )
        for i, watch in enumerate(watches)
    ]
    by_name = dict(zip((config.name for config in configs), watches, strict=True))
    await _warm_up(watches, server.grpc_url, model)
    assert server.pid is not None, "it runs"
    before, own, start = cpu_seconds(server.pid), time.process_time(), time.monotonic()
    summary = await run_fleet(
        [Camera(config) for config in configs],
        open_pool(FleetConfig(tuple(configs), (server.grpc_url,))),
        lambda camera, answer: by_name[camera.config.name](answer),
        asyncio.Event(),
    )
    cores = os.cpu_count() or 1
    capacity = (time.monotonic() - start) * cores
    server_cpu, own_cpu = cpu_seconds(server.pid) - before, time.process_time() - own
    if summary["failed"] or summary["unhandled"]:
        raise ServerError(f"frames failed: {summary['failed_by']}, {summary['unhandled']} were not handled")
    frames = [moved for watch in watches for moved in watch.film.moving]
    delays = [delay for watch in watches for delay in watch.delays()]
    return {
        "scene": f"{len(watches)} cameras",
        "activity": round(sum(frames) / len(frames), 3),
        "frames": summary["read"],
        "sent": summary["answered"],
        "saved": round(1 - summary["answered"] / summary["read"], 3),
        "cameras": len(watches),
        "fps": FPS,
        "dropped": summary["dropped"],
        "events": len(delays),
        "events_answered": sum(map(math.isfinite, delays)),
        "first_answer_p50_ms": quantile(delays, 0.5),
        "first_answer_p95_ms": quantile(delays, 0.95),
        "answer_p95_ms": summary["p95_ms"],
        "server_cpu": round(server_cpu / capacity, 3),
        "cameras_cpu": round(own_cpu / capacity, 3),
        "cores": cores,
        "height": SIZE[0],
        "model": model,
    }


async def _warm_up(watches: Sequence[Watch], url: str, model: str) -> None:
    """One frame with each film's classes: names are new to a server only once."""
    async with AsyncClient(url, model=model) as client:
        for watch in watches:
            with open_source(watch.film.path) as source:
                await client.detect(next(iter(source)).rgb, watch.film.classes)


def within_limits(row: dict[str, Any]) -> bool:
    """Whether the events were answered in time and the server had time to spare."""
    return all(row[name] is not None and row[name] <= limit for name, limit in LIMITS.items())
