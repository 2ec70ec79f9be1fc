"""The connections: `Client` blocks, `AsyncClient` awaits; both carry the requests of `clients/message.py` over gRPC or HTTP with
tritonclient.

An image and class names flow in, `Detections` flow out, and every failure is one of `clients/errors.py`. gRPC is the default: it
carries several requests at once over one connection, and its deadline travels with the request.
"""

from __future__ import annotations

import importlib
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clients.detections import Detections
from clients.errors import ModelNotFound, Sam3ServerError, translate
from clients.message import Image, Options, build_request, is_front_model, parse_response

if TYPE_CHECKING:
    from typing import Self, Unpack  # Python 3.11; the package runs on 3.10

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
    """Where to send requests: `url` is `host:port` (a bare host gets the protocol's default port), `timeout` seconds for each
    request.
    """

    url: str = "localhost"
    protocol: str = "grpc"
    timeout: float = DEFAULT_TIMEOUT_S

    def __post_init__(self) -> None:
        if self.protocol not in DEFAULT_PORTS:
            raise ValueError(f"protocol must be one of {', '.join(DEFAULT_PORTS)}, got {self.protocol!r}")
        if "://" in self.url:
            raise ValueError(
                f"url must be host:port without a scheme, got {self.url!r}; write {self.url.split('://', 1)[1].strip('/')!r}"
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
        """tritonclient's keyword for the deadline of one call; its HTTP clients take the time-out once, when they are made."""
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


def _front_models(index: Any) -> tuple[str, ...]:
    """Names of the loaded front models in a repository index, smallest resolution first; HTTP gives the bare list, gRPC a record
    of it.
    """
    entries = index if isinstance(index, list) else index.get("models", [])
    names = {entry["name"] for entry in entries if entry.get("state", "READY") == "READY" and is_front_model(entry["name"])}
    return tuple(sorted(names, key=lambda name: (len(name), name)))


def _only(models: tuple[str, ...], address: str) -> str:
    """The server's only front model; raises ModelNotFound if there is none or a choice to make."""
    if len(models) == 1:
        return models[0]
    if not models:
        raise ModelNotFound(
            f"{address} serves no front model yet; wait until it is ready, or check the repository that it was started with"
        )
    raise ModelNotFound(f"{address} serves several front models, choose one: {', '.join(models)}")


def _listing(models: tuple[str, ...]) -> str:
    return f"; it serves {', '.join(models)}" if models else "; it serves no front model"


class Client:
    """Blocking client of one server; use it as a context manager, or call `close`.

    `model` is a front model's name, by default the server's only one. Over HTTP a client belongs to the thread that made it
    (tritonclient's HTTP client is not thread-safe); over gRPC threads may share one.
    """

    def __init__(
        self, url: str = "localhost", *, protocol: str = "grpc", model: str | None = None, timeout: float = DEFAULT_TIMEOUT_S
    ) -> None:
        self.server = Server(url, protocol, timeout)
        self.model = model
        self._thread = threading.get_ident()
        self._triton = self.server.connect(asyncio=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the connection. The HTTP client prints a traceback when Python exits if it was left open."""
        self._triton.close()

    def ready(self) -> bool:
        """Whether the server answers and, if a model was named, that model is loaded; False for a server that is away.

        A model whose process died may still count as loaded: only an answer of `detect` proves that it works.
        """
        try:
            if self.model:
                return bool(self._call("is_model_ready", self.model))
            return bool(self._call("is_server_ready"))
        except Sam3ServerError:
            return False

    def models(self) -> tuple[str, ...]:
        """Names of the front models that the server has loaded."""
        grpc_only: dict[str, Any] = {"as_json": True} if self.server.protocol == "grpc" else {}
        return _front_models(self._call("get_model_repository_index", **grpc_only))

    def detect(self, image: Image, classes: Sequence[str], **options: Unpack[Options]) -> Detections:
        """What of `classes` is in `image`: JPEG, PNG or WebP bytes, a path to such a file, or RGB uint8 [H,W,3].

        Options: `boxes`, `box_labels`, `box_classes`, `threshold`, `mask_format`, `max_detections`;
        `clients.message.build_request` explains them. Raises InvalidRequest, ModelNotFound, ServerUnavailable, RequestTimeout, or
        their base Sam3ServerError.
        """
        request = build_request(image, classes, **options)
        model = self.model = self.model or _only(self.models(), self.server.address)
        start = time.perf_counter()
        try:
            result = self._call("infer", model, self.server.infer_inputs(request), model=model)
        except ModelNotFound as error:
            raise ModelNotFound(f"{error}{_listing(self.models())}") from error.__cause__
        return parse_response(result.as_numpy, classes, model=model, latency_ms=(time.perf_counter() - start) * 1e3)

    def _call(self, method: str, *arguments: Any, model: str | None = None, **keywords: Any) -> Any:
        if self.server.protocol == "http" and threading.get_ident() != self._thread:
            raise RuntimeError("an HTTP client works only in the thread that made it; make one Client per thread, or use gRPC")
        try:
            return getattr(self._triton, method)(*arguments, **keywords, **self.server.per_call)
        except Exception as error:
            raise self.server.error(error, model) from error


class AsyncClient:
    """The same for asyncio: `async with AsyncClient(...) as client: await client.detect(...)`. Many requests may be under way at
    once.

    A client belongs to the event loop of its first request.
    """

    def __init__(
        self, url: str = "localhost", *, protocol: str = "grpc", model: str | None = None, timeout: float = DEFAULT_TIMEOUT_S
    ) -> None:
        self.server = Server(url, protocol, timeout)
        self.model = model
        self._triton: Any = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Ends the connection; the next request would open a new one."""
        if self._triton is not None:
            triton, self._triton = self._triton, None
            await triton.close()

    async def ready(self) -> bool:
        """Like `Client.ready`."""
        try:
            if self.model:
                return bool(await self._call("is_model_ready", self.model))
            return bool(await self._call("is_server_ready"))
        except Sam3ServerError:
            return False

    async def models(self) -> tuple[str, ...]:
        """Names of the front models that the server has loaded."""
        grpc_only: dict[str, Any] = {"as_json": True} if self.server.protocol == "grpc" else {}
        return _front_models(await self._call("get_model_repository_index", **grpc_only))

    async def detect(self, image: Image, classes: Sequence[str], **options: Unpack[Options]) -> Detections:
        """Like `Client.detect`."""
        request = build_request(image, classes, **options)
        model = self.model = self.model or _only(await self.models(), self.server.address)
        start = time.perf_counter()
        try:
            result = await self._call("infer", model, self.server.infer_inputs(request), model=model)
        except ModelNotFound as error:
            raise ModelNotFound(f"{error}{_listing(await self.models())}") from error.__cause__
        return parse_response(result.as_numpy, classes, model=model, latency_ms=(time.perf_counter() - start) * 1e3)

    async def _call(self, method: str, *arguments: Any, model: str | None = None, **keywords: Any) -> Any:
        if self._triton is None:  # made here and not in __init__: aiohttp and grpc.aio bind to the running event loop
            self._triton = self.server.connect(asyncio=True)
        try:
            return await getattr(self._triton, method)(*arguments, **keywords, **self.server.per_call)
        except Exception as error:
            raise self.server.error(error, model) from error
