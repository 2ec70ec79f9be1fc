"""A running `deploy/edge.yaml` before a server, and an honest client of it.

Timeouts are shorter than in the file, and rates do not recover, so that no test waits for them.
"""

from __future__ import annotations

import contextlib
import copy
import http.client
import json
import socket
import ssl
import subprocess
import sys
import threading
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import yaml

from clients import Client, Sam3ServerError
from ensemble.server.ports import choose_ports
from tests.ensemble.waiting import until

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "deploy" / "make_secrets.py"
MODEL = "sam3_r140"
FRAME = np.zeros((60, 80, 3), np.uint8)


def secrets(folder, *words):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--folder", str(folder), *words], check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


@dataclass
class Edge:
    """A running edge: its port, one whose certificate has expired, the folder of its secrets and keys by client."""

    port: int
    expired_port: int
    folder: Path
    keys: dict[str, str]

    @property
    def ca(self) -> Path:
        return self.folder / "server.crt"

    def client(self, scheme="grpcs", key=None, **options):
        options = {"model": MODEL, "timeout": 120, "ca": self.ca, "key": key or self.keys["tester"]} | options
        return Client(f"{scheme}://localhost:{self.port}", **options)

    def ask(self, method, path, key=None, body=None):
        """Status and text of an HTTP request, with its path as it is written."""
        context = ssl.create_default_context(cafile=self.ca)
        connection = http.client.HTTPSConnection("localhost", self.port, timeout=120, context=context)
        with contextlib.closing(connection):
            headers = {"authorization": f"Bearer {key}"} if key else {}
            connection.request(method, path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.read().decode()

    @contextlib.contextmanager
    def channel(self):
        with grpc.secure_channel(
            f"localhost:{self.port}", grpc.ssl_channel_credentials(self.ca.read_bytes())
        ) as channel:
            yield channel

    @contextlib.contextmanager
    def tls(self):
        """A connection after its handshake."""
        with socket.create_connection(("127.0.0.1", self.port), 120) as plain:
            context = ssl.create_default_context(cafile=self.ca)
            with context.wrap_socket(plain, server_hostname="localhost") as connection:
                yield connection


@dataclass
class Honest:
    """A client that goes on asking over one connection, frame after frame."""

    edge: Edge
    answers: int = 0
    errors: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    def run(self):
        with self.edge.client(key=self.edge.keys["honest"]) as sam3:
            while not self.over.wait(0.1):
                try:
                    sam3.detect(FRAME, ["red circle"])
                    self.answers += 1
                except Sam3ServerError as error:
                    self.errors.append(str(error))

    def goes_on(self, answers=2):
        """Asserts that it is answered from now on too."""
        wanted = self.answers + answers
        until(lambda: self.answers >= wanted or self.errors)
        assert not self.errors


def expired_certificate(folder):
    """`expired.crt` for `localhost`, with its key."""
    (folder / "names").write_text("subjectAltName=DNS:localhost")
    made = (
        "req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=expired -keyout expired.key -out expired.csr"
    )
    signed = "x509 -req -in expired.csr -signkey expired.key -days -1 -extfile names -out expired.crt"
    for words in (made, signed):
        subprocess.run(["openssl", *words.split()], cwd=folder, check=True, capture_output=True)


def configured(server, port, expired_port):
    """The file for this server, with another port, short timeouts, rates that do not recover, and a second listener
    whose certificate has expired."""
    text = (ROOT / "deploy" / "edge.yaml").read_text()
    for was, becomes in {
        "request_headers_timeout: 10s": "request_headers_timeout: 2s",
        "request_timeout: 30s": "request_timeout: 3s",
        "transport_socket_connect_timeout: 10s": "transport_socket_connect_timeout: 2s",
        "listener_filters_timeout: 10s": "listener_filters_timeout: 2s",
        "tokens_per_fill: 200, fill_interval: 1s": "tokens_per_fill: 1, fill_interval: 3600s",
    }.items():
        assert was in text
        text = text.replace(was, becomes)
    told = yaml.safe_load(text)
    assert "admin" not in told
    static = told["static_resources"]
    for cluster in static["clusters"]:
        (group,) = cluster["load_assignment"]["endpoints"]
        place = group["lb_endpoints"][0]["endpoint"]["address"]["socket_address"]
        assert place["address"] == "server"
        place |= {
            "address": "127.0.0.1",
            "port_value": server.grpc_port if cluster["name"] == "grpc" else server.http_port,
        }
    (listener,) = static["listeners"]
    expired = copy.deepcopy(listener) | {"name": "expired"}
    (certificate,) = expired["filter_chains"][0]["transport_socket"]["typed_config"]["common_tls_context"][
        "tls_certificates"
    ]
    for entry, ending in (("certificate_chain", "crt"), ("private_key", "key")):
        certificate[entry] = {"filename": f"deploy/secrets/expired.{ending}"}
    static["listeners"].append(expired)
    for each, number in ((listener, port), (expired, expired_port)):
        each["address"]["socket_address"] = {"address": "127.0.0.1", "port_value": number}
    return told


@contextlib.contextmanager
def envoy(server, home):
    """The edge before that server; `home` is an empty folder."""
    folder = home / "deploy" / "secrets"
    secrets(folder, "certificate", "localhost", "127.0.0.1")
    expired_certificate(folder)
    keys = {name: secrets(folder, "key", name) for name in ("tester", "honest", "greedy")}
    port, expired_port = choose_ports("127.0.0.1", (0, 0))
    (home / "edge.json").write_text(json.dumps(configured(server, port, expired_port)))
    program = str(Path(sys.executable).with_name("envoy"))
    command = [program, "-c", "edge.json", "--disable-hot-restart", "-l", "warning"]
    with (home / "envoy.log").open("w") as log, subprocess.Popen(command, stderr=log, cwd=home) as process:
        try:
            running = Edge(port, expired_port, folder, keys)
            with running.client() as sam3:
                until(lambda: sam3.ready() or process.poll() is not None)
            assert process.poll() is None, (home / "envoy.log").read_text()
            yield running
        finally:
            process.terminate()
