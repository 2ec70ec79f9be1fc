"""What the GPU does during a window: the peak of its memory, its mean use and power, read by a thread all along.

Memory is read from NVML as well where the server is on this machine: Triton's page is as old as its own interval. All
is 0 where there is no GPU.
"""

from __future__ import annotations

import threading
from types import TracebackType

from ensemble.server import gpu
from ensemble.server.memory import MB
from perf.sweep import metrics

INTERVAL_S = 0.1


class GpuWatch:
    """`with GpuWatch(url, before) as watch: ...; watch.figures()`. `before_mb` was in use before a server on this
    machine started; None for a server elsewhere."""

    def __init__(self, metrics_url: str, before_mb: float | None) -> None:
        self._url, self._before = metrics_url, before_mb
        self._memory, self._use, self._power = [0.0], [0.0], [0.0]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> GpuWatch:
        page = metrics.scrape(self._url)
        if metrics.largest(page, "nv_gpu_memory_total_bytes") or (self._before is not None and gpu.gpus()):
            self._memory, self._use, self._power = [], [], []
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def figures(self) -> dict[str, float]:
        """`gpu_memory_mb` at its peak, without what others had before; `gpu_use` 0..1 and `gpu_power_w` in the mean."""
        return {
            "gpu_memory_mb": max(max(self._memory, default=0.0) - (self._before or 0.0), 0.0),
            "gpu_use": sum(self._use) / max(len(self._use), 1),
            "gpu_power_w": sum(self._power) / max(len(self._power), 1),
        }

    def _watch(self) -> None:
        while True:
            try:
                page = metrics.scrape(self._url)
            except metrics.MetricsError:  # the server is gone, which the window itself will say
                return
            memory = metrics.largest(page, "nv_gpu_memory_used_bytes") / MB
            self._memory.append(memory if self._before is None else max(memory, gpu.used_mb()))
            self._use.append(metrics.largest(page, "nv_gpu_utilization"))
            self._power.append(metrics.largest(page, "nv_gpu_power_usage"))
            if self._ended.wait(INTERVAL_S):
                return
