"""HTTP requests that leave proxies out where the other side is this machine, whatever `http_proxy` says.

A proxy on another machine would ask itself. Standard library only: clients and tools read this module too.
"""

from __future__ import annotations

import ipaddress
import os
import urllib.request
from typing import Any
from urllib.parse import urlsplit

NAMES = ("localhost", "127.0.0.1", "::1")
"""What this machine is usually called."""
_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def is_loopback(address: str) -> bool:
    """Whether `address`, a host with or without a port, is this machine. `0.0.0.0` and `[::]`, where servers listen,
    reach it too."""
    try:
        bare = address.count(":") > 1 and not address.startswith("[")  # an IPv6 address without brackets
        host = (urlsplit(f"//[{address}]" if bare else f"//{address}").hostname or "").rstrip(".")
    except ValueError:  # brackets that do not close, or something else with several colons
        return False
    try:
        ip = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host == "localhost" or host.endswith((".localhost", "localhost.localdomain"))
    mapped = getattr(ip, "ipv4_mapped", None) or ip
    return bool(mapped.is_loopback or mapped.is_unspecified)


def open_direct(request: urllib.request.Request | str, timeout: float) -> Any:
    """`urllib.request.urlopen` without a proxy. Raises what that raises."""
    return _DIRECT.open(request, timeout=timeout)


def open_url(request: urllib.request.Request | str, timeout: float) -> Any:
    """`urllib.request.urlopen`, without a proxy where the address is this machine. Raises what that raises."""
    url = request if isinstance(request, str) else request.full_url
    if is_loopback(urlsplit(url).netloc):
        return open_direct(request, timeout)
    return urllib.request.urlopen(request, timeout=timeout)


def no_proxy_variables() -> dict[str, str]:
    """The environment's variables that keep programs of others from a proxy, with this machine's names among them."""
    return {
        name: ",".join(dict.fromkeys([*filter(None, os.environ.get(name, "").split(",")), *NAMES]))
        for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy")
    }
