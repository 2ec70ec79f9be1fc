"""Cases over HTTP, written on the socket byte by byte, so that headers and lengths can be wrong too."""

from __future__ import annotations

import gzip
import json
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from tests.fuzz.cases import Case
from tests.fuzz.reply import GIVEN_UP_S, TIMEOUT_S, Reply

ODD_LENGTHS = ("-1", "0", "1", "abc", "", "10000000000000", str(2**64), "1e3", "0x10", "7, 7")
METHODS = ("GET", "PUT", "DELETE", "HEAD", "PATCH", "OPTIONS", "FOO", "post", "")
PATHS = (
    *("/v2/models//infer", "/v2/models/infer", "/v2/../infer", "//", "/" + "a" * 9000, "/v2/models/x/versions/infer"),
    *("/v2/models/%00/infer", "/%zz", "/v2/models/sam3_engine/generate", "/v2/models/stats", "/metrics", "*", ""),
    *("/v2/repository/models/sam3_engine/unload", "/v2/systemsharedmemory/region/x/unregister", "/v2/logging"),
)


@dataclass(slots=True)
class Message:
    """What is sent: a request line, headers, and a body in pieces, with a pause before each. `ends`: a server cannot
    know that it is not complete, so that it need not answer."""

    case: Case
    body: bytes
    method: str = "POST"
    path: str = ""
    headers: list[tuple[str, str]] = field(default_factory=list)
    length: str | None = None
    pieces: int = 1
    pause_s: float = 0.0
    incomplete: bool = False

    def head(self) -> bytes:
        lines = [f"{self.method} {self.path} HTTP/1.1", "Host: sam3"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        if self.length is not None:
            lines.append(f"Content-Length: {self.length}")
        return "\r\n".join([*lines, "", ""]).encode("utf-8", "replace")


def message_of(case: Case) -> Message:
    """The case as JSON alone, or with the binary tensor data extension."""
    binary = case.rng.random() < 0.5
    inputs, tail = [], b""
    for tensor in case.tensors:
        entry: dict[str, Any] = {"name": tensor.name, "datatype": tensor.dtype, "shape": tensor.shape}
        if binary and case.rng.random() < 0.8:
            entry["parameters"] = {"binary_data_size": len(tensor.raw)}
            tail += tensor.raw
        else:
            entry["data"] = tensor.values
        inputs.append(entry)
    document: dict[str, Any] = {"inputs": inputs}
    if case.parameters:
        document["parameters"] = case.parameters
    if case.outputs:
        document["outputs"] = case.outputs
    head = json.dumps(document).encode("utf-8", "surrogateescape")
    version = f"/versions/{case.version}" if case.version else ""
    message = Message(case, head + tail, path=f"/v2/models/{case.model}{version}/infer".replace(" ", "%20"))
    message.path = "".join(c if 32 < ord(c) < 127 else "%00" for c in message.path)
    message.length = str(len(message.body))
    if tail:
        message.headers.append(("Inference-Header-Content-Length", str(len(head))))
    return message


# ---- what is wrong on the way
def _header_length(m: Message) -> None:
    odd = (*ODD_LENGTHS, str(len(m.body) // 2), str(len(m.body) + 1), str(len(m.body) - 1))
    m.headers = [("Inference-Header-Content-Length", m.case.rng.choice(odd))]


def _length(m: Message) -> None:
    odd = (*ODD_LENGTHS, str(len(m.body) // 2), str(len(m.body) + 9), None)
    m.length, m.incomplete = m.case.rng.choice(odd), True


def _cut(m: Message) -> None:
    m.body, m.incomplete = m.body[: m.case.rng.randrange(len(m.body))], True


def _slow(m: Message) -> None:
    m.pieces, m.pause_s = m.case.rng.randint(2, 8), m.case.rng.choice((0.0, 0.01, 0.1))


def _document(m: Message) -> None:
    """A body that is no JSON, or hardly."""
    rng, body = m.case.rng, bytearray(m.body)
    way = rng.randrange(7)
    if way == 0:
        body = body[: rng.randrange(len(body) + 1)]
    elif way == 1:
        for _ in range(rng.randint(1, 10)):
            body[rng.randrange(len(body))] = rng.randrange(256)
    elif way == 2:
        body = bytearray(b"[" * rng.choice((10, 1000, 100_000)))
    elif way == 3:
        body = bytearray(b'{"inputs":' * rng.choice((10, 1000)) + b"1")
    elif way == 4:
        body = bytearray(rng.choice((b"", b"null", b"[]", b"{}", b"7", b'"x"', b'{"inputs":{}}', b'{"inputs":[null]}')))
    elif way == 5:
        body = bytearray(bytes(m.body).decode("latin-1").encode("utf-16"))
    else:
        body = bytearray(rng.randbytes(rng.randint(1, 3000)))
    m.body, m.length = bytes(body), str(len(body))


def _encoding(m: Message) -> None:
    name = m.case.rng.choice(("gzip", "deflate", "br", "gzip, gzip"))
    m.headers.append(("Content-Encoding", name))
    if m.case.rng.random() < 0.5:
        m.body = gzip.compress(m.body) if m.case.rng.random() < 0.7 else gzip.compress(b"0" * 10_000_000)
        m.length = str(len(m.body))


def _method(m: Message) -> None:
    m.method, m.incomplete = m.case.rng.choice(METHODS), True


def _path(m: Message) -> None:
    m.path, m.incomplete = m.case.rng.choice(PATHS), True


def _headers(m: Message) -> None:
    rng = m.case.rng
    m.headers += rng.choice(
        (
            [(f"X-{i}", "y") for i in range(500)],
            [("X", "y" * rng.choice((1000, 100_000)))],
            [("Accept-Encoding", rng.choice(("gzip", "deflate", "gzip;q=x")))],
            [("Expect", "100-continue")],
            [("Content-Type", "\0")],
            [("triton-request-id", "\x7f" * 99), ("traceparent", "00-" + "g" * 99)],
            [("Content-Length", str(len(m.body) + 5))],
        )
    )
    m.incomplete = True


def _chunks(m: Message) -> None:
    rng = m.case.rng
    size = rng.choice((b"%x" % len(m.body), b"%x" % len(m.body), b"-1", b"zz", b"f" * 20))
    m.headers.append(("Transfer-Encoding", "chunked"))
    m.body, m.length, m.incomplete = size + b"\r\n" + m.body + b"\r\n0\r\n\r\n", None, True


WIRE: tuple[Callable[[Message], None], ...] = (
    *(_header_length, _length, _cut, _slow, _document, _document),
    *(_encoding, _method, _path, _headers, _chunks),
)


def send(case: Case, address: str) -> Reply:
    """Sends the case, one in three with something wrong on the way too."""
    message = message_of(case)
    if case.rng.random() < 0.33:
        spoil = case.rng.choice(WIRE)
        spoil(message)
        case.spoilt.append(spoil.__name__.strip("_"))
    host, _, port = address.rpartition(":")
    start, data = time.monotonic(), b""
    patience = GIVEN_UP_S if message.incomplete else TIMEOUT_S
    try:
        with socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as connection:
            try:
                connection.sendall(message.head())
                step = -(-len(message.body) // message.pieces) or 1
                for at in range(0, len(message.body), step):
                    time.sleep(message.pause_s)
                    connection.sendall(message.body[at : at + step])
            except (BrokenPipeError, ConnectionResetError):
                pass  # it may have answered before it had all
            connection.settimeout(patience)
            while not _complete(data, message.method) and (part := connection.recv(1 << 20)):
                data += part
    except TimeoutError:
        return Reply("given up" if message.incomplete else "silent", "", time.monotonic() - start)
    except ConnectionRefusedError as error:
        return Reply("nobody", str(error), time.monotonic() - start)
    except OSError:
        pass  # reset while reading: what came is judged
    return _reply(data, time.monotonic() - start, message.incomplete)


def _complete(data: bytes, method: str) -> bool:
    head, gap, body = data.partition(b"\r\n\r\n")
    if not gap:
        return False
    if head.startswith(b"HTTP/1.1 100"):
        return _complete(body, method)
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return method == "HEAD" or len(body) >= int(value)
    return method == "HEAD" or b"chunked" not in head.lower() or body.endswith(b"0\r\n\r\n")


def _reply(data: bytes, seconds: float, incomplete: bool) -> Reply:
    if data.startswith(b"HTTP/1.1 100"):
        data = data.partition(b"\r\n\r\n")[2]
    if not data:
        return Reply("closed" if incomplete else "closed without an answer", "", seconds)
    head, _, body = data.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    status = int(words[1]) if len(words) > 1 and words[1].isdigit() else 0
    kind = "answered" if status < 300 else "refused" if status < 500 else "failed"
    return Reply(kind if status else "no HTTP", "" if kind == "answered" else body.decode("utf-8", "replace"), seconds)
