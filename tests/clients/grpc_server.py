"""A gRPC server that speaks Triton's inference protocol as far as a test says, and a relay that can go silent."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
from tritonclient.grpc import service_pb2

SERVICE = "inference.GRPCInferenceService"


class Answers:
    """What the server did: requests that came, that were cancelled, and that were answered. It answers when `go` is
    set."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.came = self.cancelled = self.answered = 0
        self.sentence = "an answer of the server's"

    def infer(self, request: service_pb2.ModelInferRequest, context: grpc.ServicerContext):
        self.came += 1
        ended = threading.Event()

        def over() -> None:
            self.cancelled += not ended.is_set()

        context.add_callback(over)
        self.go.wait(60)
        ended.set()
        self.answered += 1
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, self.sentence)


@contextlib.contextmanager
def serving(answers: Answers) -> Iterator[int]:
    """The port of a running server."""
    handler = grpc.unary_unary_rpc_method_handler(
        answers.infer,
        request_deserializer=service_pb2.ModelInferRequest.FromString,
        response_serializer=service_pb2.ModelInferResponse.SerializeToString,
    )
    server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.http2.max_ping_strikes", 0)])
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {"ModelInfer": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        answers.go.set()
        server.stop(0).wait()


class Relay:
    """host:port in front of `target` (host:port); while `silent` is set it keeps all connections, takes new ones, and
    passes nothing on."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self.silent = threading.Event()
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def __enter__(self) -> Relay:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self.cut()

    def close(self) -> None:
        """Takes no more connections."""
        _end(self._listener)

    def cut(self) -> None:
        """Ends all connections."""
        while self._open:
            _end(self._open.pop())

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self._open.append(near)
                if not self.silent.is_set():
                    far = socket.create_connection(self._target)
                    self._open.append(far)
                    self._pump(near, far)
                    self._pump(far, near)

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        def pump() -> None:
            with contextlib.suppress(OSError):
                while data := source.recv(65536):
                    if not self.silent.is_set():  # else it is lost
                        sink.sendall(data)
                sink.shutdown(socket.SHUT_WR)

        threading.Thread(target=pump, daemon=True).start()


def _end(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


def wait_until(condition: Callable[[], bool], seconds: float = 120.0) -> None:
    """Returns when the condition holds; fails after `seconds`."""
    for _ in range(round(seconds / 0.02)):
        if condition():
            return
        threading.Event().wait(0.02)
    raise AssertionError("what was waited for did not come")
