"""Videos for a long time: is the memory that a server promised all that it takes, is every frame answered in order?

Sessions play drawn films one after the other and for ever, each in a thread of its own, without a pause: a cut between
two films is a frame in which everything is new. The exit status is 1 where a frame fails, comes out of order, or a
session has more objects than it may, and where memory, of the server's processes or of the GPU, grows by more than 1 %
in the second half. Before that, ONNX Runtime's and Triton's memory grows to what the largest batch needs, as in `bench
soak`.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import threading
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from typing import Any

from clients.connection import Client
from clients.errors import Sam3ServerError
from ensemble.server import gpu
from ensemble.server.embedded import EmbeddedServer
from ensemble.server.requirements import ServerError
from export.tiny.video.evaluate import held_out_video
from perf import record
from perf.bench.soak import memory_mb
from perf.console import make_parser, refuse

GROWTH = 0.01
"""Memory may grow by so much in the second half of the frames."""
SAMPLES = 20
FILMS, FILM_FRAMES = 6, 20
EXAMPLES = """example:
  sam3-perf bench video-soak --repository build/videos --frames 10000 --sessions 2"""
log = logging.getLogger(__name__)


@dataclass
class Account:
    """What all sessions have seen so far."""

    answered: int = 0
    objects: int = 0
    most_objects: int = 0
    dropped: int = 0
    wrong: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


def play(
    url: str, model: str, first: int, options: argparse.Namespace, account: Account, stop: threading.Event
) -> None:
    """One session: films from `first` on, until `stop`."""
    films = [held_out_video(number % FILMS, FILM_FRAMES) for number in range(first, first + FILMS)]
    names = tuple(dict.fromkeys(name for film in films for name in film.names))[: options.classes]
    frames = cycle([frame for film in films for frame in film.frames])
    known: set[int] = set()
    with Client(url, timeout=120) as client:
        session = client.session(names, model=model, max_objects=options.objects, detect_every=options.detect_every)
        for index, frame in enumerate(frames):
            if stop.is_set():
                break
            try:
                tracks = session.frame(frame)
            except Sam3ServerError as error:
                account.wrong.append(str(error))
                stop.set()
                break
            seen = [*tracks.track_ids.tolist(), *tracks.hidden_ids.tolist()]
            with account.lock:
                account.answered += 1
                account.objects += len(set(seen) - known)
                account.most_objects = max(account.most_objects, len(seen))
                account.dropped += tracks.dropped_objects
                if tracks.frame_index != index or len(seen) > options.objects:
                    account.wrong.append(f"frame {index}: answered as {tracks.frame_index} with {len(seen)} objects")
            known.update(seen)
        session.close()


def slots(server: EmbeddedServer) -> dict[str, float]:
    """Slots of the bank, used and in all."""
    with urllib.request.urlopen(f"http://{server.metrics_url}/metrics") as page:
        lines = [line for line in page.read().decode().splitlines() if line.startswith("sam3_track_slots{")]
    return {line.split('state="')[1].split('"')[0]: float(line.rsplit(" ", 1)[1]) for line in lines}


def soak(options: argparse.Namespace) -> tuple[list[dict[str, Any]], Account]:
    """A row for each of SAMPLES looks, and the account."""
    account, stop, rows, before = Account(), threading.Event(), [], gpu.used_mb()
    with EmbeddedServer(
        options.repository, resolutions=[options.resolution], video_memory_mb=options.video_memory
    ) as server:
        assert server.pid is not None, "it has started"
        model = f"sam3_video_r{options.resolution}"
        threads = [
            threading.Thread(target=play, args=(server.grpc_url, model, n, options, account, stop))
            for n in range(options.sessions)
        ]
        for thread in threads:
            thread.start()
        for look in range(1, SAMPLES + 1):
            while account.answered < options.frames * look / SAMPLES and not stop.wait(0.5):
                pass
            by_model = {name: round(mb, 1) for name, mb in sorted(memory_mb(server.pid).items())}
            row = {"answered": account.answered, "server_mb": round(sum(by_model.values()), 1), **by_model}
            row["gpu_mb"] = round(gpu.used_mb() - before)
            rows.append(row | {f"slots_{state}": value for state, value in slots(server).items()})
            log.info("%s", rows[-1])
        stop.set()
        for thread in threads:
            thread.join()
    return rows, account


def growth(rows: Sequence[dict[str, Any]]) -> float:
    """How much the server's processes, or the GPU's memory, took more at most than when half the looks were over."""
    settled = rows[len(rows) // 2 :]
    found = []
    for name in ("server_mb", "gpu_mb"):
        first, most = settled[0][name], max(row[name] for row in settled)
        found.append(most / first - 1 if first else 0.0)
    return max(found)


def main(argv: Sequence[str] | None = None) -> int:
    """0: held; 1: not; 2: refused. The last line of stdout is one JSON object."""
    p = make_parser("bench video-soak", __doc__, EXAMPLES)
    add = p.add_argument
    add("--repository", type=Path, default=Path("build/videos"), help="with a tracker; default %(default)s")
    add("--resolution", type=int, default=140, help="default %(default)s")
    add("--frames", type=int, default=10_000, help="of all sessions together; default %(default)s")
    add("--sessions", type=int, default=2, help="default %(default)s")
    add("--objects", type=int, default=8, help="most of a session; default %(default)s")
    add("--classes", type=int, default=4, help="names a session; default %(default)s")
    add("--detect-every", type=int, default=2, help="default %(default)s")
    add("--video-memory", type=float, default=20.0, metavar="MB", help="default %(default)s")
    record.add_output(p)
    options = p.parse_args(argv)
    head = record.new(p.prog, argv)
    try:
        rows, account = soak(options)
    except ServerError as error:
        return refuse(p.prog, error)
    bank = {row["slots_total"] for row in rows}
    more = growth(rows)
    summary = {
        "answered": account.answered,
        "objects": account.objects,
        "most_objects": account.most_objects,
        "dropped_objects": account.dropped,
        "wrong": account.wrong[:5],
        "growth": round(more, 4),
        "bank_constant": len(bank) == 1,
    }
    record.write(options.output, {**head, "summary": summary, "rows": rows})
    print(json.dumps({"output": str(options.output), **summary}))
    return int(bool(account.wrong) or more > GROWTH or len(bank) != 1)


if __name__ == "__main__":
    sys.exit(main())
