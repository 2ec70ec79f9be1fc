"""The server's own figures of a window, from its Prometheus page before and after it, and its processes' memory."""

from __future__ import annotations

import re
import urllib.error
from collections.abc import Mapping
from pathlib import Path

from ensemble.loopback import open_url
from ensemble.server.memory import MB
from ensemble.spec import STAGES

LINE = re.compile(r"^(?P<name>\w+)(?:\{(?P<labels>.*)\})? (?P<value>\S+)$")
LABEL = re.compile(r'(\w+)="([^"]*)"')

Sample = dict[tuple[str, frozenset[tuple[str, str]]], float]
"""(metric, labels without the version) -> value."""


class MetricsError(RuntimeError):
    """The metrics cannot be read; the message says from where."""


def parse(page: str) -> Sample:
    """One page in Prometheus' text format."""
    sample: Sample = {}
    for line in page.splitlines():
        match = LINE.match(line)
        if match:
            labels = frozenset((k, v) for k, v in LABEL.findall(match["labels"] or "") if k != "version")
            sample[match["name"], labels] = sample.get((match["name"], labels), 0.0) + float(match["value"])
    return sample


def scrape(url: str, timeout: float = 10.0) -> Sample:
    """The metrics at `url` (host:port). Raises MetricsError."""
    try:
        with open_url(f"http://{url}/metrics", timeout) as answer:
            return parse(answer.read().decode())
    except (OSError, urllib.error.URLError) as error:
        raise MetricsError(
            f"no metrics at http://{url}/metrics ({error}); is the server running, and is --metrics-url right?"
        ) from None


def value(sample: Sample, metric: str, **labels: str) -> float:
    """Sum over every series of `metric` that carries these labels; 0 where there is none."""
    wanted = set(labels.items())
    return sum(v for (name, have), v in sample.items() if name == metric and wanted <= have)


def answered(sample: Sample, model: str) -> float:
    """Requests that the server has answered or refused, of this model."""
    return sum(value(sample, f"nv_inference_request_{how}", model=model) for how in ("success", "failure"))


def largest(sample: Sample, metric: str) -> float:
    """The largest of the series of `metric`, of which there is one a GPU; 0 where there is none."""
    return max((v for (name, _), v in sample.items() if name == metric), default=0.0)


def figures(before: Sample, after: Sample, front: str, parts: Mapping[str, str]) -> dict[str, float]:
    """Figures of the window between two samples, in milliseconds per frame of the front model.

    `parts`: part -> name, of the sub-models that Triton runs. `mean_batch` is frames per execution, `failed` requests
    that had no answer, `stage_<stage>_ms` what a frame spent in each stage, `compute_<part>_ms` what each of those
    sub-models computed per frame.
    """

    def grown(metric: str, **labels: str) -> float:
        return value(after, metric, **labels) - value(before, metric, **labels)

    frames, executions = grown("nv_inference_count", model=front), grown("nv_inference_exec_count", model=front)
    found = {
        "mean_batch": frames / executions if executions else 0.0,
        "failed": grown("nv_inference_request_failure", model=front),
        "queue_ms": grown("nv_inference_queue_duration_us", model=front) / 1e3 / frames if frames else 0.0,
    }
    for stage in STAGES:
        count = grown("sam3_stage_seconds_count", model=front, stage=stage)
        found[f"stage_{stage}_ms"] = (
            1e3 * grown("sam3_stage_seconds_sum", model=front, stage=stage) / count if count else 0.0
        )
    for part, model in parts.items():
        spent = grown("nv_inference_compute_infer_duration_us", model=model) / 1e3
        found[f"compute_{part}_ms"] = spent / frames if frames else 0.0
    return found


def process_memory_mb(pid: int | None) -> float:
    """Proportional memory (Pss) of a process and all its descendants in MB, as Linux counts it; 0 where it cannot be
    read."""
    if pid is None:
        return 0.0
    total = 0.0
    try:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024 / MB
        children = [int(c) for t in Path(f"/proc/{pid}/task").iterdir() for c in (t / "children").read_text().split()]
    except (OSError, ValueError):
        return total
    return total + sum(process_memory_mb(child) for child in children)
