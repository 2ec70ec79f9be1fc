"""Many cameras for a long time: does memory grow, is any frame unaccounted for, does a camera starve?

Drawn films are played in real time and for ever through the fleet (`clients/fleet/fleet.py`). The embedded server is a
child of this process, so that the memory of both can be read; that of a server that runs already (`--url`) is not
known. The exit status is 1 where memory grows by more than 5 % after the first minute, or the least served camera gets
less than 0.9 of what the most served one gets.

A server's memory follows the largest batch that it has had: ONNX Runtime's arenas and Triton's shared-memory regions
grow to what one batch of that many frames and classes needs and never give it back. So the largest one is sent before
the clock starts: met by chance in mid-run it would look like a leak.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import math
import os
import resource
import time
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from clients.connection import AsyncClient
from clients.errors import Sam3ServerError
from clients.fleet.camera import Camera
from clients.fleet.config import CameraConfig, FleetConfig
from clients.fleet.fleet import open_pool, run_fleet
from clients.fleet.request import Answer
from clients.video.encode import to_jpeg
from clients.video.sources import open_source
from demo import steps
from ensemble.server.embedded import EmbeddedServer
from ensemble.server.memory import MB
from ensemble.server.requirements import ServerError
from ensemble.spec import Variant
from export.tiny import CHECKPOINT
from perf import record
from perf.console import make_parser, refuse

LIMITS = {"growth": 0.05, "fairness": 0.9}
"""Memory may grow by so much after `SETTLED_S`; the least served camera gets so much of what the most served one
gets."""
SETTLED_S = 60.0
"""Until then caches fill and the cameras' latest answers pile up; a shorter run cannot tell growth."""
SAMPLES = 20
"""Looks at the memory, however long the run."""
COLUMNS = ("at_s", "answered", "fewest", "most", "load", "client_mb", "server_mb")
"""Of a sample, those that are shown; after them the server's processes follow."""
PAGE = resource.getpagesize()
EXAMPLES = """examples:
  sam3-perf bench soak --cameras 16 --seconds 600
  sam3-perf bench soak --url gpu:8001 --model sam3_r672 --cameras 32 --fps 4"""
log = logging.getLogger(__name__)


def memory_mb(pid: int, without: Collection[int | None] = ()) -> dict[str, float]:
    """Resident memory in MB of a process and its descendants, by the model that each serves (Triton runs each python
    model in processes of its own) or its program; the processes `without` are left out with their descendants. Shared
    pages count in each process that has touched them.
    """
    found: dict[str, float] = {}
    todo = [pid]
    while todo:
        process = Path(f"/proc/{todo.pop()}")
        try:
            pages = int((process / "statm").read_text().split()[1])
            command = (process / "cmdline").read_text().split("\0")
        except (OSError, IndexError):  # it has ended meanwhile
            continue
        for file in process.glob("task/*/children"):
            with contextlib.suppress(OSError):  # the thread has ended meanwhile
                todo += [child for child in map(int, file.read_text().split()) if child not in without]
        models = [Path(word).parent.parent.name for word in command if word.endswith("/model.py")]
        name = models[0] if models else Path(command[0]).name
        found[name] = found.get(name, 0.0) + pages * PAGE / MB
    return found


async def send_largest_batch(films: Sequence[steps.Film], url: str, model: str, masks: str) -> None:
    """As many frames at once, with as many classes each, as the server puts into one batch; a few times, since batches
    come together by chance."""
    limits = Variant()
    words = list(dict.fromkeys(word for film in films for word in film.classes))
    words = words[: math.ceil(limits.max_pairs / limits.max_batch)]
    with open_source(films[0].video) as source:
        jpeg = to_jpeg(next(iter(source)).rgb)
    async with AsyncClient(url, model=model) as client:
        for _ in range(3):
            await asyncio.gather(*(client.detect(jpeg, words, mask_format=masks) for _ in range(2 * limits.max_batch)))


def cameras_of(films: Sequence[steps.Film], model: str, a: argparse.Namespace) -> tuple[CameraConfig, ...]:
    """`a.cameras` cameras that take turns at the films."""
    chosen = [films[i % len(films)] for i in range(a.cameras)]
    return tuple(
        CameraConfig(
            f"camera {i + 1}",
            str(film.video),
            tuple(film.classes),
            (0.5,) * len(film.classes),
            model=model,
            fps=a.fps,
            deadline_s=a.deadline_ms / 1e3,
            in_flight=a.in_flight,
            masks=a.masks,
            realtime=True,
            loop=True,
        )
        for i, film in enumerate(chosen)
    )


async def soak(
    configs: Sequence[CameraConfig], url: str, seconds: float, server_pid: int | None
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Runs the cameras: the fleet's summary with an account of each, and `SAMPLES` rows of answers and memory over
    time."""
    cameras = [Camera(config) for config in configs]
    samples: list[dict[str, Any]] = []
    start, stop = time.monotonic(), asyncio.Event()

    async def look() -> None:
        while True:
            await asyncio.sleep(seconds / SAMPLES)
            done = [c.stats.answered for c in cameras]
            server = memory_mb(server_pid) if server_pid else {}
            row = {"at_s": time.monotonic() - start, "answered": sum(done), "fewest": min(done), "most": max(done)}
            row["load"] = os.getloadavg()[0]  # of the whole machine: what else runs slows the fleet down
            row["client_mb"] = sum(memory_mb(os.getpid()).values()) - sum(server.values())
            row |= {"server_mb": sum(server.values()), **dict(sorted(server.items()))}
            samples.append({name: round(value, 1) for name, value in row.items()})
            log.info("%s", " ".join(f"{name} {samples[-1][name]}" for name in COLUMNS))

    def ignore(camera: Camera, answer: Answer) -> None:
        """The counts are all that is wanted."""

    looking = asyncio.create_task(look())
    asyncio.get_running_loop().call_later(seconds, stop.set)
    cpu = time.process_time()
    summary = await run_fleet(cameras, open_pool(FleetConfig(tuple(configs), (url,))), ignore, stop)
    looking.cancel()
    percent = 100 * (time.process_time() - cpu) / summary["seconds"]
    summary["client_cpu_percent_per_camera"] = round(percent / len(cameras), 2)
    return summary, samples


def held(summary: dict[str, Any], samples: Sequence[dict[str, Any]]) -> dict[str, bool | None]:
    """Each limit and whether it held; None where the run was too short to tell."""
    settled = [sample for sample in samples if sample["at_s"] >= SETTLED_S]
    grown = [
        settled[-1][side] / settled[0][side] - 1 for side in ("client_mb", "server_mb") if settled and settled[0][side]
    ]
    return {
        "every frame accounted for": all(
            each["read"] == each["answered"] + sum(each["dropped"].values()) + sum(each["failed"].values())
            for each in summary["each"]
        ),
        "fairness": summary["fairness"] >= LIMITS["fairness"],
        "memory": max(grown) <= LIMITS["growth"] if len(settled) > 1 else None,
    }


def parser() -> argparse.ArgumentParser:
    p = make_parser("bench soak", __doc__, EXAMPLES)
    p.add_argument("--cameras", type=int, default=16, help="default: %(default)s")
    p.add_argument("--seconds", type=float, default=600.0, help="default: %(default)s")
    p.add_argument("--fps", type=float, default=2.0, help="of each camera (default: %(default)s)")
    p.add_argument("--deadline-ms", type=float, default=5000.0, help="capture to answer (default: %(default)s)")
    p.add_argument("--in-flight", type=int, default=2, help="of each camera (default: %(default)s)")
    p.add_argument("--masks", choices=("none", "bits", "rle"), default="none", help="default: %(default)s")
    p.add_argument("--resolution", type=int, default=252, help="of the small checkpoint (default: %(default)s)")
    p.add_argument(
        "--films", type=Path, default=Path("build/soak/films"), help="drawn where missing (default: %(default)s)"
    )
    p.add_argument("--repository", type=Path, default=Path("build/repository"), help="default: %(default)s")
    p.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="default: the small one")
    p.add_argument("--url", help="host:port of a server that runs already; needs --model")
    p.add_argument("--model", help="front model to ask (default: the exported one)")
    record.add_output(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """0: the limits held; 1: one did not; 2: it could not start, and stderr says why."""
    p = parser()
    a = p.parse_args(argv)
    if a.url and not a.model:
        p.error("--url needs --model, such as --model sam3_r672")

    async def run(url: str, model: str, server_pid: int | None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        await send_largest_batch(films, url, model, a.masks)
        return await soak(cameras_of(films, model, a), url, a.seconds, server_pid)

    try:
        films = steps.films(a.films, min(a.cameras, 8), 40, "640x360", 7)
        if a.url:
            summary, samples = asyncio.run(run(a.url, a.model, None))
        else:
            model = a.model or steps.repository(a.repository, a.checkpoint, a.resolution, 50)
            with EmbeddedServer(a.repository) as server:
                summary, samples = asyncio.run(run(server.grpc_url, model, server.pid))
    except (steps.DemoError, ServerError, Sam3ServerError, ValueError) as error:
        return refuse(p.prog, error)
    result = held(summary, samples)
    record.publish(a.output, record.new(p.prog, argv) | summary | {"held": result, "rows": samples}, "soak", COLUMNS)
    return 1 if False in result.values() else 0


if __name__ == "__main__":
    raise SystemExit(main())
