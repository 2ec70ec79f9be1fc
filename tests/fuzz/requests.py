"""Requests that are wrong, thousands of them over both protocols, while a camera goes on: nothing may crash, hang,
answer in a program's words, or cost the camera a frame.

    python -m tests.fuzz.requests --cases 10000 --seed 1
"""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from clients import Client
from clients.errors import OF_ANOTHER, TRIES, Sam3ServerError
from ensemble.server.embedded import EmbeddedServer
from perf.sweep.metrics import process_memory_mb
from tests.ensemble.drawn import CLASSES, FRAME
from tests.fuzz import account, grpc_sender, http_sender
from tests.fuzz.cases import make
from tests.fuzz.reply import TIMEOUT_S, Reply

SENDERS = 8
CAMERA_PAUSE_S = 0.1
LOOKS = 8
"""At the server's memory, after the one before the first case."""


@dataclass(slots=True)
class Camera:
    """A camera that does nothing wrong: sends one frame again and again, over both protocols in turn, and compares each
    answer with the first. `wrong` says what was."""

    server: EmbeddedServer
    model: str
    sent: int = 0
    right: int = 0
    slowest_s: float = 0.0
    wrong: list[str] = field(default_factory=list)
    ending: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        with (
            Client(self.server.grpc_url, model=self.model, timeout=TIMEOUT_S) as grpc,
            Client(self.server.http_url, protocol="http", model=self.model, timeout=TIMEOUT_S) as http,
        ):
            expected = grpc.detect(FRAME, CLASSES, mask_format="bits")
            while not self.ending.is_set():
                client = (grpc, http)[self.sent % 2]
                self.sent += 1
                start = time.monotonic()
                try:
                    found = client.detect(FRAME, CLASSES, mask_format="bits")
                    same = found.labels == expected.labels and (found.masks == expected.masks).mean() > 0.999
                    same = same and np.allclose(found.boxes, expected.boxes, atol=1e-3)
                    self.right += bool(same)
                    if not same:
                        self.wrong.append(f"expected {expected}, got {found}")
                except Sam3ServerError as error:
                    self.wrong.append(str(error))
                self.slowest_s = max(self.slowest_s, time.monotonic() - start)
                self.ending.wait(CAMERA_PAUSE_S)


def run(server: EmbeddedServer, models: Sequence[str], cases: int, seed: int) -> dict[str, Any]:
    """Sends the cases; what was answered, and `problems`, of which there should be none."""
    channel = grpc_sender.open_channel(server.grpc_url)
    camera = Camera(server, models[0])
    thread = threading.Thread(target=camera.run, daemon=True)
    thread.start()
    pid, kinds, problems, slowest = server.pid, Counter[str](), [], (0.0, "")
    memory = [process_memory_mb(pid)]

    def one(number: int) -> tuple[str, Reply]:
        for _ in range(TRIES):
            case = make(seed, number, models[number % len(models)])
            by_http = case.rng.random() < 0.5
            reply = http_sender.send(case, server.http_url) if by_http else grpc_sender.send(case, channel)
            if case.spoilt or OF_ANOTHER not in reply.text:
                break
        return f"{seed}/{number} {'http' if by_http else 'grpc'} {'+'.join(case.spoilt) or 'good'}", reply

    start = time.monotonic()
    with ThreadPoolExecutor(SENDERS) as pool:
        for number, (name, reply) in enumerate(pool.map(one, range(cases)), 1):
            if number % -(-cases // LOOKS) == 0:
                memory.append(process_memory_mb(pid))
            kinds[f"{name.split()[1]} {reply.kind}"] += 1
            slowest = max(slowest, (round(reply.seconds, 2), name))
            if problem := reply.problem():
                problems.append(f"{name}: {problem}")
            if name.endswith("good") and reply.kind != "answered":
                problems.append(f"{name}: expected an answer, got {reply}")
    seconds = time.monotonic() - start
    camera.ending.set()
    thread.join()
    channel.close()
    problems += camera.wrong
    if not server.running or server.pid != pid:
        problems.append("the server has ended")
    return {
        "cases": cases,
        "seed": seed,
        "seconds": round(seconds, 1),
        "answers": dict(sorted(kinds.items())),
        "slowest": {"seconds": slowest[0], "case": slowest[1]},
        "camera": {"sent": camera.sent, "right": camera.right, "slowest_s": round(camera.slowest_s, 2)},
        "server_mb": [round(mb) for mb in memory],
        "same_process": server.running and server.pid == pid,
        "problems": problems,
    }


def main(argv: Sequence[str] | None = None) -> int:
    """0: no problems; the last line of stdout is the account."""
    parser = account.options_of("requests", __doc__)
    parser.add_argument("--repository", type=Path, default=Path("build/test-repository"), help="default: %(default)s")
    options = parser.parse_args(argv)
    with EmbeddedServer(options.repository) as server:
        told = run(server, server.health.fronts, options.cases, options.seed)
    return account.end(parser, argv, told)


if __name__ == "__main__":
    sys.exit(main())
