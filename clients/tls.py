"""TLS and keys of a connection: which address asks for TLS, which key is sent, and what is wrong where it fails.

A key is an API key or a token (JWT), sent as `authorization: Bearer KEY`, over TLS only.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

SCHEMES = {"grpc": ("grpc", False), "grpcs": ("grpc", True), "http": ("http", False), "https": ("http", True)}
"""Protocol, and whether it is spoken over TLS, by the scheme of an address."""
KEY_VARIABLE = "SAM3_API_KEY"
PORT = 443
"""Of both protocols over TLS."""
CA_HELP = "certificates (PEM) of who signed the server's, where this computer does not know them"
URL_HELP = (
    "host:port of the server, or grpcs://host or https://host over TLS, with the key in the environment variable"
    f" {KEY_VARIABLE}"
)

TROUBLES = {
    "certificate has expired": "its certificate has expired; renew it there",
    "not yet valid": "its certificate is not valid yet; compare the clocks of both computers",
    "self signed certificate|self-signed certificate|unable to get local issuer|unable to get issuer": (
        "its certificate is signed by an authority that this computer does not know; pass the authority's certificate,"
        " or the server's own where it signed itself, as ca= in Python, --ca, or `ca` of a fleet's file"
    ),
    "hostname verification|hostname mismatch|ip address mismatch|doesn't match|is not valid for": (
        "its certificate is for another host name; use a name that stands in it, or let one be made for this name"
    ),
    "wrong_version_number|wrong version number|record layer failure": (
        "it does not speak TLS; write host:port without a scheme, or the port that does"
    ),
    "certificate_verify_failed|certificate verify failed|handshake failed": "TLS with it fails",
}
"""What is wrong and what to do, by words of OpenSSL, BoringSSL and gRPC; the first that fits."""
CUT_OFF = (
    *("socket closed", "connection closed", "connection reset", "disconnected"),
    *("empty response", "eof occurred", "broken pipe"),
)
"""Words for a connection that the other side ends."""
HINTS = {
    False: "; if it expects TLS, write grpcs://host (or https://host)",
    True: "; if this was while a frame was sent, the frame may have been too large",
}
"""What that may mean, without and with TLS."""


def trouble(message: str) -> str | None:
    """What is wrong with the encryption according to a transport's message, and the remedy; None where nothing is."""
    said = message.lower()
    return next((told for words, told in TROUBLES.items() if any(word in said for word in words.split("|"))), None)


def key_to_send(key: str | None, encrypted: bool) -> str | None:
    """`key`, or that of the environment where the connection is over TLS. Raises ValueError for a key that no header
    can hold, without showing it, and for one that would go over the network in the clear."""
    if key is None and encrypted:
        key = os.environ.get(KEY_VARIABLE)
    if key is None or not key.strip():
        return None
    if not encrypted:
        raise ValueError("a key is sent over TLS only, where nobody else reads it; write grpcs://host or https://host")
    if not (key.strip().isascii() and key.strip().isprintable() and " " not in key.strip()):
        raise ValueError(f"key: expected printable ASCII without blanks, got something else, of {len(key)} characters")
    return key.strip()


def with_key(key: str) -> Callable[[Any], None]:
    """A plugin of tritonclient that sends the key with each request."""

    def add(request: Any) -> None:
        request.headers["authorization"] = f"Bearer {key}"

    return add


def check_authorities(ca: Path | str) -> None:
    """Raises ValueError where `ca` is not a file of certificates."""
    try:
        ssl.create_default_context(cafile=ca)
    except (OSError, ssl.SSLError) as error:
        raise ValueError(f"ca: expected a file of certificates in PEM, got {str(ca)!r} ({error})") from error


def options(protocol: str, asyncio: bool, ca: Path | str | None, host: str) -> dict[str, Any]:
    """tritonclient's arguments for TLS; `host` is the name that the certificate must have. Raises ValueError where the
    installed packages cannot."""
    if protocol == "grpc":
        return {"ssl": True, "root_certificates": str(ca) if ca else None}
    if asyncio:
        return {"ssl": True, "ssl_context": ssl.create_default_context(cafile=ca)}
    import gevent.ssl
    import geventhttpclient.connectionpool

    if not hasattr(geventhttpclient.connectionpool, "SSLConnectionPool"):
        raise ValueError("geventhttpclient 2.0.2 has no TLS on Python 3.12; write grpcs://host, or use AsyncClient")
    context = gevent.ssl.create_default_context(cafile=ca)
    # newer versions of geventhttpclient hand over the authorities that it would take by itself: `ca` replaces them
    return {
        "ssl": True,
        "ssl_context_factory": lambda cafile=None: context,
        "ssl_options": {"server_hostname": host},
    }
