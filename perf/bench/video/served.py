"""Videos through the embedded server: sessions that send JPEG files of 1080p without a pause."""

from __future__ import annotations

import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from clients.connection import Client
from clients.conversation import SessionOptions, Tracks
from ensemble.video.variant import STAGES, VideoVariant
from perf.bench.video.flow import names_of, seeded
from perf.sweep import inputs

SIZE = (1920, 1080)
FILM = 24
"""Frames of a video; then the next one begins. With random weights no detection ever confirms an object."""
WARM_S = 6.0


@dataclass
class Seen:
    """What all sessions have seen while it counted."""

    latencies: list[float] = field(default_factory=list)
    stages: Counter[str] = field(default_factory=Counter)
    fewest: int = 2**31
    errors: list[str] = field(default_factory=list)
    counts: threading.Event = field(default_factory=threading.Event)
    stop: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)


def beginning(variant: VideoVariant, objects: int) -> Tracks:
    """Objects for a session to begin with, as an earlier one would have shown them."""
    seeds = seeded(variant.tracking.mask_size, objects)
    return Tracks(
        boxes=np.zeros((objects, 4), np.float32),
        scores=np.ones(objects, np.float32),
        class_ids=seeds.class_ids,
        classes=names_of(objects),
        presence=np.ones(objects, np.float32),
        frame_size=(SIZE[1], SIZE[0]),
        stage_ms={},
        batch=1,
        model=variant.front_name,
        latency_ms=0.0,
        mask_bits=seeds.bits,
        track_ids=seeds.ids,
    )


def play(url: str, variant: VideoVariant, first: int, objects: int, detect_every: int, seen: Seen) -> None:
    """One camera: videos one after the other, until `stop`."""
    files = [picture.jpeg for picture in inputs.pictures(inputs.FRAMES, *SIZE)]
    begin, number = beginning(variant, objects), first
    options = SessionOptions(model=variant.front_name, max_objects=objects, detect_every=detect_every, objects=begin)
    try:
        with Client(url, timeout=120) as client:
            while not seen.stop.is_set():
                with client.session(begin.classes, **options) as session:
                    for _ in range(FILM):
                        if seen.stop.is_set():
                            break
                        tracks = session.frame(files[number % len(files)])
                        number += 1
                        with seen.lock:
                            seen.fewest = min(seen.fewest, len(tracks) + len(tracks.hidden_ids))
                            if seen.counts.is_set():
                                seen.latencies.append(tracks.latency_ms)
                                seen.stages.update(tracks.stage_ms)
    except Exception as error:
        seen.errors.append(str(error))
        seen.stop.set()


def measure(
    url: str, variant: VideoVariant, sessions: int, objects: int, detect_every: int, seconds: float
) -> dict[str, Any]:
    """Figures of a window of so many seconds. Raises RuntimeError where a frame failed or an object was lost."""
    inputs.pictures(inputs.FRAMES, *SIZE)  # drawn once, before the clock runs
    seen = Seen()
    arguments = [(url, variant, 5 * n, objects, detect_every, seen) for n in range(sessions)]
    threads = [threading.Thread(target=play, args=each) for each in arguments]
    for thread in threads:
        thread.start()
    seen.stop.wait(WARM_S)
    seen.counts.set()
    start = time.perf_counter()
    seen.stop.wait(seconds)
    seen.counts.clear()
    spent = time.perf_counter() - start
    seen.stop.set()
    for thread in threads:
        thread.join()
    if seen.errors or seen.fewest < objects:
        raise RuntimeError(f"{variant.front_name}: fewest objects {seen.fewest} of {objects}; {seen.errors[:3]}")
    count = max(1, len(seen.latencies))
    p50, p95 = np.percentile(seen.latencies, [50, 95])
    return {
        "fps": round(len(seen.latencies) / spent, 2),
        "p50_ms": round(float(p50), 1),
        "p95_ms": round(float(p95), 1),
        "stage_ms": {name: round(seen.stages[name] / count, 2) for name in STAGES},
    }
