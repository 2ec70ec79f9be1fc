"""The connection settings of a server, and the tritonclient objects made from them.

The blocking and the asyncio client share this module, so each protocol's peculiarities are written down once.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from clients import tls
from clients.errors import ModelNotFound, Sam3ServerError, ServerUnavailable, translate
from clients.redact import without_password
from ensemble.loopback import is_loopback
from ensemble.spec import is_front_name
from ensemble.video.variant import is_video_name

DEFAULT_PORTS = {"grpc": 8001, "http": 8000}
DEFAULT_TIMEOUT_S = 30.0
CHANNEL_ARGUMENTS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # gRPC's own back-off grows to two minutes, far too long for a camera whose server has restarted
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
]
"""gRPC channel options of both clients."""


KEEPALIVE_S, KEEPALIVE_TIMEOUT_S = 20.0, 10.0
"""A gRPC connection that has waited for an answer so long is pinged; without a reply it is given up for a new one. Else
a server that lost its power would be waited for until TCP gives up, a quarter of an hour later."""
PINGS = 3
"""A server of gRPC's defaults closes a connection that pings more often than this without any data between."""


@dataclass(frozen=True, slots=True)
class Server:
    """Where requests are sent: `url` is `host:port` (a bare host gets the protocol's default port), `timeout` is in
    seconds per request. A scheme before the host says the protocol, and whether it is spoken over TLS: `grpc`, `grpcs`,
    `http` or `https`. `ca` is a file with the certificates (PEM) of the authorities that may have signed the server's;
    `key` is sent over TLS with each request, by default that of the environment variable SAM3_API_KEY. Raises
    ValueError for settings that cannot work.
    """

    url: str = "localhost"
    protocol: str = "grpc"
    timeout: float = DEFAULT_TIMEOUT_S
    ca: Path | str | None = None
    key: str | None = field(default=None, repr=False)
    encrypted: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        if self.protocol not in DEFAULT_PORTS:
            raise ValueError(f"protocol must be one of {', '.join(DEFAULT_PORTS)}, got {self.protocol!r}")
        scheme, colon, rest = self.url.partition("://")
        if colon and scheme.lower() in tls.SCHEMES:
            protocol, encrypted = tls.SCHEMES[scheme.lower()]
            self._settle(url=rest.removesuffix("/"), protocol=protocol, encrypted=encrypted)
        if any(character in self.url for character in "/@?#"):
            shown = without_password(self.url)
            bare = urlsplit(shown if "://" in shown else f"//{shown}").netloc
            kind = f"another scheme than {', '.join(tls.SCHEMES)}" if "://" in self.url else "a user name and a path"
            raise ValueError(f"url must be host:port without {kind}, got {shown!r}; write {bare!r}")
        if not self.timeout > 0:
            raise ValueError(f"timeout must be a positive number of seconds, got {self.timeout!r}")
        if self.ca is not None:
            if not self.encrypted:
                raise ValueError(f"ca is of TLS; write {self.protocol}s://{self.url}, or leave ca out")
            tls.check_authorities(self.ca)
        self._settle(key=tls.key_to_send(self.key, self.encrypted))

    def _settle(self, **values: Any) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    @property
    def address(self) -> str:
        """`host:port`."""
        port = tls.PORT if self.encrypted else DEFAULT_PORTS[self.protocol]
        if self.url.count(":") > 1 and not self.url.startswith("["):  # an IPv6 address alone
            return f"[{self.url}]:{port}"
        host, colon, digits = self.url.rpartition(":")
        return self.url if colon and digits.isdigit() and host else f"{self.url}:{port}"

    @property
    def full_address(self) -> str:
        """With the scheme: `grpcs://host:443`."""
        return f"{self.protocol}{'s' * self.encrypted}://{self.address}"

    @property
    def per_call(self) -> dict[str, float]:
        """tritonclient's keyword for the deadline of one call; its HTTP clients take their timeout when they are
        made."""
        return {"client_timeout": self.timeout} if self.protocol == "grpc" else {}

    def connect(self, *, asyncio: bool) -> Any:
        """tritonclient's client, which connects on its first request."""
        module = importlib.import_module(f"tritonclient.{self.protocol}{'.aio' if asyncio else ''}")
        options: dict[str, Any] = {"channel_args": self._channel_arguments()}
        if self.protocol == "http":
            timeouts = ("conn_timeout",) if asyncio else ("connection_timeout", "network_timeout")
            options = dict.fromkeys(timeouts, self.timeout)
        if self.encrypted:
            options |= tls.options(self.protocol, asyncio, self.ca, urlsplit(f"//{self.address}").hostname or "")
        client = module.InferenceServerClient(self.address, **options)
        if self.key is not None:
            client.register_plugin(tls.with_key(self.key))
        return client

    def _channel_arguments(self) -> list[tuple[str, int]]:
        every_s = max(KEEPALIVE_S, self.timeout / PINGS)
        keepalive = [
            ("grpc.keepalive_time_ms", round(every_s * 1e3)),
            ("grpc.keepalive_timeout_ms", round(KEEPALIVE_TIMEOUT_S * 1e3)),
            ("grpc.http2.ping_timeout_ms", round(KEEPALIVE_TIMEOUT_S * 1e3)),  # else a minute, whatever the other says
        ]
        direct = [("grpc.enable_http_proxy", 0)] if is_loopback(self.address) else []
        return [*CHANNEL_ARGUMENTS, *keepalive, *direct]

    def error(self, error: BaseException, model: str | None) -> Sam3ServerError:
        """The client's exception for one of the transport's."""
        found = translate(error, where=self.full_address, model=model, timeout=self.timeout)
        if isinstance(found, ServerUnavailable) and self.protocol == "grpc" and (proxy := proxy_of(self.address)):
            return ServerUnavailable(f"{found}; gRPC goes through {proxy}: without it where no_proxy names this host")
        return found

    def infer_inputs(self, arrays: dict[str, Any]) -> list[Any]:
        """tritonclient's input objects for the arrays of `build_request`."""
        infer_input = importlib.import_module(f"tritonclient.{self.protocol}").InferInput
        dtype_of = importlib.import_module("tritonclient.utils").np_to_triton_dtype
        inputs = []
        for name, array in arrays.items():
            item = infer_input(name, list(array.shape), dtype_of(array.dtype))
            inputs.append(item.set_data_from_numpy(array))
        return inputs


def proxy_of(address: str) -> str | None:
    """The environment's variable that sends gRPC to `address` through a proxy, as gRPC reads it; None where none
    does."""
    host = urlsplit(f"//{address}").hostname or ""
    spared = next((os.environ[name] for name in ("no_grpc_proxy", "no_proxy") if os.environ.get(name)), "")
    ends = [word.strip() for word in spared.split(",") if word.strip()]
    if is_loopback(address) or host.endswith(tuple(ends)):
        return None
    return next((name for name in ("grpc_proxy", "https_proxy", "http_proxy") if os.environ.get(name)), None)


def front_models(index: Any) -> tuple[str, ...]:
    """Names of the loaded front models in a repository index, smallest resolution first. Over HTTP the index is a list,
    over gRPC a record that contains the list.
    """
    return _ready(index, is_front_name)


def video_models(index: Any) -> tuple[str, ...]:
    """Names of the loaded video front models, likewise."""
    return _ready(index, is_video_name)


def _ready(index: Any, wanted: Callable[[str], bool]) -> tuple[str, ...]:
    entries = index if isinstance(index, list) else index.get("models", [])
    names = {e["name"] for e in entries if e.get("state", "READY") == "READY" and wanted(e["name"])}
    return tuple(sorted(names, key=lambda name: (len(name), name)))


NO_FRONTS = "serves no front model yet; wait until it is ready, or check the repository that it was started with"
NO_VIDEOS = "serves no videos; export the repository with sam3-export --video, and start the server again"


def only_model(models: tuple[str, ...], address: str, kind: str = "front models", none: str = NO_FRONTS) -> str:
    """The server's only model of that kind, where `models` are all of them. Raises ModelNotFound if there is `none`, or
    more than one to choose from."""
    if len(models) == 1:
        return models[0]
    if not models:
        raise ModelNotFound(f"{address} {none}")
    raise ModelNotFound(f"{address} serves several {kind}, choose one: {', '.join(models)}")


def only_video_model(models: tuple[str, ...], address: str) -> str:
    """`only_model` of a server's video front models."""
    return only_model(models, address, "video front models", NO_VIDEOS)


def listing(models: tuple[str, ...]) -> str:
    """The end of an error message: what the server serves instead."""
    return f"; it serves {', '.join(models)}" if models else "; it serves no front model"
