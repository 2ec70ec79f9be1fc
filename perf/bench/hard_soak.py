"""Eight cameras that misbehave, on servers that fail, for an hour: is every frame accounted for, and is memory flat?

Every camera goes through all troubles of `perf/bench/misbehaving.py`, a new one whenever it is connected to again.
Meanwhile one of two supervised servers after the other is killed, frozen, hung, or asked by a client that takes its
requests back (`perf/bench/failing_servers.py`). The exit status is 1 where a frame is neither answered nor dropped nor
failed, or handed over twice, where a camera or a server does not come back, or where the largest memory of the last
third is more than 5 % above that of the second.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from argparse import ArgumentParser
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from clients.fleet.camera import Camera
from clients.fleet.config import CameraConfig, FleetConfig
from clients.fleet.fleet import open_pool, run_fleet
from clients.fleet.request import Answer
from demo import steps
from ensemble.server.requirements import ServerError
from export.tiny import CHECKPOINT
from perf import record
from perf.bench.failing_servers import TROUBLES, FailingServer
from perf.bench.misbehaving import MisbehavingCamera
from perf.bench.soak import LIMITS, memory_mb
from perf.console import make_parser, refuse

CAMERAS, SERVERS = 8, 2
SAMPLES = 60
"""Looks at the memory, however long the run."""
QUIET_SHARE = 0.1
"""Of the run at its end, in which no server is hurt any more, so that all can be seen to have come back."""
COLUMNS = ("at_s", "answered", "fewest", "load", "client_mb", "server_mb", "restarts")
EXAMPLES = """examples:
  sam3-perf bench hard-soak
  sam3-perf bench hard-soak --minutes 5 --trouble-every 20"""
log = logging.getLogger(__name__)


class Ledger:
    """What was handed over of each camera, counted apart from the fleet's own account: a handler for `run_fleet`."""

    def __init__(self) -> None:
        self.outcomes: dict[str, Counter[str]] = defaultdict(Counter)
        self.twice = self.back_in_time = 0
        self._last: dict[str, tuple[int, float]] = {}

    def __call__(self, camera: Camera, answer: Answer) -> None:
        name, frame = camera.config.name, answer.frame
        index, time_s = self._last.get(name, (-1, float("-inf")))
        self.twice += frame.index <= index
        self.back_in_time += frame.time_s < time_s
        self._last[name] = frame.index, frame.time_s
        self.outcomes[name][answer.outcome] += 1

    def agrees(self, each: dict[str, Any]) -> bool:
        """Whether as many frames of a camera were handed over as its account says."""
        seen = self.outcomes[each["name"]]
        failed = {name: count for name, count in seen.items() if name not in ("answered", "late")}
        return bool(
            seen["answered"] == each["answered"]
            and seen["late"] == each["dropped"].get("late", 0)
            and failed == each["failed"]
        )


def whose_turn(turn: int, servers: int) -> tuple[int, Callable[[FailingServer], None]]:
    """Which server is hurt, and how: one after the other, and the next round is for the next server."""
    rounds, place = divmod(turn, len(TROUBLES))
    return (rounds + place) % servers, TROUBLES[place]


async def soak(
    servers: Sequence[FailingServer], cameras: Sequence[MisbehavingCamera], fps: float, seconds: float, every: float
) -> tuple[dict[str, Any], Ledger, list[dict[str, Any]]]:
    """The fleet's summary, what was handed over, and rows of answers and memory over time."""
    configs = tuple(
        CameraConfig(f"camera {i + 1}", c.address, ("red circle",), (0.5,), model=servers[0].front, fps=fps)
        for i, c in enumerate(cameras)
    )
    fleet = [Camera(config) for config in configs]
    ledger, stop, samples = Ledger(), asyncio.Event(), []
    start, hurt = time.monotonic(), [""]

    async def look() -> None:
        while True:
            await asyncio.sleep(seconds / SAMPLES)
            done = [c.stats.answered for c in fleet]
            pids = [s.server.pid for s in servers]
            server = sum(sum(memory_mb(pid).values()) for pid in pids if pid)
            row = {
                "at_s": time.monotonic() - start,
                "answered": sum(done),
                "fewest": min(done),
                "load": os.getloadavg()[0],
                "client_mb": sum(memory_mb(os.getpid(), pids).values()),
                "server_mb": server,
            }
            samples.append(
                {name: round(value, 1) for name, value in row.items()}
                | {"restarts": sum(s.restarts for s in servers), "trouble": hurt[0], "each": done}
            )
            log.info("%s", " ".join(f"{name} {samples[-1][name]}" for name in COLUMNS))

    async def trouble() -> None:
        turn = 0
        while time.monotonic() - start + every < seconds * (1 - QUIET_SHARE):
            await asyncio.sleep(every)
            one, act = whose_turn(turn, len(servers))
            hurt[0] = f"{act.__name__.replace('_', ' ')} ({servers[one].server.grpc_url})"
            log.info("%s", hurt[0])
            await asyncio.to_thread(act, servers[one])
            turn += 1

    tasks = [asyncio.create_task(look()), asyncio.create_task(trouble())]
    asyncio.get_running_loop().call_later(seconds, stop.set)
    pool = open_pool(FleetConfig(configs, tuple(s.server.grpc_url for s in servers)))
    summary = await run_fleet(fleet, pool, ledger, stop)
    for task in tasks:
        task.cancel()
    for task in tasks:
        with contextlib.suppress(asyncio.CancelledError):
            await task  # raises what went wrong in it
    for each, camera in zip(summary["each"], cameras, strict=True):
        each["troubles"] = dict(camera.played)
    summary["outages"] = {endpoint.address: endpoint.outages for endpoint in pool.endpoints}
    return summary, ledger, samples


def held(
    summary: dict[str, Any], ledger: Ledger, samples: Sequence[dict[str, Any]], servers: Sequence[FailingServer]
) -> dict[str, bool | None]:
    """Each promise and whether it was kept; None where the run was too short to tell."""
    last = samples[2 * (len(samples) // 3) :]
    return {
        "every frame accounted for": all(
            each["read"] == each["answered"] + sum(each["dropped"].values()) + sum(each["failed"].values())
            for each in summary["each"]
        ),
        "every frame handed over once": not ledger.twice and all(ledger.agrees(each) for each in summary["each"]),
        "times never go back": not ledger.back_in_time,
        "every camera goes on": bool(
            last and all(after > before for before, after in zip(last[0]["each"], last[-1]["each"], strict=True))
        ),
        "every server comes back": all(s.server.running and not s.gave_up for s in servers),
        "client's memory is flat": flat(samples, "client_mb"),
        "servers' memory is flat": flat(samples, "server_mb"),
    }


def flat(samples: Sequence[dict[str, Any]], name: str) -> bool | None:
    """Whether the largest of these megabytes in the last third of the samples is at most a little above that in the
    second; None for too few samples."""
    third = len(samples) // 3
    second, last = samples[third : 2 * third], samples[2 * third :]
    if not second or not last:
        return None
    return bool(max(s[name] for s in last) <= max(s[name] for s in second) * (1 + LIMITS["growth"]))


def parser() -> ArgumentParser:
    p = make_parser("bench hard-soak", __doc__, EXAMPLES)
    p.add_argument("--minutes", type=float, default=60.0, help="default: %(default)s")
    p.add_argument("--trouble-every", type=float, default=150.0, help="seconds; of the servers (default: %(default)s)")
    p.add_argument("--fps", type=float, default=2.0, help="most frames a second of each camera (default: %(default)s)")
    p.add_argument("--resolution", type=int, default=140, help="of the small checkpoint (default: %(default)s)")
    p.add_argument("--repository", type=Path, default=Path("build/hard-soak"), help="default: %(default)s")
    p.add_argument("--seed", type=int, default=0, help="of what is random in the cameras (default: %(default)s)")
    record.add_output(p)
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """0: every promise was kept; 1: one was not; 2: it could not start, and stderr says why."""
    p = parser()
    a = p.parse_args(argv)
    cameras = [MisbehavingCamera(2 * i, a.seed) for i in range(CAMERAS)]
    try:
        steps.repository(a.repository, CHECKPOINT, a.resolution, 50)
        with contextlib.ExitStack() as stack:
            servers = [stack.enter_context(FailingServer(a.repository, a.resolution)) for _ in range(SERVERS)]
            run = soak(servers, cameras, a.fps, a.minutes * 60, a.trouble_every)
            summary, ledger, samples = asyncio.run(run)
            result = held(summary, ledger, samples, servers)
            summary["restarts"] = {s.server.grpc_url: s.restarts for s in servers}
            summary["gave_up"] = [s.gave_up for s in servers if s.gave_up]
    except (steps.DemoError, ServerError, ValueError) as error:
        return refuse(p.prog, error)
    finally:
        for camera in cameras:
            camera.close()
    data = record.new(p.prog, argv) | summary | {"held": result, "rows": samples}
    record.publish(a.output, data, "hard soak", COLUMNS)
    return 1 if False in result.values() else 0


if __name__ == "__main__":
    raise SystemExit(main())
