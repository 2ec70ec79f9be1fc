"""The choice of ports for a server."""

from __future__ import annotations

import errno
import socket
from collections.abc import Collection, Sequence
from contextlib import ExitStack

from ensemble.server.requirements import ServerError


def choose_ports(address: str, wanted: Sequence[int], taken: Collection[int] = ()) -> list[int]:
    """Each wanted port if it is free, for 0 a free one that is not `taken`: chosen earlier, and not listened on yet.
    All sockets stay open until all are chosen, so no port is given twice. Raises ServerError."""
    ports = []
    with ExitStack() as opened:
        for port in wanted:
            found = _bound(address, port, opened)
            while not port and found in taken:
                found = _bound(address, port, opened)
            ports.append(found)
    return ports


def _bound(address: str, port: int, opened: ExitStack) -> int:
    """The port that a new socket is bound to, until `opened` closes it."""
    probe = opened.enter_context(socket.socket())
    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        probe.bind((address, port))
    except OSError as error:
        if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
            raise ServerError(
                "expected the IPv4 address of one of this machine's interfaces, such as 127.0.0.1, or 0.0.0.0"
                f" for all, got {address!r} ({error.strerror})"
            ) from None
        raise ServerError(
            f"port {port} on {address} cannot be used ({error.strerror}); stop what uses it or choose another"
        ) from None
    return int(probe.getsockname()[1])
