"""The choice of ports for a server."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence

from ensemble.server.requirements import ServerError


def choose_ports(address: str, wanted: Sequence[int]) -> list[int]:
    """Each wanted port if it is free, a free one for 0. All sockets stay open until all are chosen, so no port is given
    twice. Raises ServerError."""
    sockets, ports = [], []
    try:
        for port in wanted:
            probe = socket.socket()
            sockets.append(probe)
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
            ports.append(probe.getsockname()[1])
    finally:
        for probe in sockets:
            probe.close()
    return ports
