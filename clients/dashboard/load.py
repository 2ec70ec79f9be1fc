"""The load of the servers' GPUs, from Triton's metrics, and of this machine's processors, from the kernel's counters.

A figure that is not available is None and never 0: a server without a GPU is not an idle GPU.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any

from clients.redact import without_password
from ensemble.loopback import open_url
from ensemble.spec import MB

METRICS_PORT = 8002
"""Triton's usual port for metrics."""
FRESH_S = 2.0
"""Figures are read at most this often, however many browsers show them."""
TIMEOUT_S = 2.0
GPU_LINE = re.compile(
    r'^nv_gpu_(?P<metric>utilization|memory_used_bytes|memory_total_bytes)\{[^}]*gpu_uuid="(?P<gpu>[^"]+)"[^}]*\}'
    r" (?P<value>\S+)$",
    re.MULTILINE,
)


def gpus(page: str) -> list[dict[str, Any]]:
    """Each GPU of a metrics page: `use` in 0..1, `used_mb` and `total_mb`, each None where the page lacks it."""
    found: dict[str, dict[str, float]] = {}
    for line in GPU_LINE.finditer(page):
        found.setdefault(line["gpu"], {})[line["metric"]] = float(line["value"])

    def megabytes(value: float | None) -> int | None:
        return None if value is None else round(value / MB)

    return [
        {
            "use": gpu.get("utilization"),
            "used_mb": megabytes(gpu.get("memory_used_bytes")),
            "total_mb": megabytes(gpu.get("memory_total_bytes")),
        }
        for gpu in found.values()
    ]


def cpu_times(stat: Path = Path("/proc/stat")) -> tuple[int, int] | None:
    """Busy ticks of this machine's processors, and all ticks, since it started; None where the kernel has no such
    counters."""
    try:  # the ninth and tenth counter, of guests, are part of the user's
        ticks = [int(word) for word in stat.read_text().split("\n", 1)[0].split()[1:9]]
    except (OSError, ValueError):
        return None
    return sum(ticks) - ticks[3] - ticks[4], sum(ticks)  # 3 is idle, 4 is waiting for disks


class Load:
    """The load of the servers whose metrics are at `addresses` (host:port), and of this machine."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self.addresses = tuple(addresses)
        self._before = cpu_times()
        self._read_at = time.monotonic()
        self._lock = asyncio.Lock()
        self._figures: dict[str, Any] | None = None

    async def figures(self) -> dict[str, Any]:
        """`cpu` in 0..1 since the last call, and for each server its `address`, its `gpus`, and an `error` if it does
        not answer."""
        async with self._lock:
            if self._figures is None or time.monotonic() - self._read_at > FRESH_S:
                servers = await asyncio.gather(*(asyncio.to_thread(_fetch, address) for address in self.addresses))
                self._figures = {"cpu": self._cpu(), "servers": servers}
                self._read_at = time.monotonic()
            return self._figures

    def _cpu(self) -> float | None:
        before, now = self._before, cpu_times()
        self._before = now
        if before is None or now is None or now[1] == before[1]:
            return None
        return round((now[0] - before[0]) / (now[1] - before[1]), 2)


def _fetch(address: str) -> dict[str, Any]:
    shown = without_password(address)
    try:
        with open_url(f"http://{address}/metrics", TIMEOUT_S) as answer:
            return {"address": shown, "gpus": gpus(answer.read().decode())}
    except (OSError, ValueError, HTTPException) as error:
        problem = f"no metrics at http://{address}/metrics ({error})"
        return {"address": shown, "gpus": [], "error": without_password(problem)}
