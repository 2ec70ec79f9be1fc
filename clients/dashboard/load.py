"""How busy the machines are: Triton's metrics pages and the kernel's counters flow in, a few figures for the page's
head flow out.

A figure that nobody can give is None and never 0: a server without a GPU is not a GPU without work.
"""

from __future__ import annotations

import asyncio
import re
import time
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any

METRICS_PORT = 8002
"""Triton's usual one."""
FRESH_S = 2.0
"""Figures are asked for no more often, however many browsers look."""
TIMEOUT_S = 2.0
GPU_LINE = re.compile(
    r'^nv_gpu_(?P<metric>utilization|memory_used_bytes|memory_total_bytes)\{[^}]*gpu_uuid="(?P<gpu>[^"]+)"[^}]*\}'
    r" (?P<value>\S+)$",
    re.MULTILINE,
)


def gpus(page: str) -> list[dict[str, Any]]:
    """Each GPU of a metrics page: `use` in 0..1, `used_mb` and `total_mb`, each None where the page does not say."""
    found: dict[str, dict[str, float]] = {}
    for line in GPU_LINE.finditer(page):
        found.setdefault(line["gpu"], {})[line["metric"]] = float(line["value"])

    def megabytes(value: float | None) -> int | None:
        return None if value is None else round(value / 1e6)

    return [
        {
            "use": gpu.get("utilization"),
            "used_mb": megabytes(gpu.get("memory_used_bytes")),
            "total_mb": megabytes(gpu.get("memory_total_bytes")),
        }
        for gpu in found.values()
    ]


def cpu_times(stat: Path = Path("/proc/stat")) -> tuple[int, int] | None:
    """Ticks that this machine's processors were busy, and ticks in all, since it started; None where the kernel does
    not tell."""
    try:
        ticks = [int(word) for word in stat.read_text().split("\n", 1)[0].split()[1:9]]  # the guests' are in the user's
    except (OSError, ValueError):
        return None
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)  # 3 is idle, 4 idle while a disk is waited for


class Load:
    """The load of the servers whose metrics are at `addresses` (host:port), and of this machine."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self.addresses = tuple(addresses)
        self._before = cpu_times()
        self._asked = time.monotonic()
        self._lock = asyncio.Lock()
        self._figures: dict[str, Any] | None = None

    async def figures(self) -> dict[str, Any]:
        """`cpu` in 0..1 since the last time, and for each server its `address`, its `gpus` and, where it does not tell,
        an `error`."""
        async with self._lock:
            if self._figures is None or time.monotonic() - self._asked > FRESH_S:
                servers = await asyncio.gather(*(asyncio.to_thread(_ask, address) for address in self.addresses))
                self._figures = {"cpu": self._cpu(), "servers": servers}
                self._asked = time.monotonic()
            return self._figures

    def _cpu(self) -> float | None:
        before, now = self._before, cpu_times()
        self._before = now
        if before is None or now is None or now[1] == before[1]:
            return None
        return round((now[0] - before[0]) / (now[1] - before[1]), 2)


def _ask(address: str) -> dict[str, Any]:
    try:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=TIMEOUT_S) as answer:
            return {"address": address, "gpus": gpus(answer.read().decode())}
    except (OSError, ValueError, HTTPException) as error:
        return {"address": address, "gpus": [], "error": f"no metrics at http://{address}/metrics ({error})"}
