"""Prometheus as an operator starts it, for tests: the rules of `deploy/kubernetes/` beside `deploy/prometheus/`."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from ensemble.server.ports import choose_ports
from tests.conftest import ROOT
from tests.ensemble.waiting import until

PROMETHEUS = ROOT / "deploy" / "prometheus"
COMPONENT = ROOT / "deploy" / "kubernetes" / "components" / "monitoring"
WINDOW_S = 8
"""In place of a minute, with a look at the servers each second."""


def prometheus_folder(folder: Path) -> Path:
    """`folder` with a copy of `deploy/prometheus/` and the rules that its configuration names, made as it says."""
    shutil.copytree(PROMETHEUS, folder, dirs_exist_ok=True)
    _, _, spec = (COMPONENT / "rules.yaml").read_text().partition("\nspec:\n")
    (folder / "sam3.rules.yaml").write_text(spec)
    return folder


class Prometheus:
    """A Prometheus that listens at `address` (host:port)."""

    def __init__(self, address: str) -> None:
        self.address = address

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://{self.address}{path}", timeout=60) as answer:
            return answer.read()

    def query(self, expression: str) -> list[dict[str, Any]]:
        """The series of an expression's present value, as KEDA and Grafana get them."""
        answer = json.loads(self.get(f"/api/v1/query?{urllib.parse.urlencode({'query': expression})}"))
        assert answer["status"] == "success", answer
        assert answer["data"]["resultType"] == "vector"
        return answer["data"]["result"]

    def value(self, expression: str) -> float:
        """The value of an expression that has one series; NaN while it has none."""
        found = self.query(expression)
        assert len(found) <= 1, found
        return float(found[0]["value"][1]) if found else float("nan")

    def ready(self) -> bool:
        try:
            return bool(self.get("/-/ready"))
        except OSError:
            return False


@contextmanager
def prometheus(folder: Path, targets: Mapping[str, Sequence[str]]) -> Iterator[Prometheus]:
    """A real one with the rules and the configuration of `deploy/`, which looks each second at other `targets` (by
    job, host:port), and over shorter times."""
    prometheus_folder(folder)
    config = yaml.safe_load((folder / "prometheus.yml").read_text())
    config["global"] |= {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
    for job in config["scrape_configs"]:
        # the operator's resources give the label `namespace`
        job["static_configs"] = [{"targets": list(targets[job["job_name"]]), "labels": {"namespace": "sam3"}}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    rules = folder / "sam3.rules.yaml"
    rules.write_text(re.sub(r"interval: \d+s", "interval: 1s", rules.read_text()).replace("[1m]", f"[{WINDOW_S}s]"))
    (port,) = choose_ports("127.0.0.1", [0])
    options = {
        "config.file": "prometheus.yml",
        "storage.tsdb.path": "data",
        "web.listen-address": f"127.0.0.1:{port}",
        "log.level": "warn",
    }
    command = ["prometheus", *(f"--{name}={value}" for name, value in options.items())]
    with (folder / "log").open("w") as log, subprocess.Popen(command, cwd=folder, stdout=log, stderr=log) as process:
        made = Prometheus(f"127.0.0.1:{port}")
        try:
            until(lambda: made.ready() or process.poll() is not None)
            assert process.poll() is None, (folder / "log").read_text()
            yield made
        finally:
            process.terminate()
