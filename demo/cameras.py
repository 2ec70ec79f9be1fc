"""The cameras of the demonstration: films that a fleet plays at once, as fast as the server answers.

Each film is a camera with its own classes. The frames of a film are never dropped: each one is answered or counted as
failed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from clients.detections import Detections
from clients.fleet.camera import Camera
from clients.fleet.config import CameraConfig, FleetConfig
from clients.fleet.fleet import open_pool, run_fleet
from clients.fleet.pool import Pool
from clients.fleet.request import Answer
from clients.transport import Server
from demo.steps import DETECT_EVERY, Film
from ensemble.spec import DEFAULT_THRESHOLD

SCORE_FLOOR = 0.1
"""Average precision counts low scores too; the mosaic shows only detections above the usual threshold."""
FATAL = ("unavailable", "no_model", "other_version")
"""Outcomes after which no frame can be answered."""


@dataclass(slots=True, eq=False)
class Shot:
    """One answered frame: its number in the film, the JPEG that was sent, and the detections."""

    index: int
    jpeg: bytes
    found: Detections


@dataclass(slots=True, eq=False)
class Reel:
    """The results of one film: answered frames, and an error for each other one. `seconds` is from the start of the run
    to the film's last answer."""

    film: Film
    fps: float = 25.0
    shots: list[Shot] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def latencies(self) -> list[float]:
        """Milliseconds from request to answer, as the client measured them."""
        return [shot.found.latency_ms for shot in self.shots]

    @property
    def frames_per_second(self) -> float:
        """Answered frames per second."""
        return len(self.shots) / self.seconds if self.seconds else 0.0


Progress = Callable[[Reel], None]
"""Called after each frame, answered or not, to draw a progress bar."""


def mean_batch(reels: Sequence[Reel]) -> float:
    """Frames per execution of the front model: a frame in a batch of b is 1/b of an execution."""
    batches = [shot.found.batch for reel in reels for shot in reel.shots]
    return len(batches) / sum(1 / b for b in batches) if batches else 0.0


async def stream(
    films: Sequence[Film],
    url: str,
    model: str | None,
    *,
    protocol: str = "grpc",
    limit: int | None = None,
    in_flight: int = 1,
    timeout: float = 60.0,
    track: str | None = None,
    progress: Progress = lambda reel: None,
) -> tuple[list[Reel], float]:
    """Plays all films at once with `in_flight` frames of each under way; returns the reels and the seconds that it
    took. `model` None is the server's only one, `limit` the most frames of each film, `timeout` in seconds per frame;
    `track` is as of `CameraConfig`.

    Every camera first sends one frame that is not counted: a server that has just started allocates its memory and
    encodes the prompts then.
    """
    address = Server(url, protocol, timeout).address
    config = FleetConfig((), (address,), protocol, timeout, in_flight=max(1, len(films) * in_flight))
    await play(films, open_pool(config), model, limit=1, track=track)
    clock = asyncio.get_running_loop().time
    start = clock()
    reels = await play(
        films, open_pool(config), model, limit=limit, in_flight=in_flight, track=track, progress=progress
    )
    return reels, clock() - start


async def play(
    films: Sequence[Film],
    pool: Pool,
    model: str | None = None,
    *,
    limit: int | None = None,
    in_flight: int = 1,
    track: str | None = None,
    progress: Progress = lambda reel: None,
) -> list[Reel]:
    """One run of a fleet over the films, which closes the pool. Raises nothing that a film or the server can cause:
    those are `errors` of the reels. A server that does not answer, or lacks the model, ends the run.
    """
    clock = asyncio.get_running_loop().time
    start, stop, fatal = clock(), asyncio.Event(), []
    reels = {film.name: Reel(film) for film in films}
    cameras = []
    for film in films:
        thresholds = (DEFAULT_THRESHOLD if track else SCORE_FLOOR,) * len(film.classes)
        source, classes = str(film.video), tuple(film.classes)
        config = CameraConfig(
            film.name,
            source,
            classes,
            thresholds,
            model=model,
            in_flight=in_flight,
            masks="bits",
            track=track,
            detect_every=DETECT_EVERY,
        )
        cameras.append(Camera(config, limit=limit))

    def handle(camera: Camera, answer: Answer) -> None:
        reel = reels[camera.config.name]
        reel.seconds = clock() - start
        if answer.found is not None:
            reel.shots.append(Shot(answer.frame.index, answer.frame.jpeg, answer.found))
        else:
            reel.errors.append(f"frame {answer.frame.index}: {answer.error}")
            if answer.outcome in FATAL:
                fatal.append(answer.error)
                stop.set()
        progress(reel)

    await run_fleet(cameras, pool, handle, stop)
    for camera in cameras:
        reel = reels[camera.config.name]
        reel.fps = camera.reader.source_fps or reel.fps
        if camera.reader.state == "failed":
            reel.errors.append(camera.reader.error)
            progress(reel)
        elif fatal:
            expected = reel.film.count if limit is None else min(limit, reel.film.count)
            reel.errors += [f"not sent: {fatal[0]}"] * (expected - len(reel.shots) - len(reel.errors))
    return list(reels.values())
