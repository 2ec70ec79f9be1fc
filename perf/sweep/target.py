"""The server that is measured: one that runs already or an embedded one started for it, and what it says of itself."""

from __future__ import annotations

import argparse
import contextlib
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ensemble.loopback import open_url
from ensemble.server import gpu
from ensemble.server import repository as placement
from ensemble.server.architecture import Architecture
from ensemble.server.cli import add_front_options, front_settings, server_settings
from ensemble.server.embedded import EmbeddedServer
from ensemble.server.requirements import ServerError
from ensemble.spec import Variant, is_front_name
from perf.sweep.points import front_parts

DEFAULT_URL = "localhost:8001"
PLAIN = "plain"
"""Precisions that have no name of their own among front models: fp16 and fp32."""
HTTP_PORT, METRICS_PORT = -1, 1
"""From the port of gRPC: Triton's own are 8000, 8001 and 8002."""


@dataclass(frozen=True, slots=True)
class Target:
    """A running server: host:port of its three services; its process and what the GPU held before, where we started
    it."""

    grpc: str
    http: str
    metrics: str
    pid: int | None = None
    before_mb: float | None = None

    @property
    def urls(self) -> dict[str, str]:
        return {"grpc": self.grpc, "http": self.http}

    def models(self) -> list[str]:
        """Names of the loaded models. Raises ServerError where no server answers."""
        request = urllib.request.Request(f"http://{self.http}/v2/repository/index", b"{}", method="POST")
        try:
            with open_url(request, 10) as answer:
                return [m["name"] for m in json.load(answer) if m.get("state") == "READY"]
        except (OSError, urllib.error.URLError) as error:
            raise ServerError(
                f"no server answers at http://{self.http} ({error}); start one with sam3-serve and name its gRPC"
                " address with --url, or give --repository"
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
        return describe(variant, self._engine(front, variant))

    def _engine(self, front: str, variant: Variant) -> str:
        """Of the vision encoder: from the engine model's configuration, or its own where Triton runs it."""
        holder = self._config(front)["parameters"].get("engine_model", {}).get("string_value")
        if holder:
            fronts = json.loads(self._config(holder)["parameters"]["fronts"]["string_value"])
            return str(fronts[front]["engines"][variant.vision_encoder.part])
        vision = self._config(variant.vision_encoder.name)
        return vision.get("parameters", {}).get("engine", {}).get("string_value") or vision.get("backend", "")

    def _config(self, model: str) -> dict[str, Any]:
        with open_url(f"http://{self.http}/v2/models/{model}/config", 10) as answer:
            return json.load(answer)


def describe(variant: Variant, engine: str) -> dict[str, Any]:
    """What a server's figures depend on: engine, precision, queries, largest batch, checkpoint, and the sizes that the
    cost of its layers depends on."""
    known: dict[str, Any] = {"engine": engine, "queries": variant.queries, "precision": variant.precision}
    known |= {name: getattr(variant, name) for name in placement.FRONT_SETTINGS}
    known |= {"checkpoint": variant.checkpoint.name}
    return known | {"architecture": Architecture.of(variant.checkpoint).to_dict()}


def add_server_options(parser: argparse.ArgumentParser) -> None:
    """What `serving` and `offered` read."""
    parser.add_argument("--repository", type=Path, help="start the embedded server on this model repository")
    add_front_options(parser)
    parser.add_argument(
        "--url", default=DEFAULT_URL, help="host:port of gRPC of a server that runs already; default %(default)s"
    )
    parser.add_argument("--http-url", help="host:port of its HTTP; default: the port below that of --url")
    parser.add_argument("--metrics-url", help="host:port of its metrics; default: the port above that of --url")


def addressed(options: argparse.Namespace) -> Target:
    """The server at `--url`. Raises ValueError for what is no address."""
    host, _, port = options.url.rpartition(":")
    if not host or "/" in host or not port.isdigit():
        raise ValueError(f"--url must be host:port of the server's gRPC, got {options.url!r}; write {DEFAULT_URL}")
    http = options.http_url or f"{host}:{int(port) + HTTP_PORT}"
    return Target(options.url, http, options.metrics_url or f"{host}:{int(port) + METRICS_PORT}")


def offered(options: argparse.Namespace) -> tuple[dict[int, str], Callable[[int], dict[str, Any]]]:
    """Front models that can be measured, by resolution, the largest first, and what describes each: from the
    repository, else from the running server. Of several precisions of a resolution the one of `--precision`, or that
    which has no name of its own (fp16, fp32)."""
    describers: dict[str, Callable[[], dict[str, Any]]]
    if options.repository is None:
        target = addressed(options)
        describers = {name: partial(target.about, name) for name in target.models() if is_front_name(name)}
    else:
        found = placement.suited(placement.read(options.repository), front_settings(options))
        describers = {s.variant.front_name: partial(describe, s.variant, s.engine) for s in found}
    names: dict[int, str] = {}
    for name in sorted(describers, key=len, reverse=True):
        resolution, precision = front_parts(name)
        if options.precision in (None, precision or PLAIN):
            names[resolution] = name
    return dict(sorted(names.items(), reverse=True)), lambda r: describers[names[r]]()


@contextlib.contextmanager
def serving(options: argparse.Namespace, resolutions: Sequence[int] = (), sub_models: bool = False) -> Iterator[Target]:
    """The server of the command line: the one at the given addresses, or an embedded one on --repository with these
    resolutions, all where none is named; with `sub_models` each of them is a Triton model of its own."""
    if options.repository is None:
        yield addressed(options)
        return
    before = gpu.used_mb()
    with EmbeddedServer(
        options.repository,
        resolutions=resolutions,
        **server_settings(options),
        sub_models=sub_models,
        opened=("shared-memory",) if sub_models else (),  # perf_analyzer may hand tensors over in it
        arguments=["--metrics-interval-ms=500"],
    ) as server:
        yield Target(server.grpc_url, server.http_url, server.metrics_url, server.pid, before)
