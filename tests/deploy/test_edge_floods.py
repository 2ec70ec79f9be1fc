"""`deploy/edge.yaml` under large bodies, slow senders, too many requests and too many connections: an honest client is
answered through all of it."""

from __future__ import annotations

import contextlib
import json
import resource
import select
import socket
from collections import Counter

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from clients import InvalidRequest, Sam3ServerError
from tests.deploy.edge import FRAME, MODEL, secrets
from tests.ensemble.waiting import until

pytestmark = pytest.mark.server

REQUESTS_AT_ONCE = 400
"""Of one client, as the file says."""


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
