"""Several servers behind one address: what Envoy adds to an answer, whether it shares frames evenly, and what cameras
notice of a server that is killed, frozen or upgraded (`perf/bench/fleet_scenes.py`).

Envoy runs with `deploy/envoy.yaml` as it is, before two and then three embedded servers, which are supervised as by
`sam3-serve`. With `--soak` there is one long run in which one server after the other is killed. The exit status is 1
where a target is missed or a promise broken; "held" says which.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from clients.errors import Sam3ServerError
from clients.fleet.camera import Camera
from clients.fleet.config import FleetConfig
from clients.fleet.fleet import open_pool, run_fleet
from clients.video.encode import to_jpeg
from clients.video.sources import open_source
from demo import steps
from ensemble.server.requirements import ServerError
from export.tiny import CHECKPOINT
from perf import record
from perf.bench import hard_soak
from perf.bench.failing_servers import FailingServer
from perf.bench.fleet_scenes import TROUBLES, Watch, account, added, cameras_of, hurt, settled, shared
from perf.bench.gateway import Gateway, envoy
from perf.bench.soak import memory_mb
from perf.console import make_parser, refuse

LIMITS = {"added_p95_ms": 1.0, "spread": 0.1, "longest_silence_s": 3.0}
"""The targets: milliseconds that Envoy adds, how unevenly it shares, and how long a camera may be without answers."""
SAMPLES = 60
"""Looks at the memory in a soak, however long it is."""
QUIET_SHARE = 0.1
"""Of a soak at its end, in which no server is killed any more, so that all can be seen to have come back."""
COLUMNS = (
    "scene",
    "servers",
    "load",
    "added_p95_ms",
    "spread",
    "spread_full",
    "fps",
    "read",
    "answered",
    "dropped",
    "failed",
    "longest_silence_s",
)
SOAK_COLUMNS = ("at_s", "answered", "fewest", "load", "client_mb", "envoy_mb", "server_mb", "restarts")
EXAMPLES = """examples:
  sam3-perf bench fleet
  sam3-perf bench fleet --soak 3600 --output build/perf/fleet_soak.json"""
log = logging.getLogger(__name__)


async def soak(
    gateway: Gateway, servers: Sequence[FailingServer], options: argparse.Namespace, films: Sequence[steps.Film]
) -> tuple[dict[str, Any], Watch, list[dict[str, Any]]]:
    """The cameras' account, what was handed over, and rows of answers and memory over time."""
    configs = cameras_of(films, servers[0].front, options)
    fleet, watch, stop, samples = [Camera(config) for config in configs], Watch(), asyncio.Event(), []
    await settled(gateway, len(servers))
    start = time.monotonic()

    async def look() -> None:
        while True:
            await asyncio.sleep(options.soak / SAMPLES)
            done = [camera.stats.answered for camera in fleet]
            pids = [server.server.pid for server in servers]
            behind, proxy = (
                sum(sum(memory_mb(pid).values()) for pid in pids if pid),
                sum(memory_mb(gateway.pid).values()),
            )
            row = {
                "at_s": time.monotonic() - start,
                "answered": sum(done),
                "fewest": min(done),
                "load": os.getloadavg()[0],
                "client_mb": sum(memory_mb(os.getpid(), {*pids, gateway.pid}).values()),
                "envoy_mb": proxy,
                "server_mb": behind,
            }
            row = {name: round(value, 1) for name, value in row.items()}
            samples.append(row | {"restarts": sum(server.restarts for server in servers), "each": done})
            log.info("%s", " ".join(f"{name} {samples[-1][name]}" for name in SOAK_COLUMNS))

    async def kill() -> None:
        turn = 0
        while time.monotonic() - start + options.kill_every < options.soak * (1 - QUIET_SHARE):
            await asyncio.sleep(options.kill_every)
            await asyncio.to_thread(servers[turn % len(servers)].server_is_killed)
            turn += 1

    tasks = [asyncio.create_task(look()), asyncio.create_task(kill())]
    asyncio.get_running_loop().call_later(options.soak, stop.set)
    summary = await run_fleet(fleet, open_pool(FleetConfig(configs, (gateway.grpc,))), watch, stop)
    end = time.monotonic()
    for task in tasks:
        task.cancel()
    for task in tasks:
        with contextlib.suppress(asyncio.CancelledError):
            await task  # raises what went wrong in it
    summary["longest_silence_s"] = round(watch.silence(start, min(end, start + options.soak)), 2)
    return summary, watch, samples


def kept(rows: Sequence[dict[str, Any]]) -> dict[str, bool]:
    """Each target and promise of the scenes, and whether all rows that tell of it hold it."""
    told = {name: [row[name] <= most for row in rows if name in row] for name, most in LIMITS.items()}
    scenes = [row for row in rows if row["scene"] in TROUBLES]
    return {f"{name} at most {LIMITS[name]:g}": all(held) for name, held in told.items()} | {
        "every frame accounted for": not any(row["unaccounted"] for row in scenes),
        "every frame handed over once": all(row["agrees"] and not row["handed_over_twice"] for row in scenes),
        "sessions keep their ids": all(row["ids_kept"] == row["ids_before"] for row in scenes),
    }


def scenes(
    servers: Sequence[FailingServer], options: argparse.Namespace, films: Sequence[steps.Film]
) -> list[dict[str, Any]]:
    """All rows."""
    film, front = films[0], servers[0].front
    with open_source(film.video) as source:
        jpeg = to_jpeg(next(iter(source)).rgb)
    rows = []
    with running(servers[:1]) as gateway:
        asyncio.run(settled(gateway, 1))
        rows += added(servers[0].server.grpc_url, gateway.grpc, front, jpeg, film.classes, options.requests)
    for count in range(2, len(servers) + 1):
        with running(servers[:count]) as gateway:
            asyncio.run(settled(gateway, count))
            rows += asyncio.run(shared(gateway, front, jpeg, film.classes, options.seconds, 4 * count))
            configs = cameras_of(films, front, options)
            for trouble in options.troubles:
                rows.append(asyncio.run(hurt(trouble, gateway, servers[:count], configs, options.seconds)))
    return rows


@contextlib.contextmanager
def running(servers: Sequence[FailingServer]) -> Iterator[Gateway]:
    """Envoy before these servers."""
    with (
        tempfile.TemporaryDirectory() as folder,
        envoy(Path(folder), [server.server for server in servers], servers[0].front) as gateway,
    ):
        yield gateway


def parser() -> argparse.ArgumentParser:
    p = make_parser("bench fleet", __doc__, EXAMPLES)
    add = p.add_argument
    add("--soak", type=float, default=0.0, metavar="SECONDS", help="one long run instead of the scenes")
    add("--kill-every", type=float, default=300.0, metavar="SECONDS", help="in the soak (default: %(default)s)")
    add("--servers", type=int, default=3, help="at most (default: %(default)s)")
    add("--cameras", type=int, default=6, help="of pictures (default: %(default)s)")
    add("--videos", type=int, default=3, help="cameras whose objects the servers follow (default: %(default)s)")
    add("--fps", type=float, default=2.0, help="of each camera (default: %(default)s)")
    add("--seconds", type=float, default=45.0, help="of each scene (default: %(default)s)")
    add("--troubles", nargs="*", choices=TROUBLES, default=list(TROUBLES), help="default: all; none for no scenes")
    add("--requests", type=int, default=400, help="of each way, for the latency (default: %(default)s)")
    add("--resolution", type=int, default=140, help="of the small checkpoint (default: %(default)s)")
    add("--films", type=Path, default=Path("build/soak/films"), help="drawn where missing (default: %(default)s)")
    add("--repository", type=Path, default=Path("build/fleet"), help="default: %(default)s")
    record.add_output(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """0: measured, and all targets met; 1: one was missed; 2: it could not start, and stderr says why."""
    p = parser()
    options = p.parse_args(argv)
    try:
        films = steps.films(options.films, 8, 40, "640x360", 7)
        steps.repository(options.repository, CHECKPOINT, options.resolution, 50, video=True)
        head = record.new(p.prog, argv)
        with contextlib.ExitStack() as stack:
            servers = [
                stack.enter_context(FailingServer(options.repository, options.resolution))
                for _ in range(options.servers)
            ]
            if options.soak:
                with running(servers) as gateway:
                    summary, watch, rows = asyncio.run(soak(gateway, servers, options, films))
                held = hard_soak.held(summary, watch, rows, servers)
                held["Envoy's memory is flat"] = hard_soak.flat(rows, "envoy_mb")
                more = account(summary, watch) | {"longest_silence_s": summary["longest_silence_s"]}
            else:
                rows, more = scenes(servers, options, films), {}
                held = dict(kept(rows))
            gave_up = [server.gave_up for server in servers if server.gave_up]
    except (steps.DemoError, ServerError, Sam3ServerError, OSError, ValueError) as error:
        return refuse(p.prog, error)
    more |= {"gave_up": gave_up} if gave_up else {}
    columns = SOAK_COLUMNS if options.soak else COLUMNS
    record.publish(options.output, head | more | {"held": held, "rows": rows}, "fleet", columns)
    return 1 if False in held.values() else 0


if __name__ == "__main__":
    raise SystemExit(main())
