"""`deploy/edge.yaml` with the real Envoy before the real server: who has no key, or means ill, gets nowhere, and an
honest client is answered through all of it. Timeouts are shorter and rates do not recover, so that no test waits."""

from __future__ import annotations

import contextlib
import copy
import http.client
import json
import resource
import select
import socket
import ssl
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import numpy as np
import pytest
import yaml
from PIL import Image
from tritonclient.grpc import service_pb2, service_pb2_grpc

from clients import AccessDenied, Client, InvalidRequest, ModelNotFound, Sam3ServerError, ServerUnavailable, camera
from ensemble.server.ports import choose_ports
from tests.ensemble.waiting import until

pytestmark = pytest.mark.server

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "deploy" / "make_secrets.py"
MODEL = "sam3_r140"
SERVICE = "inference.GRPCInferenceService"
OPEN_CALLS = {"ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata", "ModelInfer"}
CALLS = [method.name for method in service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods]
FRAME = np.zeros((60, 80, 3), np.uint8)
REQUESTS_AT_ONCE = 400
"""Of one client, as the file says."""


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


@pytest.fixture(scope="module")
def edge(server, tmp_path_factory):
    home = tmp_path_factory.mktemp("edge")
    folder = home / "deploy" / "secrets"
    secrets(folder, "certificate", "localhost", "127.0.0.1")
    expired_certificate(folder)
    keys = {name: secrets(folder, "key", name) for name in ("tester", "honest", "greedy")}
    port, expired_port = choose_ports("127.0.0.1", (0, 0))
    (home / "edge.json").write_text(json.dumps(configured(server, port, expired_port)))
    command = [
        str(Path(sys.executable).with_name("envoy")),
        "-c",
        "edge.json",
        "--disable-hot-restart",
        "-l",
        "warning",
    ]
    with (home / "envoy.log").open("w") as log, subprocess.Popen(command, stderr=log, cwd=home) as process:
        try:
            running = Edge(port, expired_port, folder, keys)
            with running.client() as sam3:
                until(lambda: sam3.ready() or process.poll() is not None)
            assert process.poll() is None, (home / "envoy.log").read_text()
            yield running
        finally:
            process.terminate()


@pytest.fixture(scope="module")
def honest(edge):
    asking = Honest(edge)
    thread = threading.Thread(target=asking.run)
    thread.start()
    yield asking
    asking.over.set()
    thread.join()
    assert not asking.errors
    assert asking.answers


@pytest.mark.parametrize("scheme", ["grpcs", "https"])
@pytest.mark.parametrize("by", ["key", "token"])
def test_a_client_with_a_key_or_a_token_is_answered(edge, server, scheme, by):
    key = edge.keys["tester"] if by == "key" else secrets(edge.folder, "token", "gate")
    with edge.client(scheme, key) as sam3, Client(server.grpc_url, model=MODEL, timeout=120) as direct:
        assert sam3.ready()
        found, expected = (each.detect(FRAME, ["red circle"]) for each in (sam3, direct))
        assert (found.boxes == expected.boxes).all()


@pytest.mark.parametrize("scheme", ["grpcs", "https"])
def test_who_has_no_valid_key_is_refused(edge, scheme, tmp_path):
    secrets(tmp_path, "certificate", "localhost")
    honest = secrets(edge.folder, "token", "gate")
    middle = honest.split(".")[1]
    unsigned = f"eyJhbGciOiJub25lIn0.{middle}."
    wrong = {
        "made up": "sam3-made-up",
        "of somebody else": secrets(tmp_path, "key", "tester"),
        "an expired token": secrets(edge.folder, "token", "gate", "--days", "-1"),
        "another's token": secrets(tmp_path, "token", "gate"),
        "a token without signature": unsigned,
        "no token": "eyJ",
    }
    for key in wrong.values():
        with edge.client(scheme, key) as sam3, pytest.raises(AccessDenied, match="refuses the key") as error:
            sam3.detect(FRAME, ["red circle"])
        assert key not in str(error.value) or key == "eyJ"
    with edge.client(scheme, wrong["an expired token"]) as sam3, pytest.raises(AccessDenied, match="expired"):
        sam3.detect(FRAME, ["red circle"])
    assert edge.ask("GET", "/v2/health/ready")[0] == 401


def test_keys_come_and_go_while_it_runs(edge):
    file = edge.folder / "keys.yaml"
    before = file.read_text()
    key = secrets(edge.folder, "key", "guest")
    with edge.client(key=key) as sam3:
        until(sam3.ready)
        new = file.with_name("new")
        new.write_text(before)
        new.replace(file)
        until(lambda: not sam3.ready())


OPEN = [
    ("GET", "/v2"),
    ("GET", "/v2/health/live"),
    ("GET", "/v2/health/ready"),
    ("GET", f"/v2/models/{MODEL}"),
    ("GET", f"/v2/models/{MODEL}/ready"),
]
CLOSED = [
    ("GET", "/"),
    ("GET", "/metrics"),
    ("GET", "/stats"),
    ("POST", "/quitquitquit"),
    ("POST", "/v2/repository/index"),
    ("POST", f"/v2/repository/models/{MODEL}/load"),
    ("POST", f"/v2/repository/models/{MODEL}/unload"),
    ("GET", "/v2/models/stats"),
    ("GET", f"/v2/models/{MODEL}/stats"),
    ("GET", f"/v2/models/{MODEL}/config"),
    ("POST", f"/v2/models/{MODEL}/generate"),
    ("GET", "/v2/logging"),
    ("POST", "/v2/logging"),
    ("GET", "/v2/trace/setting"),
    ("POST", f"/v2/models/{MODEL}/trace/setting"),
    *(("GET", f"/v2/{kind}sharedmemory/status") for kind in ("system", "cuda")),
    *(("POST", f"/v2/{kind}sharedmemory/unregister") for kind in ("system", "cuda")),
    ("POST", "/v2/systemsharedmemory/region/x/register"),
    ("GET", "/v2/health/../logging"),
    ("GET", "/v2//logging"),
    ("GET", "/v2/health/ready/../../logging"),
    ("GET", "/v2%2flogging"),
    ("GET", "/v2/%6cogging"),
    ("GET", "/v2/logging?/v2/health/ready"),
    ("GET", "//v2/logging"),
]


def test_only_health_metadata_and_inference_are_open_over_http(edge):
    key = edge.keys["tester"]
    assert {path: edge.ask(method, path, key)[0] for method, path in OPEN} == {path: 200 for _, path in OPEN}
    for method, path in CLOSED:
        status, text = edge.ask(method, path, key)
        assert status == 404 or (status == 400 and "%2f" in path), f"{method} {path} -> {status} {text}"
    assert {edge.ask(method, path)[0] for method, path in [*OPEN, *CLOSED]} <= {401, 400}


def test_only_health_metadata_and_inference_are_open_over_grpc(edge):
    outcomes = {}
    with edge.channel() as channel:
        for key in (edge.keys["tester"], None):
            headers = [("authorization", f"Bearer {key}")] if key else []
            for name in [*CALLS, "../inference.GRPCInferenceService/LogSettings"]:
                with pytest.raises(grpc.RpcError) as error:
                    # a field that no message has: an open call refuses it, or answers what is not asserted here
                    channel.unary_unary(f"/{SERVICE}/{name}")(b"\xff", metadata=headers, timeout=120)
                outcomes[name, bool(key)] = error.value.code()
    assert all(code == grpc.StatusCode.UNAUTHENTICATED for (_, key), code in outcomes.items() if not key)
    closed = {name for (name, key), code in outcomes.items() if key and code == grpc.StatusCode.UNIMPLEMENTED}
    assert closed == {name for name, _ in outcomes} - OPEN_CALLS


def test_what_the_server_has_is_not_listed_and_not_needed(edge):
    with edge.client(model=None) as sam3, pytest.raises(ModelNotFound, match="does not list its models"):
        sam3.detect(FRAME, ["red circle"])
    with edge.client(model="sam3_r1008") as sam3, pytest.raises(ModelNotFound, match="sam3_r1008"):
        sam3.detect(FRAME, ["red circle"])


@pytest.mark.parametrize("scheme", ["grpcs", "https"])
def test_an_expired_certificate_is_said(edge, scheme):
    url = f"{scheme}://localhost:{edge.expired_port}"
    key, ca = edge.keys["tester"], edge.folder / "expired.crt"
    with Client(url, model=MODEL, timeout=120, ca=ca, key=key) as sam3:
        with pytest.raises(ServerUnavailable, match="certificate has expired; renew it"):
            sam3.detect(FRAME, ["red circle"])
        assert not sam3.ready()


def command(edge, capsys, monkeypatch, *words, key=None):
    """Exit status of `sam3-camera` and what it prints; the key comes from the environment and is in nothing of it."""
    key = key or edge.keys["tester"]
    monkeypatch.setenv("SAM3_API_KEY", key)
    status = camera.main([*words])
    out, err = capsys.readouterr()
    assert key not in out + err
    return status, out + err


def test_the_command_for_one_camera(edge, tmp_path, capsys, monkeypatch):
    picture = tmp_path / "yard.png"
    Image.fromarray(FRAME).save(picture)
    words = ["--source", str(picture), "--classes", "red circle", "--model", MODEL, "--ca", str(edge.ca), "--output"]
    for scheme in ("grpcs", "https"):
        url = ["--url", f"{scheme}://localhost:{edge.port}"]
        assert command(edge, capsys, monkeypatch, *words, *url)[0] == 0
        status, told = command(edge, capsys, monkeypatch, *words, *url, key="not-this-one")
        assert (status, "refuses the key" in told) == (2, True)


def test_a_fleet(edge, tmp_path, capsys, monkeypatch):
    """One of its servers has an expired certificate: the other one answers."""
    Image.fromarray(FRAME).save(tmp_path / "yard.png")
    (tmp_path / "both.crt").write_text(edge.ca.read_text() + (edge.folder / "expired.crt").read_text())
    file = tmp_path / "cameras.yaml"
    file.write_text(f"""
servers: [grpcs://localhost:{edge.port}, grpcs://localhost:{edge.expired_port}]
ca: both.crt
cameras: [{{name: yard, source: yard.png, classes: [red circle], model: {MODEL}, loop: true, fps: 10}}]
""")
    _, told = command(edge, capsys, monkeypatch, "--config", str(file), "--seconds", "3")
    account = next(json.loads(line) for line in told.splitlines() if line.startswith('{"cameras"'))
    assert account["answered"]
    assert account["failed_by"] == {"unavailable": 1}
    assert "its certificate has expired; renew it" in account["each"][0]["error"]


def test_large_bodies(edge, honest):
    with edge.client() as sam3, pytest.raises(InvalidRequest, match="no request of this size"):
        sam3.detect(np.zeros((5774, 5774, 3), np.uint8), ["red circle"])  # 100 MB
    head = f"POST /v2/models/{MODEL}/infer HTTP/1.1\r\nhost: localhost\r\ncontent-length: 100000000\r\n"
    for key, status in ((edge.keys["tester"], b"413"), ("wrong", b"401")):
        with edge.tls() as connection:
            connection.sendall(f"{head}authorization: Bearer {key}\r\n\r\n".encode())
            sent = 0
            with contextlib.suppress(OSError):
                while sent < 100_000_000 and not select.select([connection], [], [], 0)[0]:
                    sent += connection.send(bytes(65536))
            assert connection.recv(4096).split()[1] == status
            assert sent < 50_000_000
    honest.goes_on()


def test_slow_senders_are_cut_off(edge, honest):
    """Of everything that one can be slow with: the handshake, the headers, the body."""
    start = f"POST /v2/models/{MODEL}/infer HTTP/1.1\r\nhost: localhost\r\n"
    key = f"authorization: Bearer {edge.keys['tester']}\r\n"
    with contextlib.ExitStack() as stack:
        silent = stack.enter_context(socket.create_connection(("127.0.0.1", edge.port), 120))
        hello = stack.enter_context(socket.create_connection(("127.0.0.1", edge.port), 120))
        hello.sendall(b"\x16\x03\x01\x02")  # the first bytes of a handshake
        headers, body = stack.enter_context(edge.tls()), stack.enter_context(edge.tls())
        headers.sendall(start.encode())
        body.sendall(f"{start}{key}content-length: 1000\r\n\r\n".encode())
        with contextlib.suppress(OSError):
            for sender in (headers, body, headers, body):
                sender.sendall(b"x")
                honest.goes_on(1)
        for each in (silent, hello):
            with contextlib.suppress(ConnectionResetError):
                assert each.recv(4096) == b""
        assert [each.recv(4096).split()[1] for each in (headers, body)] == [b"408", b"408"]
    honest.goes_on()


def test_who_asks_too_often_waits_alone(edge, honest):
    """Also where it writes another client's name into the header by which those of tokens are told apart."""
    headers = [("authorization", f"Bearer {edge.keys['greedy']}"), ("x-sam3-client", "gate")]
    with edge.channel() as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        asked = service_pb2.ServerReadyRequest()
        calls = [stub.ServerReady.future(asked, metadata=headers, timeout=120) for _ in range(REQUESTS_AT_ONCE + 50)]
        codes = Counter(call.code() for call in calls)
    assert codes == {grpc.StatusCode.OK: REQUESTS_AT_ONCE, grpc.StatusCode.UNAVAILABLE: 50}
    with edge.client(key=edge.keys["greedy"]) as sam3, pytest.raises(Sam3ServerError, match="send fewer a second"):
        sam3.detect(FRAME, ["red circle"])
    status, text = edge.ask("GET", "/v2/health/ready", edge.keys["greedy"])
    assert (status, json.loads(text)) == (429, {"error": "local_rate_limited"})
    with edge.client(key=secrets(edge.folder, "token", "gate")) as sam3:
        sam3.detect(FRAME, ["red circle"])
    honest.goes_on()


def test_thousands_of_connections(edge, honest):
    """2,000 may be open at once; others are closed, those that say nothing too, and whoever was there is answered."""
    most = min(10_000, resource.getrlimit(resource.RLIMIT_NOFILE)[0] - 500)
    with contextlib.ExitStack() as stack:
        opened = []
        for _ in range(most):
            with contextlib.suppress(OSError):
                opened.append(stack.enter_context(socket.create_connection(("127.0.0.1", edge.port), 120)))
        honest.goes_on()
        assert len(opened) > most / 2
        ended = select.poll()
        for each in opened:
            ended.register(each, select.POLLIN)
        until(lambda: len(ended.poll(0)) == len(opened))
        honest.goes_on()
    with edge.client() as sam3:
        sam3.detect(FRAME, ["red circle"])
