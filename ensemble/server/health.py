"""Whether a running server answers: what it says of itself over HTTP, a frame for each front model, and how far its
work has come."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path

from ensemble import pbtxt
from ensemble.interfaces import ENGINE_MODEL
from ensemble.loopback import open_direct
from ensemble.server.process import cpu_seconds
from ensemble.server.requirements import ServerError
from ensemble.spec import is_front_name

PROBE_SIDE = 14
"""Pixels a side of the black frame that a probe sends."""
STATISTICS_S = 5.0
"""Triton counts in memory: it says what it has counted at once, however busy its models are."""
_WAITING = re.compile(r'^nv_inference_pending_request_count\{[^}]*model="(\w+)"[^}]*\} (\S+)$', re.MULTILINE)


class Health:
    """Questions to the server at `http_url`, which has these front models. `pid` is its process where its engine model
    computes on the CPU of this machine."""

    def __init__(self, http_url: str, metrics_url: str, fronts: Sequence[str] = (), pid: int | None = None) -> None:
        self._http, self._metrics, self.fronts, self._pid = http_url, metrics_url, sorted(fronts), pid

    @classmethod
    def of(cls, http_url: str, metrics_url: str, root: Path, pid: int) -> Health:
        """Of the server that serves the repository `root` as process `pid`."""
        fronts = [c.parent.name for c in root.glob("*/config.pbtxt") if is_front_name(c.parent.name)]
        engine = root / ENGINE_MODEL / "config.pbtxt"  # in the container there is none
        return cls(http_url, metrics_url, fronts, None if not engine.exists() or pbtxt.read(engine).on_gpu else pid)

    @classmethod
    def ask(cls, http_url: str, metrics_url: str) -> Health:
        """Of a server that says itself which front models it has; it has none where it does not answer."""
        fronts = [name for name in cls(http_url, metrics_url).answered() if is_front_name(name)]
        return cls(http_url, metrics_url, fronts)

    def probe(self, front: str, timeout: float) -> None:
        """Sends a front model one black frame. Raises ServerError where it does not answer within `timeout` seconds.

        Triton calls itself ready while a python model's process is dead and never starts it again: only an inference
        tells.
        """
        frame = {"name": "frame", "datatype": "UINT8", "shape": [1, PROBE_SIDE, PROBE_SIDE, 3]}
        words = {"name": "classes", "datatype": "BYTES", "shape": [1, 1], "data": ["object"]}
        body = json.dumps({"inputs": [frame | {"data": [0] * (3 * PROBE_SIDE**2)}, words]}).encode()
        request = urllib.request.Request(f"http://{self._http}/v2/models/{front}/infer", body)
        try:
            with open_direct(request, timeout):
                pass
        except urllib.error.HTTPError as error:
            said = error.read().decode(errors="replace")[:500]
            raise ServerError(f"{front} does not answer: {said}") from None
        except OSError as error:
            raise ServerError(f"{front} does not answer: {error}") from None

    def answered(self) -> Mapping[str, int]:
        """Requests that each model has answered without an error since it was loaded; empty where the server does not
        say."""
        try:
            with open_direct(f"http://{self._http}/v2/models/stats", STATISTICS_S) as page:
                models = json.load(page)["model_stats"]
            return {model["name"]: int(model["inference_stats"]["success"].get("count", 0)) for model in models}
        except (OSError, ValueError, KeyError):
            return {}

    def waiting(self) -> Mapping[str, int]:
        """Requests that wait for each model; empty where the server does not say, as without metrics."""
        try:
            with open_direct(f"http://{self._metrics}/metrics", STATISTICS_S) as page:
                return {model: int(float(count)) for model, count in _WAITING.findall(page.read().decode())}
        except (OSError, ValueError):
            return {}

    def engine_seconds(self) -> float:
        """Processor seconds of the engine model so far; 0 where it computes on a GPU, for which a process may wait
        busily for ever."""
        return 0.0 if self._pid is None else cpu_seconds(self._pid, ENGINE_MODEL)
