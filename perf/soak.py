"""`python -m perf.soak`: many cameras for a long time: does memory grow, is any frame unaccounted for, does a camera starve?

Drawn films flow in, played in real time and for ever through `clients/fleet.py`; a line every few seconds and one JSON object
flow out. The embedded server is a child of this process, so that both sides' memory can be read; `--url` asks a server that runs
already, whose memory then is not known. The limits that the last line is held to stand in `LIMITS`.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from clients.config import CameraConfig, FleetConfig
from clients.fleet import Answer, Camera, open_pool, run_fleet
from demo import steps
from ensemble.preflight import ServerError
from ensemble.server import EmbeddedServer

HOME = Path(__file__).parent.parent
LIMITS = {"growth": 0.05, "fairness": 0.9}
"""Memory may grow by so much after the first minute; the least served camera gets so much of what the most served one gets."""
SAMPLE_S = 5.0
PAGE = resource.getpagesize()


def rss_mb(pids: Sequence[int]) -> float:
    """Resident memory of processes in MB, shared pages counted once for each; ended ones count nothing."""
    total = 0
    for pid in pids:
        try:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
        except (OSError, IndexError):
            continue
    return round(total / 1e6, 1)


def family(pid: int) -> list[int]:
    """A process and its descendants: Triton runs each python model in a process of its own."""
    found, todo = [], [pid]
    while todo:
        found.append(todo.pop())
        for children in Path(f"/proc/{found[-1]}/task").glob("*/children"):
            try:
                todo += [int(child) for child in children.read_text().split()]
            except OSError:
                continue
    return found


async def soak(
    films: Sequence[steps.Film], url: str, model: str, a: argparse.Namespace, server_pid: int | None, say: Callable[[str], None]
) -> dict[str, Any]:
    """Runs the cameras for `a.seconds`; the fleet's summary with memory after a minute and at the end, and the client's CPU."""
    configs = tuple(
        CameraConfig(
            f"camera {i + 1}",
            str(films[i % len(films)].video),
            tuple(films[i % len(films)].classes),
            (0.5,) * len(films[i % len(films)].classes),
            model=model,
            fps=a.fps,
            deadline_s=a.deadline_ms / 1e3,
            in_flight=a.in_flight,
            masks=a.masks,
            realtime=True,
            loop=True,
        )
        for i in range(a.cameras)
    )
    cameras = [Camera(config) for config in configs]
    samples: list[tuple[float, float, float]] = []
    start, stop = time.monotonic(), asyncio.Event()

    async def look() -> None:
        while True:
            await asyncio.sleep(SAMPLE_S)
            seconds = time.monotonic() - start
            samples.append((seconds, rss_mb([os.getpid()]), rss_mb(family(server_pid)) if server_pid else 0.0))
            done = [c.tally.answered for c in cameras]
            say(f"{seconds:6.0f} s  {sum(done)} answered, {min(done)} to {max(done)} a camera; "
                f"client {samples[-1][1]:.0f} MB, server {samples[-1][2]:.0f} MB")  # fmt: skip

    def ignore(camera: Camera, answer: Answer) -> None:
        """The tally is all that is wanted."""

    looking = asyncio.create_task(look())
    asyncio.get_running_loop().call_later(a.seconds, stop.set)
    cpu = time.process_time()
    summary = await run_fleet(cameras, open_pool(FleetConfig(configs, (url,)), say), ignore, stop)
    looking.cancel()
    each = summary.pop("each")
    summary["client_cpu_percent_per_camera"] = round(100 * (time.process_time() - cpu) / summary["seconds"] / len(cameras), 2)
    minute = next((s for s in samples if s[0] >= 60), samples[0] if samples else (0.0, 0.0, 0.0))
    last = samples[-1] if samples else minute
    for i, side in ((1, "client"), (2, "server")):
        summary[f"{side}_rss_mb"] = {"at_s": round(minute[0]), "then": minute[i], "end": last[i]}
    accounted = all(t["read"] == t["answered"] + sum(t["dropped"].values()) + sum(t["failed"].values()) for t in each)
    grown = [s["end"] / s["then"] - 1 for s in (summary["client_rss_mb"], summary["server_rss_mb"]) if s["then"]]
    summary["held"] = {
        "every frame accounted for": accounted,
        "fairness": summary["fairness"] >= LIMITS["fairness"],
        "memory": all(g <= LIMITS["growth"] for g in grown) if a.seconds > 60 else None,  # too short to tell
    }
    return summary


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(
        prog="python -m perf.soak",
        description="Stream many cameras for a long time and see what grows, what is lost and who starves.",
        epilog="example: python -m perf.soak --cameras 16 --seconds 600",
    )
    p.add_argument("--cameras", type=int, default=16, help="default: %(default)s")
    p.add_argument("--seconds", type=float, default=600.0, help="default: %(default)s")
    p.add_argument("--fps", type=float, default=2.0, help="of each camera (default: %(default)s)")
    p.add_argument("--deadline-ms", type=float, default=5000.0, help="capture to answer (default: %(default)s)")
    p.add_argument("--in-flight", type=int, default=2, help="of each camera (default: %(default)s)")
    p.add_argument("--masks", choices=("none", "bits", "rle"), default="none", help="default: %(default)s")
    p.add_argument("--resolution", type=int, default=252, help="of the small checkpoint (default: %(default)s)")
    p.add_argument("--films", type=Path, default=Path("build/soak/films"), help="drawn where missing (default: %(default)s)")
    p.add_argument("--repository", type=Path, default=Path("build/repository"), help="default: %(default)s")
    p.add_argument("--checkpoint", type=Path, default=HOME / "export/tiny/checkpoint", help="default: the small one")
    p.add_argument("--url", help="host:port of a server that runs already; needs --model")
    p.add_argument("--model", help="front model to ask (default: the exported one)")
    return p


def main(argv: Sequence[str] | None = None) -> int:
    """0: the limits held; 1: one did not; 2: it could not start, and stderr says why."""
    p = parser()
    a = p.parse_args(argv)
    if a.url and not a.model:
        p.error("--url needs --model, such as --model sam3_r672")

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    try:
        films = steps.films(a.films, min(a.cameras, 8), 40, "640x360", 7)
        if a.url:
            result = asyncio.run(soak(films, a.url, a.model, a, None, say))
        else:
            model = a.model or steps.repository(a.repository, a.checkpoint, a.resolution, 50)
            with EmbeddedServer(a.repository, log=say) as server:
                result = asyncio.run(soak(films, server.grpc_url, model, a, server.pid, say))
    except (steps.DemoError, ServerError, ValueError) as error:
        say(f"soak: {error}")
        print(json.dumps({"error": str(error)}))
        return 2
    print(json.dumps(result))
    return 1 if False in result["held"].values() else 0


if __name__ == "__main__":
    sys.exit(main())
