"""How to reach a server: protocol, address and deadline flow in, tritonclient's objects flow out, and what it raises
becomes one of `clients/errors.py`.

The blocking and the asyncio client share this, so that a protocol's peculiarities are written down once.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from clients.errors import ModelNotFound, Sam3ServerError, translate
from clients.message import is_front_model

DEFAULT_PORTS = {"grpc": 8001, "http": 8000}
DEFAULT_TIMEOUT_S = 30.0
CHANNEL_ARGUMENTS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    # Without these a camera that lost its server looks for it at ever longer intervals, up to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.max_reconnect_backoff_ms", 1000),
]
"""gRPC's limits and manners, for the blocking and the asyncio client alike."""


@dataclass(frozen=True, slots=True)
class Server:
    """Where to send requests: `url` is `host:port` (a bare host gets the protocol's default port), `timeout` seconds
    for each request.
    """

    url: str = "localhost"
    protocol: str = "grpc"
    timeout: float = DEFAULT_TIMEOUT_S

    def __post_init__(self) -> None:
        if self.protocol not in DEFAULT_PORTS:
            raise ValueError(f"protocol must be one of {', '.join(DEFAULT_PORTS)}, got {self.protocol!r}")
        if "://" in self.url:
            raise ValueError(
                f"url must be host:port without a scheme, got {self.url!r}; write"
                f" {self.url.split('://', 1)[1].strip('/')!r}"
            )
        if not self.timeout > 0:
            raise ValueError(f"timeout must be a positive number of seconds, got {self.timeout!r}")

    @property
    def address(self) -> str:
        """`host:port`."""
        host, colon, port = self.url.rpartition(":")
        return self.url if colon and port.isdigit() and host else f"{self.url}:{DEFAULT_PORTS[self.protocol]}"

    @property
    def per_call(self) -> dict[str, float]:
        """tritonclient's keyword for the deadline of one call; its HTTP clients take the time-out once, when they are
        made."""
        return {"client_timeout": self.timeout} if self.protocol == "grpc" else {}

    def connect(self, *, asyncio: bool) -> Any:
        """tritonclient's client, which connects on its first request."""
        module = importlib.import_module(f"tritonclient.{self.protocol}{'.aio' if asyncio else ''}")
        options: dict[str, Any] = {"channel_args": CHANNEL_ARGUMENTS}
        if self.protocol == "http":
            times = ("conn_timeout",) if asyncio else ("connection_timeout", "network_timeout")
            options = dict.fromkeys(times, self.timeout)
        return module.InferenceServerClient(self.address, **options)

    def error(self, error: BaseException, model: str | None) -> Sam3ServerError:
        return translate(error, address=self.address, protocol=self.protocol, model=model, timeout=self.timeout)

    def infer_inputs(self, arrays: dict[str, Any]) -> list[Any]:
        """tritonclient's input objects for the arrays of `build_request`."""
        infer_input = importlib.import_module(f"tritonclient.{self.protocol}").InferInput
        dtype_of = importlib.import_module("tritonclient.utils").np_to_triton_dtype
        inputs = []
        for name, array in arrays.items():
            item = infer_input(name, list(array.shape), dtype_of(array.dtype))
            inputs.append(item.set_data_from_numpy(array))
        return inputs


def front_models(index: Any) -> tuple[str, ...]:
    """Names of the loaded front models in a repository index, smallest resolution first; HTTP gives the bare list, gRPC
    a record of it.
    """
    entries = index if isinstance(index, list) else index.get("models", [])
    names = {
        entry["name"] for entry in entries if entry.get("state", "READY") == "READY" and is_front_model(entry["name"])
    }
    return tuple(sorted(names, key=lambda name: (len(name), name)))


def only_model(models: tuple[str, ...], address: str) -> str:
    """The server's only front model; raises ModelNotFound if there is none or a choice to make."""
    if len(models) == 1:
        return models[0]
    if not models:
        raise ModelNotFound(
            f"{address} serves no front model yet; wait until it is ready, or check the repository that it was started"
            " with"
        )
    raise ModelNotFound(f"{address} serves several front models, choose one: {', '.join(models)}")


def listing(models: tuple[str, ...]) -> str:
    return f"; it serves {', '.join(models)}" if models else "; it serves no front model"
