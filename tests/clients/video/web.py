"""Web servers as cameras have them: playlists, pictures, parts with odd boundaries, passwords, files without ranges."""

from __future__ import annotations

import contextlib
import io
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from PIL import Image

from tests.clients.video.films import grey


class WebCamera:
    """Calls `answer(request)` for each GET; `asked` holds the paths, `connections` the clients' ports."""

    def __init__(self, answer: Callable[[BaseHTTPRequestHandler], None], interface: str = "127.0.0.1") -> None:
        self.asked: list[str] = []
        self.connections: set[int] = set()
        camera = self

        class Request(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"  # connections are kept

            def do_GET(self) -> None:
                camera.asked.append(self.path)
                camera.connections.add(self.client_address[1])
                with contextlib.suppress(OSError):  # whoever looks may go at any time
                    answer(self)

            def log_message(self, *_: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            address_family = socket.AF_INET6 if ":" in interface else socket.AF_INET

            def handle_error(self, *_: object) -> None:
                pass  # a client that went away

        self._server = Server((interface, 0), Request)
        self.host = f"[{interface}]:" if ":" in interface else f"{interface}:"
        self.host += str(self._server.server_port)
        self.address = f"http://{self.host}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self) -> WebCamera:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


def has_ipv6() -> bool:
    """Whether something can listen at ::1 here: containers often have no IPv6."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


def send(request: BaseHTTPRequestHandler, body: bytes, kind: str, status: int = 200, **headers: str) -> None:
    """A whole answer with its length, and without parts of files."""
    request.send_response(status)
    for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **headers}.items():
        request.send_header(name.replace("_", "-"), value)
    request.end_headers()
    request.wfile.write(body)


def stream(request: BaseHTTPRequestHandler, parts: Iterator[bytes], kind: str) -> None:
    """An answer without a length, which ends with the connection."""
    request.send_response(200)
    request.send_header("Content-Type", kind)
    request.send_header("Connection", "close")
    request.end_headers()
    for part in parts:
        request.wfile.write(part)
        request.wfile.flush()
    request.close_connection = True


def picture(level: int, kind: str = "JPEG", size: tuple[int, int] = (48, 64)) -> bytes:
    """A grey picture's file."""
    buffer = io.BytesIO()
    Image.fromarray(grey(level, size)).save(buffer, kind)
    return buffer.getvalue()
