"""`python -m demo`: eight cameras on one server, then one whose objects it follows; neither Docker nor a GPU is needed.

It draws the films, exports the small checkpoint, starts the embedded Triton, and streams the eight films at once, then
the ninth, in which something is hidden for a time. It writes a mosaic and the followed film as video and PNG and prints
two tables; the last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from clients.console import make_parser
from clients.errors import Sam3ServerError
from demo import cameras, followed, mosaic, report, score, steps
from ensemble.server.embedded import EmbeddedServer
from ensemble.server.requirements import ServerError
from export.tiny import CHECKPOINT

TABLE_WIDTH = 118
"""Characters of the table; a narrower terminal wraps its lines."""
EXAMPLES = """examples:
  python -m demo
  python -m demo --frames 100 --cameras 4 --output build/four
  python -m demo --url gpu-host:8001 --model sam3_r672     on a running server
"""


def parser() -> argparse.ArgumentParser:
    p = make_parser("python -m demo", "Stream drawn films from several cameras through one SAM3 server.", EXAMPLES)
    p.add_argument(
        "--output", type=Path, default=Path("build/demo"), help="folder for films and results (default: %(default)s)"
    )
    p.add_argument("--cameras", type=int, default=8, help="default: %(default)s")
    p.add_argument("--frames", type=int, default=40, help="frames of each camera (default: %(default)s)")
    p.add_argument("--in-flight", type=int, default=1, help="frames of each camera in flight (default: %(default)s)")
    p.add_argument("--size", default="640x360", help="of the films, WIDTHxHEIGHT (default: %(default)s)")
    p.add_argument("--seed", type=int, default=7, help="of the drawn films (default: %(default)s)")
    p.add_argument("--resolution", type=int, default=252, help="of the model, a multiple of 14 (default: %(default)s)")
    p.add_argument("--queries", type=int, default=50, help="object queries of the decoder (default: %(default)s)")
    p.add_argument("--checkpoint", type=Path, default=CHECKPOINT, help="default: the small one")
    p.add_argument("--repository", type=Path, default=Path("build/repository"), help="default: %(default)s")
    p.add_argument("--url", help="host:port of a running server, instead of starting one")
    p.add_argument("--protocol", choices=("grpc", "http"), default="grpc", help="default: %(default)s")
    p.add_argument("--model", help="front model to ask (default: the exported one)")
    return p


class Steps:
    """Prints the steps with their numbers and how long each took."""

    def __init__(self, console: Console, total: int) -> None:
        self.console, self.total, self.number = console, total, 0

    @contextlib.contextmanager
    def __call__(self, what: str) -> Iterator[None]:
        self.number += 1
        self.console.print(f"[bold]{self.number}/{self.total}[/] {what}", highlight=False)
        start = time.perf_counter()
        yield
        self.console.print(f"    [dim]{time.perf_counter() - start:.1f} s[/]", highlight=False)


def demonstrate(a: argparse.Namespace, console: Console) -> int:
    """The whole run; returns the exit code. Raises DemoError, ServerError."""
    began = time.perf_counter()
    step = Steps(console, 5 if a.url else 7)
    model = a.model
    with step(f"films: {a.cameras} cameras, {a.frames} frames of {a.size}, in {a.output / 'films'}"):
        films = steps.films(a.output / "films", a.cameras, a.frames, a.size, a.seed)
    with contextlib.ExitStack() as stack:
        url = a.url
        if not url:
            with step(f"model repository: {a.repository}, ONNX Runtime, {a.resolution} pixels"):
                video = steps.has_tracker(a.checkpoint)
                exported = steps.repository(a.repository, a.checkpoint, a.resolution, a.queries, video)
                model = model or exported
            with step("embedded Triton server"):
                server = stack.enter_context(EmbeddedServer(a.repository))
                url = server.grpc_url if a.protocol == "grpc" else server.http_url
        with (
            step(f"streaming over {a.protocol} to {model or 'its only model'} at {url}, with masks"),
            progress_bars(films, a.frames) as progress,
        ):
            reels, seconds = asyncio.run(
                cameras.stream(
                    films, url, model, protocol=a.protocol, limit=a.frames, in_flight=a.in_flight, progress=progress
                )
            )
        with step("one camera more, whose objects the server follows through an occlusion"):
            occluded, told = follow(a, url, model, console)
    cameras_file = steps.configuration(films, model, a.output, occluded, told.get("model"))
    model = next((shot.found.model for reel in reels for shot in reel.shots), model or "no model")
    with step("score against the films' ground truth"):
        total, each = score.score(reels)
    result = report.summary(reels, seconds, total)
    with step(f"mosaic: {a.output / 'mosaic.mp4'}, {a.output / 'mosaic.png'}"):
        mosaic.write(reels, report.figures(reels, result, model), a.output / "mosaic.mp4", a.output / "mosaic.png")
    console.print(report.table(reels, result, total, each))
    if occluded is not None:
        console.print(followed.table(told))
    errors = [f"{reel.film.name}: {error}" for reel in reels for error in reel.errors[:3]]
    for line in [*errors, *(f"followed: {error}" for error in told.get("errors", ()))]:
        console.print(line, style="red", markup=False)
    result |= {"seconds": round(time.perf_counter() - began, 1), "cpus": os.cpu_count(), "model": model}
    result |= {
        "followed": told,
        "video": str(a.output / "mosaic.mp4"),
        "picture": str(a.output / "mosaic.png"),
        "cameras_file": str(cameras_file),
    }
    (a.output / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result), flush=True)
    return 1 if result["failed"] or not result["frames"] or told.get("failed") else 0


def follow(
    a: argparse.Namespace, url: str, front: str | None, console: Console
) -> tuple[steps.Film | None, dict[str, Any]]:
    """Streams the film whose objects are followed and draws it; returns it and its figures. A server without videos is
    no failure: then there is no film, and the figures are an `error`. Raises DemoError."""
    try:
        model = followed.video_model(url, a.protocol, front)
    except Sam3ServerError as error:
        console.print(f"    left out: {error}", style="yellow", markup=False)
        return None, {"error": str(error)}
    film = steps.occluded_film(a.output / "films", a.size, a.seed)
    with progress_bars([film], film.count) as progress:
        streaming = cameras.stream([film], url, model, protocol=a.protocol, track="masks", progress=progress)
        (reel,), seconds = asyncio.run(streaming)
    video, picture = a.output / "followed.mp4", a.output / "followed.png"
    followed.draw(reel, video, picture)
    told = {"model": model, **followed.summary(reel, seconds), "errors": reel.errors[:3]}
    return film, told | {"video": str(video), "picture": str(picture)}


@contextlib.contextmanager
def progress_bars(films: Sequence[steps.Film], frames: int) -> Iterator[cameras.Progress]:
    """A progress bar per camera, on stderr."""
    columns = (TextColumn("    {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        tasks = {film.name: progress.add_task(film.name, total=frames) for film in films}
        yield lambda reel: progress.update(tasks[reel.film.name], completed=len(reel.shots) + len(reel.errors))


def main(argv: Sequence[str] | None = None) -> int:
    """0: every frame was answered; 1: some were not; 2: a step could not be done, and stderr says why."""
    a = parser().parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    console = Console()
    console.width = max(console.width, TABLE_WIDTH) if console.is_terminal else 150
    try:
        return demonstrate(a, console)
    except (steps.DemoError, ServerError, ValueError) as error:
        print(f"demo: {error}", file=sys.stderr)
        print(json.dumps({"error": str(error)}))
        return 2
    except KeyboardInterrupt:
        print(json.dumps({"error": "interrupted"}))
        return 130


if __name__ == "__main__":
    sys.exit(main())
