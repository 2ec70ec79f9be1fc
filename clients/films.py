"""`sam3-video`: films whose objects are followed, several at once; annotated films and JSON lines with ids come out.

Each film is a session of its own, in a thread of its own. The last line of stdout is one JSON object.

With --repository or --memory it starts a server for these films alone, at the finest resolution of the repository that
the memory has room for, and stops it at the end.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clients.connection import Client
from clients.console import make_parser, say
from clients.conversation import Tracks
from clients.draw import annotate
from clients.errors import Sam3ServerError, ServerUnavailable
from clients.outputs.records import frame_record
from clients.own_server import NoServer, own_server
from clients.session import Session
from clients.tls import CA_HELP, URL_HELP
from clients.transport import DEFAULT_TIMEOUT_S, only_video_model
from clients.video.encode import VideoWriter
from clients.video.frames import Frame, SourceError
from clients.video.sources import open_source
from ensemble.spec import DEFAULT_THRESHOLD
from ensemble.video.variant import DEFAULT_DETECT_EVERY, DEFAULT_OBJECTS

PATIENCE_S, PAUSE_S = 60.0, 0.5
"""A server that is away is waited for so long, and asked so often: the session then goes on with its ids."""
EXAMPLES = """examples:
  sam3-video yard.mp4 --classes person "red car"
  sam3-video gate.mp4 yard.mp4 --classes person --detect-every 8 --max-objects 32 --output build/films
  sam3-video yard.mp4 --classes person --memory 8GB --repository build/packages"""
REPOSITORY = Path("build/repository")
log = logging.getLogger(__name__)


@dataclass
class Account:
    """What became of one film. `objects` are different ids, `restarts` how often the session began anew."""

    film: str
    frames: int = 0
    objects: int = 0
    dropped_objects: int = 0
    restarts: int = 0
    fps: float = 0.0
    output: list[str] = field(default_factory=list)
    error: str = ""


def follow(path: Path, options: argparse.Namespace, stop: threading.Event) -> Account:
    """Sends a film through a session and writes what is found; ends early where `stop` is set. Whatever is wrong with
    the film, the server or the disk is the account's `error`, and what was written until then is whole."""
    account, seen, start = Account(str(path)), set[int](), time.perf_counter()
    stem = options.output / path.stem
    film, lines = stem.with_name(f"{stem.name}.tracks.mp4"), stem.with_name(f"{stem.name}.tracks.jsonl")
    try:
        with (
            open_source(path) as source,
            Client(options.url, protocol=options.protocol, timeout=options.timeout, ca=options.ca) as sam3,
        ):
            model = options.model or only_video_model(sam3.video_models(), sam3.server.address)
            settings = {"max_objects": options.max_objects, "detect_every": options.detect_every}
            options.output.mkdir(parents=True, exist_ok=True)
            with (
                sam3.session(options.classes, model=model, threshold=options.threshold, **settings) as session,
                VideoWriter(film, source.fps) as annotated,
                lines.open("w") as told,
            ):
                account.output = [str(film), str(lines)]
                for frame in source:
                    if stop.is_set():
                        break
                    tracks = answered(session, frame.rgb, stop)
                    seen |= {*tracks.track_ids.tolist(), *tracks.hidden_ids.tolist()}
                    annotated.write(annotate(frame.rgb, tracks, tracks=tracks.track_ids.tolist()))
                    told.write(json.dumps(track_record(frame, tracks)) + "\n")
                    account.frames += 1
                    account.dropped_objects += tracks.dropped_objects
                    account.restarts = tracks.restarts
    except (SourceError, Sam3ServerError, OSError, ValueError) as error:
        account.error = str(error)
    account.objects = len(seen)
    account.fps = round(account.frames / (time.perf_counter() - start), 2)
    return account


def follow_all(options: argparse.Namespace) -> list[Account]:
    """All films at once; Ctrl-C ends them early."""
    stop = threading.Event()
    with ThreadPoolExecutor(len(options.films), "film") as pool:
        running = [pool.submit(follow, film, options, stop) for film in options.films]
        try:
            for each in running:
                each.result()
        except KeyboardInterrupt:
            stop.set()
            log.info("stopped; the films so far are whole")
        return [each.result() for each in running]


def answered(session: Session, rgb: NDArray[np.uint8], stop: threading.Event) -> Tracks:
    """The tracks of the next frame. A server that is away is waited for; raises ServerUnavailable where that takes too
    long or `stop` is set."""
    until = time.monotonic() + PATIENCE_S
    while True:
        try:
            return session.frame(rgb)
        except ServerUnavailable:
            if time.monotonic() > until or stop.wait(PAUSE_S):
                raise


def track_record(frame: Frame, tracks: Tracks) -> dict[str, Any]:
    """One frame as plain data: as of `sam3-camera`, with each object's `id`."""
    record = frame_record(frame, tracks)
    for detection, number in zip(record["detections"], tracks.track_ids.tolist(), strict=True):
        detection["id"] = number
    return record


def main(argv: Sequence[str] | None = None) -> int:
    """0: every film was followed to its end; 1: one was not; 2: the arguments cannot be."""
    p = make_parser("sam3-video", __doc__, EXAMPLES)
    add = p.add_argument
    add("films", nargs="+", type=Path, metavar="FILM", help="video files, each with a name of its own")
    add("--classes", nargs="+", required=True, metavar="NAME", help="what to look for")
    add("--url", help=f"{URL_HELP}; default localhost")
    add("--ca", type=Path, metavar="FILE", help=CA_HELP)
    add("--protocol", choices=("grpc", "http"), default="grpc", help="default %(default)s")
    add("--memory", metavar="SIZE", help="start a server that takes at most so much of the GPU, as in 8GB")
    add("--repository", type=Path, metavar="FOLDER", help=f"start a server of it; with --memory default {REPOSITORY}")
    add("--model", help="a video front model; default: the server's only one")
    add("--timeout", type=float, default=DEFAULT_TIMEOUT_S, help="seconds a frame; default %(default)s")
    add("--max-objects", type=int, default=DEFAULT_OBJECTS, help="of a film at a time; default %(default)s")
    add("--detect-every", type=int, default=DEFAULT_DETECT_EVERY, help="frames between detections; default %(default)s")
    add("--threshold", type=float, default=DEFAULT_THRESHOLD, help="of detections; default %(default)s")
    add("--output", type=Path, default=Path(), metavar="FOLDER", help="for FILM.tracks.mp4 and .jsonl; default: here")
    options = p.parse_args(argv)
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(message)s")
    names = [film.stem for film in options.films]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        p.error(f"expected films of different names, since their outputs are named after them; twice: {twice[0]}")
    own = options.memory is not None or options.repository is not None
    if own and (options.url is not None or options.protocol != "grpc"):
        p.error("--url and --protocol are of a server that runs already: leave them out, or --memory and --repository")
    options.url = options.url or "localhost"
    try:
        with ExitStack() as stack:
            if own:
                load = len(options.films), options.max_objects
                server = own_server(options.repository or REPOSITORY, *load, options.memory)
                options.url = stack.enter_context(server)
            accounts = follow_all(options)
    except NoServer as error:
        p.error(str(error))
    for account in accounts:
        if account.error:
            log.error("sam3-video: %s: %s", account.film, account.error)
    say(json.dumps({"films": [asdict(account) for account in accounts]}))
    return int(any(account.error for account in accounts))


if __name__ == "__main__":
    sys.exit(main())
