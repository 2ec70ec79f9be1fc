"""The page's web server within the fleet's event loop. It leaves signals to the fleet, which ends with an account."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI

LAST_ANSWERS_S = 3
"""Requests that are under way at the end have so long; a browser that takes nothing must not keep the program."""


class WebServer(uvicorn.Server):
    """Serves until `should_exit` is set."""

    def __init__(self, app: FastAPI) -> None:
        super().__init__(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=LAST_ANSWERS_S))

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """uvicorn's own would raise the signal again once the page has ended, before the account is written."""
        yield


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on an interface: a name or an address, IPv6 too. Raises OSError, which says why not."""
    try:
        family, kind, protocol, _, where = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(where)
            listener.listen(128)
        except BaseException:
            listener.close()
            raise
    except (OSError, OverflowError) as error:
        raise OSError(
            f"the page cannot listen on {host_port(host, port)} ({error}); name another --host or --port"
        ) from error
    return listener


def host_port(host: str, port: int) -> str:
    """As it stands in an address: IPv6 in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
