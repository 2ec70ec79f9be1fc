"""A request over gRPC is never taken back: not by a time-out, not by its caller, not by closing; and a connection that
has died is noticed."""

import asyncio
import threading

import pytest

from clients import AsyncClient, Client, InvalidRequest, RequestTimeout, ServerUnavailable, calls, transport
from clients.errors import TRIES
from clients.transport import DEFAULT_TIMEOUT_S, KEEPALIVE_S, Server, proxy_of
from tests.clients.grpc_server import Answers, Relay, serving, wait_until

MODEL = "sam3_r252"


@pytest.fixture
def answers():
    return Answers()


@pytest.fixture
def port(answers):
    with serving(answers) as port:
        yield port


def blocking(address, timeout):
    return Client(address, model=MODEL, timeout=timeout)


def detect(kind, address, timeout):
    """One request by a client of that kind, which is closed afterwards."""

    async def go():
        async with AsyncClient(address, model=MODEL, timeout=timeout) as client:
            await client.detect(b"x", ["a"])

    if kind == "asyncio":
        return asyncio.run(go())
    with blocking(address, timeout) as client:
        return client.detect(b"x", ["a"])


def test_a_blocking_call_that_timed_out_is_left_open(answers, port):
    with blocking(f"127.0.0.1:{port}", 0.2) as client:
        with pytest.raises(RequestTimeout, match=r"within 0\.2 s"):
            client.detect(b"x", ["a"])
        wait_until(lambda: answers.came == 1)
        answers.go.set()
    assert (answers.answered, answers.cancelled) == (1, 0), "closing waits for the late answer"


async def test_an_asyncio_call_that_timed_out_is_left_open(answers, port):
    async with AsyncClient(f"127.0.0.1:{port}", model=MODEL, timeout=0.2) as client:
        with pytest.raises(RequestTimeout, match=r"within 0\.2 s"):
            await client.detect(b"x", ["a"])
        await asyncio.to_thread(wait_until, lambda: answers.came == 1)
        answers.go.set()
    assert (answers.answered, answers.cancelled) == (1, 0)


async def test_a_caller_that_is_cancelled_leaves_its_request(answers, port):
    async with AsyncClient(f"127.0.0.1:{port}", model=MODEL) as client:
        caller = asyncio.create_task(client.detect(b"x", ["a"]))
        await asyncio.to_thread(wait_until, lambda: answers.came == 1)
        caller.cancel()
        with pytest.raises(asyncio.CancelledError):
            await caller
        answers.go.set()
    assert (answers.answered, answers.cancelled) == (1, 0)


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
def test_errors_are_passed_on(answers, port, kind):
    answers.go.set()
    with pytest.raises(InvalidRequest, match="an answer of the server's"):
        detect(kind, f"127.0.0.1:{port}", 60)
    assert answers.came == 1


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
def test_a_request_that_another_one_of_its_batch_spoilt_is_sent_again(answers, port, kind):
    answers.go.set()
    answers.sentence = "incomplete string data for inference input 'classes', expecting string of length 11"
    with pytest.raises(InvalidRequest, match="incomplete string data"):
        detect(kind, f"127.0.0.1:{port}", 60)
    assert answers.came == TRIES


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
def test_closing_waits_no_longer_than_it_says(answers, port, kind, monkeypatch):
    """Then the call is taken back after all: a server that hangs must not keep a client from ending."""
    monkeypatch.setattr(calls, "LAST_ANSWERS_S", 0.1)

    with pytest.raises(RequestTimeout):
        detect(kind, f"127.0.0.1:{port}", 0.1)
    wait_until(lambda: answers.cancelled == answers.came)


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
def test_a_connection_that_died_without_closing_is_given_up(answers, port, kind, monkeypatch):
    """The relay loses everything, as a network that was cut: without keep-alive the call would last its whole time."""
    monkeypatch.setattr(transport, "KEEPALIVE_S", 0.2)
    monkeypatch.setattr(transport, "KEEPALIVE_TIMEOUT_S", 0.2)
    monkeypatch.setattr(transport, "PINGS", 1e9)
    with Relay(f"127.0.0.1:{port}") as relay:

        def cut():
            wait_until(lambda: answers.came == 1)
            relay.silent.set()

        threading.Thread(target=cut, daemon=True).start()

        with pytest.raises(ServerUnavailable, match="ping timeout"):
            detect(kind, relay.address, 3600)


@pytest.mark.parametrize(
    ("timeout", "every_s"),
    [(1, KEEPALIVE_S), (DEFAULT_TIMEOUT_S, KEEPALIVE_S), (900, 300)],
    ids=["brief", "usual", "patient"],
)
def test_a_patient_client_pings_rarely(timeout, every_s):
    """A server of gRPC's defaults takes many pings during one call for abuse, and closes the connection."""
    options = dict(Server("gpu-host", timeout=timeout)._channel_arguments())
    assert options["grpc.keepalive_time_ms"] == every_s * 1e3


@pytest.mark.parametrize(
    ("url", "direct"), [("localhost", True), ("127.0.0.1:9", True), ("gpu-host:8001", False)], ids=str
)
def test_loopback_never_goes_to_a_proxy(url, direct):
    assert (dict(Server(url)._channel_arguments()).get("grpc.enable_http_proxy") == 0) is direct


@pytest.mark.parametrize(
    ("address", "environment", "named"),
    [
        ("gpu-host", {"http_proxy": "http://proxy:3128"}, "http_proxy"),
        ("gpu-host", {"http_proxy": "http://proxy:3128", "grpc_proxy": "http://proxy:3128"}, "grpc_proxy"),
        ("gpu-host", {"http_proxy": "http://proxy:3128", "no_proxy": "example.org,gpu-host"}, None),
        ("gpu-host", {"http_proxy": ""}, None),
        ("gpu-host", {}, None),
        ("localhost", {"http_proxy": "http://proxy:3128"}, None),
    ],
)
def test_an_error_names_the_proxy_that_is_in_the_way(address, environment, named, monkeypatch):
    for name in ("grpc_proxy", "https_proxy", "http_proxy", "no_proxy", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert proxy_of(address) == named
    error = str(Server(address).error(ConnectionRefusedError("refused"), "sam3_r252"))
    assert ("no_proxy" in error) is (named is not None)
    assert "no_proxy" not in str(Server(address, "http").error(ConnectionRefusedError("refused"), "sam3_r252"))


@pytest.mark.parametrize("name", ["grpc_proxy", "https_proxy", "http_proxy"])
@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
def test_a_server_of_this_machine_is_asked_past_the_proxy(answers, port, name, kind, monkeypatch):
    for variable in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    answers.go.set()
    with pytest.raises(InvalidRequest, match="an answer of the server's"):
        detect(kind, f"localhost:{port}", 60)
