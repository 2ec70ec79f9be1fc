"""Requests that are taken back, thousands of them in the moment of their answer, at a supervised server: it may die of
it (triton-inference-server/server#7368), but a camera beside them loses no frame without being told.

    python -m tests.fuzz.cancelled --requests 20000 --seed 1
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import numpy as np

from clients import Client
from clients.errors import Sam3ServerError
from clients.message import build_request
from ensemble.server.embedded import EmbeddedServer
from ensemble.server.supervision import supervise
from perf.sweep.metrics import process_memory_mb
from tests.ensemble.drawn import CLASSES, FRAME
from tests.fuzz import account, grpc_sender

SENDERS = 12
SPREAD = 0.15
"""Standard deviation of the moment of taking back, as a share of the usual time of an answer."""
QUICK = build_request(np.zeros((8, 8, 3), np.uint8), ["object"], threshold=7.0)
"""A request that is refused after a few milliseconds: many moments of an answer in little time."""


class Ledger(threading.Thread):
    """A camera that sends frames one after the other and counts what came of each, until `ending`."""

    def __init__(self, server: EmbeddedServer, model: str) -> None:
        super().__init__(daemon=True)
        self._server, self._model, self.ending = server, model, threading.Event()
        self.sent, self.outcomes, self.wrong = 0, Counter[str](), 0

    def run(self) -> None:
        with Client(self._server.grpc_url, model=self._model) as client:
            while not self.ending.is_set():
                self.sent += 1
                try:
                    found = client.detect(FRAME, CLASSES)
                    self.outcomes["answered"] += 1
                    self.wrong += not len(found)
                except Sam3ServerError as error:
                    self.outcomes[type(error).__name__] += 1
                    self.ending.wait(0.2)


class Moment:
    """When the answer is to be expected: a moving average, in seconds."""

    def __init__(self, rng: random.Random) -> None:
        self._rng, self.usual = rng, 0.01

    def draw(self) -> float:
        return max(0.0002, self.usual * self._rng.gauss(1, SPREAD))

    def answered(self, seconds: float) -> None:
        self.usual = 0.98 * self.usual + 0.02 * seconds

    def missed(self) -> None:
        self.usual *= 1.005


async def by_grpc(server: EmbeddedServer, model: str, count: int, moment: Moment, ways: Counter[str]) -> None:
    """Calls that are cancelled, whose deadline passes, or whose channel is closed."""
    request = grpc_sender.quick(model, QUICK)
    channel = grpc.aio.insecure_channel(server.grpc_url)
    for number in range(count):
        start, after = time.monotonic(), moment.draw()
        deadline = after if number % 3 == 1 else 60.0
        call = channel.unary_unary(grpc_sender.METHOD)(request, timeout=deadline)
        code = asyncio.ensure_future(call.code())
        await asyncio.wait({code}, timeout=after)
        status = code.result().name if code.done() else ""
        if status == "INVALID_ARGUMENT":
            moment.answered(time.monotonic() - start)
            ways["answered"] += 1
        elif status == "DEADLINE_EXCEEDED":
            moment.missed()
            ways["deadline"] += 1
        elif status:
            ways["nobody there"] += 1
            await asyncio.sleep(0.3)
        elif number % 30 == 2:
            moment.missed()
            ways["channel closed"] += 1
            await channel.close()
            channel = grpc.aio.insecure_channel(server.grpc_url)
        else:
            moment.missed()
            ways["cancelled"] += 1
            call.cancel()
    await channel.close()


async def by_http(server: EmbeddedServer, model: str, count: int, moment: Moment, ways: Counter[str]) -> None:
    """Connections that are closed before the answer."""
    host, _, port = server.http_url.rpartition(":")
    inputs = [
        {"name": "frame", "datatype": "UINT8", "shape": [1, 2, 2, 3], "data": [0] * 12},
        {"name": "classes", "datatype": "BYTES", "shape": [1, 1], "data": ["object"]},
        {"name": "threshold", "datatype": "FP32", "shape": [1, 1], "data": [7.0]},
    ]
    body = json.dumps({"inputs": inputs}).encode()
    head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: sam3\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    for _ in range(count):
        try:
            reader, writer = await asyncio.open_connection(host, int(port))
            start = time.monotonic()
            writer.write(head + body)
            try:
                await asyncio.wait_for(reader.readexactly(12), moment.draw())
                moment.answered(time.monotonic() - start)
                ways["HTTP answered"] += 1
            except asyncio.TimeoutError:
                moment.missed()
                ways["HTTP closed"] += 1
            writer.transport.abort()
        except (OSError, asyncio.IncompleteReadError):
            ways["nobody there"] += 1
            await asyncio.sleep(0.3)


async def take_back(server: EmbeddedServer, model: str, count: int, seed: int) -> dict[str, int]:
    """Sends `count` requests and takes most of them back; how each ended."""
    rng, ways = random.Random(seed), Counter[str]()
    moments = {by_grpc: Moment(rng), by_http: Moment(rng)}
    senders = [by_http if i % 4 == 3 else by_grpc for i in range(SENDERS)]
    shares = [count // SENDERS + (i < count % SENDERS) for i in range(SENDERS)]
    await asyncio.gather(
        *(way(server, model, share, moments[way], ways) for way, share in zip(senders, shares, strict=True))
    )
    return dict(ways)


def run(server: EmbeddedServer, model: str, count: int, seed: int) -> dict[str, Any]:
    """At a running server, which is supervised meanwhile: how the requests ended, the camera's account, and `problems`,
    of which there should be none."""
    ended, starts, start = threading.Event(), [0], server.start

    def again() -> EmbeddedServer:
        starts[0] += 1
        return start()

    server.start = again  # type: ignore[method-assign]
    watching = threading.Thread(target=supervise, args=(server, 5.0, ended), daemon=True)
    camera = Ledger(server, model)
    began, before_mb = time.monotonic(), process_memory_mb(server.pid)
    watching.start()
    camera.start()
    ways = asyncio.run(take_back(server, model, count, seed))
    before = camera.outcomes["answered"]
    problems = []
    for _ in range(600):  # whatever happened, it answers again
        if camera.outcomes["answered"] >= before + 3:
            break
        time.sleep(0.1)
    else:
        problems.append("the camera gets no answers any more")
    after_mb = process_memory_mb(server.pid)
    camera.ending.set()
    camera.join()
    ended.set()
    watching.join()
    if camera.sent != camera.outcomes.total():
        problems.append(f"{camera.sent} frames sent, {camera.outcomes.total()} accounted for")
    if set(camera.outcomes) - {"answered", "ServerUnavailable"} or camera.wrong:
        problems.append(f"{camera.wrong} wrong answers, outcomes {dict(camera.outcomes)}")
    return {
        "requests": count,
        "seed": seed,
        "seconds": round(time.monotonic() - began, 1),
        "ways": ways,
        "restarts": starts[0],
        "server_mb": [round(before_mb), round(after_mb)],
        "camera": {"sent": camera.sent, **camera.outcomes},
        "problems": problems,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """0: no problems; the last line of stdout is the account."""
    parser = account.options_of("cancelled", __doc__, "requests", 20_000)
    parser.add_argument("--repository", type=Path, default=Path("build/test-repository"), help="default: %(default)s")
    options = parser.parse_args(argv)
    with EmbeddedServer(options.repository) as server:
        told = run(server, server.health.fronts[0], options.requests, options.seed)
    return account.end(parser, argv, told)


if __name__ == "__main__":
    sys.exit(main())
