"""The server that a sweep measures: addresses or a repository go in, a running `Target` comes out, with what it says of itself."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ensemble.memory import SAM3, Architecture
from ensemble.preflight import ServerError
from ensemble.server import EmbeddedServer
from ensemble.spec import Variant
from export import tiny
from perf.points import Point


@dataclass(frozen=True, slots=True)
class Target:
    """A running server: host:port of its three services, and its process where we started it."""

    grpc: str
    http: str
    metrics: str
    pid: int | None = None

    @property
    def urls(self) -> dict[str, str]:
        return {"grpc": self.grpc, "http": self.http}

    def models(self) -> list[str]:
        """Names of the loaded models. Raises ServerError where no server answers."""
        request = urllib.request.Request(f"http://{self.http}/v2/repository/index", b"{}", method="POST")
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return [m["name"] for m in json.load(answer) if m.get("state") == "READY"]
        except (OSError, urllib.error.URLError) as error:
            raise ServerError(
                f"no server answers at http://{self.http} ({error}); start one with sam3-serve, or give --repository"
            ) from None

    def about(self, front: str) -> dict[str, Any]:
        """What a front model says it serves: queries, precision, checkpoint and the sizes that its cost depends on."""
        with urllib.request.urlopen(f"http://{self.http}/v2/models/{front}/config", timeout=10) as answer:
            variant = Variant.from_dict(json.loads(json.load(answer)["parameters"]["variant"]["string_value"]))
        folder = Path(tiny.__file__).parent / Path(variant.checkpoint.name).name
        known = {"queries": variant.queries, "precision": variant.precision, "checkpoint": variant.checkpoint.name}
        if variant.checkpoint.hidden_size == SAM3.fpn:
            return known | {"architecture": asdict(SAM3)}
        return known | ({"architecture": asdict(Architecture.from_checkpoint(folder))} if folder.is_dir() else {})


@contextlib.contextmanager
def serving(options: argparse.Namespace) -> Iterator[Target]:
    """The server of the command line: the one at the given addresses, or an embedded one on --repository."""
    if options.repository is None:
        yield Target(options.grpc_url, options.http_url, options.metrics_url)
        return
    with EmbeddedServer(options.repository, log=lambda line: print(line, file=sys.stderr)) as server:
        yield Target(server.grpc_url, server.http_url, server.metrics_url, server.pid)


def check_loaded(wanted: Sequence[Point], models: Sequence[str]) -> None:
    """Raises ServerError unless every point's model is loaded."""
    missing = sorted({point.model for point in wanted} - set(models))
    if missing:
        raise ServerError(
            f"not loaded: {', '.join(missing)}; the server has {', '.join(sorted(models)) or 'no model'}; "
            "export what is missing with sam3-export --resolution ..., or leave it out with --resolutions"
        )
