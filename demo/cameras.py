"""Many cameras at once: each film is decoded, its frames go to the server as JPEG, and the answers are kept with what
they cost.

Films and one asyncio client flow in, a `Reel` per camera flows out. Every camera has its own class list and waits only
for its own answers; one that fails loses frames, and the others go on.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from clients.connection import AsyncClient
from clients.detections import Detections
from clients.errors import Sam3ServerError
from clients.video.encode import to_jpeg
from clients.video.frames import SourceError
from clients.video.sources import open_source
from demo.steps import Film

SCORE_FLOOR = 0.1
"""Average precision needs the unsure answers too; the pictures show only the sure ones."""


@dataclass(slots=True, eq=False)
class Shot:
    """One frame that was answered: its number in the film, the JPEG that was sent, and what came back."""

    index: int
    jpeg: bytes
    found: Detections


@dataclass(slots=True, eq=False)
class Reel:
    """What one camera brought home; `seconds` from its first request to its last answer."""

    film: Film
    fps: float = 25.0
    shots: list[Shot] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def latencies(self) -> list[float]:
        return [shot.found.latency_ms for shot in self.shots]

    @property
    def frames_per_second(self) -> float:
        return len(self.shots) / self.seconds if self.seconds else 0.0


Progress = Callable[[Reel], None]
"""Told after every frame, answered or not."""


def percentile(values: Sequence[float], percent: float) -> float:
    """0.0 for no values."""
    return float(np.percentile(values, percent)) if len(values) else 0.0


def mean_batch(reels: Sequence[Reel]) -> float:
    """Frames per execution of the front model: each frame reports a batch of b and so is 1/b of an execution."""
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
    progress: Progress = lambda reel: None,
) -> tuple[list[Reel], float]:
    """Plays all films at once, as fast as answers come, `in_flight` frames of each under way; returns the reels and the
    seconds it took. `model` None is the server's only one.

    Before the clock starts every camera sends its first frame once: a server that has just started allocates its memory
    and encodes the prompts then.
    """
    async with AsyncClient(url, protocol=protocol, model=model, timeout=timeout) as client:
        await asyncio.gather(*(play(film, client, limit=1) for film in films))
        start = time.perf_counter()
        reels = await asyncio.gather(*(play(film, client, limit, in_flight, progress) for film in films))
        return list(reels), time.perf_counter() - start


async def play(
    film: Film,
    client: AsyncClient,
    limit: int | None = None,
    in_flight: int = 1,
    progress: Progress = lambda reel: None,
) -> Reel:
    """One camera. Raises nothing that its film or the server can cause: those frames are counted in `errors`."""
    reel = Reel(film)
    start = time.perf_counter()
    try:
        with open_source(film.video) as source:
            reel.fps = source.fps
            frames = iter(source)

            def read() -> tuple[int, bytes] | None:
                """Decoding and JPEG take milliseconds: done in a thread, so that the other cameras' answers are not
                held up."""
                frame = next(frames, None)
                return (
                    None
                    if frame is None or (limit is not None and frame.index >= limit)
                    else (frame.index, to_jpeg(frame.rgb))
                )

            turn = asyncio.Lock()  # a film has one reading head

            async def lens() -> None:
                while True:
                    async with turn:
                        ahead = await asyncio.to_thread(read)
                    if ahead is None:
                        return
                    await _ask(client, reel, *ahead)
                    progress(reel)

            await asyncio.gather(*(lens() for _ in range(in_flight)))
    except SourceError as error:
        reel.errors.append(str(error))
        progress(reel)
    reel.seconds = time.perf_counter() - start
    reel.shots.sort(key=lambda shot: shot.index)
    return reel


async def _ask(client: AsyncClient, reel: Reel, index: int, jpeg: bytes) -> None:
    try:
        found = await client.detect(jpeg, reel.film.classes, threshold=SCORE_FLOOR, mask_format="bits")
    except Sam3ServerError as error:
        reel.errors.append(f"frame {index}: {error}")
    else:
        reel.shots.append(Shot(index, jpeg, found))
