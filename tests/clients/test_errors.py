"""Every failure is a `Sam3ServerError` that names the address and the remedy, in both clients, over both protocols."""

import asyncio
import socket
import threading
import time

import pytest
from tritonclient.utils import InferenceServerException

from clients import (
    AsyncClient,
    Client,
    InvalidRequest,
    ModelNotFound,
    RequestTimeout,
    Sam3ServerError,
    ServerUnavailable,
    WrongVersion,
)
from clients.errors import translate
from clients.transport import CHANNEL_ARGUMENTS, DEFAULT_TIMEOUT_S

PROTOCOLS = ("grpc", "http")
KINDS = ("blocking", "asyncio")


def detect(kind, port, protocol, timeout=20.0):
    if kind == "blocking":
        with Client(f"127.0.0.1:{port}", protocol=protocol, model="sam3_r252", timeout=timeout) as client:
            return client.detect(b"x", ["a"])

    async def go():
        async with AsyncClient(f"127.0.0.1:{port}", protocol=protocol, model="sam3_r252", timeout=timeout) as client:
            return await client.detect(b"x", ["a"])

    return asyncio.run(go())


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_listens(kind, protocol, closed_port):
    with pytest.raises(ServerUnavailable) as error:
        detect(kind, closed_port, protocol)
    assert f"{protocol}://127.0.0.1:{closed_port}" in str(error.value)
    assert "sam3-serve" in str(error.value)
    assert isinstance(error.value, ConnectionError)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_answers(kind, protocol, silent_port):
    """The client's own timeout applies, not the default one."""
    start = time.monotonic()
    with pytest.raises(RequestTimeout, match=r"within 0\.4 s"):
        detect(kind, silent_port, protocol, timeout=0.4)
    assert time.monotonic() - start < DEFAULT_TIMEOUT_S


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", KINDS)
def test_something_else_answers(kind, protocol):
    """As when the gRPC client is given the HTTP port."""

    def answer(listener):
        connection, _ = listener.accept()
        with connection:
            connection.sendall(b"\0\0\x18\4 what do you want?\r\n\r\n")
            connection.shutdown(socket.SHUT_WR)
            connection.settimeout(60)
            while connection.recv(4096):
                pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=answer, args=(listener,), daemon=True).start()
        with pytest.raises(ServerUnavailable, match="8001 for gRPC") as error:
            detect(kind, listener.getsockname()[1], protocol, timeout=60)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_ready_is_false_and_raises_nothing(protocol, closed_port):
    with Client(f"127.0.0.1:{closed_port}", protocol=protocol, model="sam3_r252") as client:
        assert client.ready() is False


STATUS = {
    "grpc invalid": ("StatusCode.INVALID_ARGUMENT", "threshold: expected 0 to 1, got 7", InvalidRequest),
    "http invalid": ("400", "threshold: expected 0 to 1, got 7", InvalidRequest),
    "grpc other inputs": (
        "StatusCode.INVALID_ARGUMENT",
        "expected number of inputs between 0 and 9 but got 10 inputs for model 'x'",
        WrongVersion,
    ),
    "http other outputs": ("400", "unexpected inference output 'new' for model 'x'", WrongVersion),
    "http other type": (
        "400",
        "inference input 'threshold' data-type is 'FP64', but model 'x' expects 'FP32'",
        WrongVersion,
    ),
    "grpc not found": ("StatusCode.NOT_FOUND", "Request for unknown model: 'x' is not found", ModelNotFound),
    "http not found": ("404", "Request for unknown model: 'x' is not found", ModelNotFound),
    "no version left": (
        "StatusCode.UNAVAILABLE",
        "Request for unknown model: 'x' has no available versions",
        ModelNotFound,
    ),
    "grpc stopping": ("StatusCode.UNAVAILABLE", "server is stopping", ServerUnavailable),
    "http stopping": ("503", "server is stopping", ServerUnavailable),
    "deadline": ("StatusCode.DEADLINE_EXCEEDED", "Deadline Exceeded", RequestTimeout),
    "failed inside": ("StatusCode.INTERNAL", "sam3_decoder: out of memory", Sam3ServerError),
    "http failed inside": ("500", "sam3_decoder: out of memory", Sam3ServerError),
}


@pytest.mark.parametrize("case", STATUS)
def test_status_decides_the_kind(case):
    status, message, kind = STATUS[case]
    error = translate(InferenceServerException(message, status), where="grpc://h:1", model="x", timeout=2)
    assert type(error) is kind
    assert message in str(error) or kind is RequestTimeout


def test_grpc_reconnects_within_a_second():
    assert dict(CHANNEL_ARGUMENTS)["grpc.max_reconnect_backoff_ms"] == 1000


def test_settings_are_checked():
    for wrong, says in [
        ({"protocol": "carrier pigeon"}, "grpc, http"),
        ({"url": "ftp://host:8000"}, "'host:8000'"),
        ({"timeout": 0}, "positive"),
    ]:
        with pytest.raises(ValueError, match=says):
            Client(**wrong)


@pytest.mark.parametrize(
    ("url", "protocol", "address"),
    [
        ("host", "grpc", "host:8001"),
        ("host", "http", "host:8000"),
        ("host:9", "grpc", "host:9"),
        ("10.0.0.1:80", "http", "10.0.0.1:80"),
    ],
)
def test_default_ports(url, protocol, address):
    with Client(url, protocol=protocol) as client:
        assert client.server.address == address


def test_http_client_stays_in_its_thread(closed_port):
    caught = []

    def use(client):
        try:
            client.models()
        except RuntimeError as error:
            caught.append(error)

    with Client(f"127.0.0.1:{closed_port}", protocol="http") as client:
        thread = threading.Thread(target=use, args=(client,))
        thread.start()
        thread.join()
    assert "one Client per thread" in str(caught[0])
