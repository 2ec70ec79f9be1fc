"""A day's demand: how many cameras are connected, and how many frames they send, second by second.

The motion gate leaves out what does not move, so a camera sends at its full rate while something moves before it, and
else a frame now and then, as often as `perf/results/cpu/gate.json` measured. Each camera begins and stops to move at
random; how often it begins follows the hour.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from perf import results

GATE = Path(__file__).parents[1] / "results" / "cpu" / "gate.json"
"""Rows of `sam3-perf bench gate`."""
GATE_FPS = 10.0
"""Frames a second of its films (`perf/bench/quiet_films.py`)."""
DAY_S = 86_400


@dataclass(frozen=True, slots=True)
class Demand:
    """What a day is drawn from: `fewest` cameras at night and `most` in the afternoon. `night` and `rush` are the
    shares of cameras before which something moves, at night and in the three busiest hours, `event_s` how many seconds
    it does; `still_fps` is what a still camera sends. At the hour `site` a share of the cameras connects within a
    minute; at the hour `storm` the share that moves is `storm_share` for a quarter of an hour."""

    fewest: int = 200
    most: int = 2000
    fps: float = 5.0
    night: float = 0.03
    rush: float = 0.3
    event_s: float = 8.0
    still_fps: float = 0.1
    site: float = 10.5
    site_share: float = 0.2
    storm: float = 20.5
    storm_share: float = 0.5


def measured(demand: Demand, path: Path = GATE) -> Demand:
    """With what the motion gate was measured to send: the share of frames in which something moves in a quiet scene,
    and a still camera's frames a second."""
    rows = [row for row in results.load(path)["rows"] if "cameras" not in row]  # where a camera has a server to itself
    frames = sum(row["frames"] for row in rows)
    moving = sum(row["frames"] * row["activity"] for row in rows)
    still = sum(row["sent"] for row in rows) - moving
    return replace(demand, night=moving / frames, still_fps=max(0.0, still) / (frames - moving) * GATE_FPS)


def connected(demand: Demand) -> NDArray[np.int64]:
    """Cameras at each second: they come from 6 to 9 and go from 18 to 22, and a site comes at once."""
    hours, before = np.arange(DAY_S) / 3600, 1 - demand.site_share
    times, shares = (0, 6, 9, demand.site, demand.site + 1 / 60, 18, 22), (0, 0, before, before, 1, 1, 0)
    return np.round(demand.fewest + (demand.most - demand.fewest) * np.interp(hours, times, shares)).astype(int)


def share_moving(demand: Demand) -> NDArray[np.float64]:
    """Of the connected cameras, expected at each second."""
    hours = np.arange(DAY_S) / 3600
    rushes = sum(np.exp(-(((hours - hour) / width) ** 2)) for hour, width in ((8.5, 1.2), (12.5, 1.5), (17.5, 1.3)))
    share = demand.night + (demand.rush - demand.night) * np.minimum(1, rushes)
    storm = (hours >= demand.storm) & (hours < demand.storm + 0.25)
    return np.where(storm, np.maximum(share, demand.storm_share), share)


def frames_per_second(demand: Demand, cameras: NDArray[np.int64], seed: int) -> NDArray[np.float64]:
    """Frames that all cameras make and that the gate lets through, at each second."""
    random = np.random.default_rng(seed)
    share, stops = share_moving(demand), 1 / demand.event_s
    moving = np.empty(DAY_S, int)
    now = int(random.binomial(cameras[0], share[0]))
    before = int(cameras[0])
    for second, (number, wanted) in enumerate(zip(cameras.tolist(), share.tolist(), strict=True)):
        if number < before:  # those that leave are as likely to move as others
            now = int(random.binomial(now, number / before))
        before = number
        begins = min(1.0, stops * wanted / (1 - wanted))
        now += int(random.binomial(number - now, begins)) - int(random.binomial(now, stops))
        moving[second] = now
    return moving * demand.fps + (cameras - moving) * demand.still_fps
