"""The server that a sweep measures: addresses or a repository go in, a running `Target` comes out, with what it says of
itself."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ensemble.server import gpu
from ensemble.server import repository as placement
from ensemble.server.cli import add_front_options, front_settings
from ensemble.server.embedded import EmbeddedServer
from ensemble.server.memory import SAM3, Architecture
from ensemble.server.requirements import ServerError
from ensemble.spec import Variant, is_front_name
from export.tiny import CHECKPOINT


@dataclass(frozen=True, slots=True)
class Target:
    """A running server: host:port of its three services; its process, its CUDA pool and what the GPU held before, where
    we started it."""

    grpc: str
    http: str
    metrics: str
    pid: int | None = None
    pool_mb: float = 0.0
    before_mb: float | None = None

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

    def fronts(self) -> dict[str, Variant]:
        """The loaded front models, by name. Raises ServerError where no server answers."""
        return {name: self.variant(name) for name in self.models() if is_front_name(name)}

    def variant(self, front: str) -> Variant:
        """What a loaded front model's configuration says that it is."""
        return Variant.from_dict(json.loads(self._config(front)["parameters"]["variant"]["string_value"]))

    def about(self, front: str) -> dict[str, Any]:
        """`describe` of a loaded front model."""
        variant = self.variant(front)
        vision = self._config(variant.vision_encoder.name)
        engine = vision.get("parameters", {}).get("engine", {}).get("string_value") or vision.get("backend", "")
        return describe(variant, engine)

    def _config(self, model: str) -> dict[str, Any]:
        with urllib.request.urlopen(f"http://{self.http}/v2/models/{model}/config", timeout=10) as answer:
            return json.load(answer)


def describe(variant: Variant, engine: str) -> dict[str, Any]:
    """What a server's figures depend on: engine, precision, queries, largest batch, checkpoint, and the sizes that the
    cost of its layers depends on."""
    known: dict[str, Any] = {"engine": engine, "queries": variant.queries, "precision": variant.precision}
    known |= {name: getattr(variant, name) for name in placement.FRONT_SETTINGS} | {
        "checkpoint": variant.checkpoint.name
    }
    folder = CHECKPOINT.with_name(Path(variant.checkpoint.name).name)
    if variant.checkpoint.hidden_size == SAM3.fpn:
        return known | {"architecture": asdict(SAM3)}
    return known | ({"architecture": asdict(Architecture.from_checkpoint(folder))} if folder.is_dir() else {})


def offered(options: argparse.Namespace) -> tuple[list[int], Callable[[int], dict[str, Any]]]:
    """Resolutions that can be measured, the largest first, and what describes each: from the repository, else from the
    running server."""
    if options.repository is None:
        target = Target(options.grpc_url, options.http_url, options.metrics_url)
        fronts = [m.removeprefix("sam3_r") for m in target.models()]
        return sorted((int(r) for r in fronts if r.isdigit()), reverse=True), lambda r: target.about(f"sam3_r{r}")
    found = placement.adjusted(placement.read(options.repository), front_settings(options))
    served = {s.variant.resolution: s for s in found}
    return list(served), lambda r: describe(served[r].variant, served[r].engine)


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """What `serving` and `offered` read."""
    parser.add_argument("--repository", type=Path, help="start the embedded server on this model repository")
    add_front_options(parser)
    parser.add_argument(
        "--grpc-url", default="localhost:8001", help="of a server that runs already; default %(default)s"
    )
    parser.add_argument("--http-url", default="localhost:8000", help="default %(default)s")
    parser.add_argument("--metrics-url", default="localhost:8002", help="default %(default)s")


@contextlib.contextmanager
def serving(options: argparse.Namespace, resolutions: Sequence[int] = ()) -> Iterator[Target]:
    """The server of the command line: the one at the given addresses, or an embedded one on --repository with these
    resolutions, all where none is named."""
    if options.repository is None:
        yield Target(options.grpc_url, options.http_url, options.metrics_url)
        return
    before = gpu.used_mb()
    with EmbeddedServer(
        options.repository,
        log=lambda line: print(line, file=sys.stderr),
        resolutions=resolutions,
        front=front_settings(options),
        arguments=["--metrics-interval-ms=500"],
    ) as server:
        yield Target(server.grpc_url, server.http_url, server.metrics_url, server.pid, server.pool_mb, before)
