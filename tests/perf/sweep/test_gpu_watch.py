"""The GPU during a window, read from a metrics page over HTTP: the peak of the memory counts, not what is there at the
end."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from ensemble.server.memory import MB
from perf.sweep.gpu_watch import GpuWatch

GPU_PAGE = """nv_gpu_memory_total_bytes{gpu_uuid="GPU-0"} 150000000000
nv_gpu_memory_used_bytes{gpu_uuid="GPU-0"} %d
nv_gpu_memory_used_bytes{gpu_uuid="GPU-1"} 5
nv_gpu_utilization{gpu_uuid="GPU-0"} 0.5
nv_gpu_power_usage{gpu_uuid="GPU-0"} 400
"""


class Page(BaseHTTPRequestHandler):
    """Each request takes the next of `pages`, the last one for ever."""

    pages: list[str]

    def do_GET(self) -> None:
        body = (self.pages.pop(0) if len(self.pages) > 1 else self.pages[0]).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: the test's output stays readable."""


@pytest.fixture
def address() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()


def wait_until_read(pages: list[str]) -> None:
    deadline = time.monotonic() + 20
    while len(pages) > 1 and time.monotonic() < deadline:
        time.sleep(0.01)


def test_the_peak_counts(address: str):
    Page.pages = [GPU_PAGE % (megabytes * MB) for megabytes in (1000, 1000, 9000, 2000)]
    with GpuWatch(address, before_mb=None) as watch:
        wait_until_read(Page.pages)
    assert watch.figures() == {"gpu_memory_mb": 9000, "gpu_use": 0.5, "gpu_power_w": 400}


def test_what_others_had_before_is_not_the_servers(address: str):
    Page.pages = [GPU_PAGE % (3_000_000 * MB)]  # more than any GPU that this test may run on
    with GpuWatch(address, before_mb=600.0) as watch:
        pass
    assert watch.figures()["gpu_memory_mb"] == 3_000_000 - 600


def test_without_a_gpu_nothing_is_watched(address: str):
    Page.pages = ["nv_inference_count 1\n", GPU_PAGE % MB]
    with GpuWatch(address, before_mb=None) as watch:
        pass
    assert len(Page.pages) == 1, "read once, to see that there is none"
    assert watch.figures() == {"gpu_memory_mb": 0, "gpu_use": 0, "gpu_power_w": 0}
