"""The clients of a server: `Client` is blocking, `AsyncClient` is for asyncio; both speak gRPC or HTTP.

    >>> from clients import Client
    >>> with Client("localhost:8001", model="sam3_r672") as client:
    ...     found = client.detect("photo.jpg", ["red circle", "blue square"])
    >>> found
    Detections(2 red circle, 1 blue square; frame 640x360, 41.8 ms)

Every failure is one of the exceptions in `clients/errors.py`. gRPC is the default: it carries several requests at once
over one connection.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clients.calls import AsyncCalls, BlockingCalls
from clients.conversation import SessionOptions
from clients.detections import Detections
from clients.errors import OF_ANOTHER, TRIES, InvalidRequest, ModelNotFound, Sam3ServerError
from clients.message import Image, Options, build_request, parse_response
from clients.session import AsyncSession, Session
from clients.transport import DEFAULT_TIMEOUT_S, Server, front_models, listing, only_model, video_models

if TYPE_CHECKING:
    from typing import Self, Unpack  # Python 3.11; the package runs on 3.10


class _Connection:
    """What both clients are made from: the server, the model, and tritonclient's object once it is there."""

    def __init__(
        self,
        url: str = "localhost",
        *,
        protocol: str = "grpc",
        model: str | None = None,
        timeout: float = DEFAULT_TIMEOUT_S,
        ca: Path | str | None = None,
        key: str | None = None,
    ) -> None:
        self.server = Server(url, protocol, timeout, ca, key)
        self.model = model
        self._thread = threading.get_ident()
        self._triton: Any = self._connected()

    def _connected(self) -> Any:
        """tritonclient's object; None where it is made later."""


class Client(_Connection):
    """Blocking client of one server; a context manager, or call `close`.

    `url` is `host:port` or a host, `protocol` is `grpc` or `http`, `model` is a front model's name (default: the
    server's only one), `timeout` is in seconds per request. `grpcs://host` and `https://host` are spoken over TLS, with
    `key`, an API key or a token (default: the environment variable SAM3_API_KEY), and `ca`, a file of certificates
    where this computer does not know who signed the server's. Threads may share a gRPC client; an HTTP client belongs
    to the thread that made it, since tritonclient's is not thread-safe. Raises ValueError for unusable settings.
    """

    def _connected(self) -> Any:
        self._calls = BlockingCalls()
        return self.server.connect(asyncio=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection, once what was asked over gRPC is answered, or after a few seconds. An HTTP client that
        is left open prints a traceback when Python exits."""
        self._calls.close()
        self._triton.close()

    def ready(self) -> bool:
        """Whether the server answers and, if a model was named, has it loaded. False if nothing answers.

        A model whose process has died may still count as loaded: only `detect` proves that it works.
        """
        try:
            if self.model:
                return bool(self._call("is_model_ready", self.model))
            return bool(self._call("is_server_ready"))
        except Sam3ServerError:
            return False

    def models(self) -> tuple[str, ...]:
        """Names of the front models that the server has loaded."""
        return front_models(self._index())

    def detect(self, image: Image, classes: Sequence[str], **options: Unpack[Options]) -> Detections:
        """The objects of `classes` in `image`: JPEG, PNG or WebP bytes, a path to such a file, or RGB uint8 [H,W,3].

        Options: `boxes`, `box_labels`, `box_classes`, `threshold`, `mask_format`, `max_detections`;
        `clients.message.build_request` explains them. Raises InvalidRequest, ModelNotFound, ServerUnavailable,
        RequestTimeout, or their base Sam3ServerError.

            >>> found = client.detect("yard.jpg", ["forklift"], threshold=0.4, mask_format="bits")
            >>> found.labels, found.boxes_in_pixels.shape, found.masks_at(*found.frame_size).shape
            (('forklift',), (1, 4), (1, 1080, 1920))
        """
        request = build_request(image, classes, **options)
        model = self.model = self.model or only_model(self.models(), self.server.address)
        start = time.perf_counter()
        try:
            result = self._infer(model, self.server.infer_inputs(request))
        except ModelNotFound as error:
            raise ModelNotFound(f"{error}{self._served()}") from error.__cause__
        return parse_response(result.as_numpy, classes, model=model, latency_ms=(time.perf_counter() - start) * 1e3)

    def session(self, classes: Sequence[str], **options: Unpack[SessionOptions]) -> Session:
        """A video, whose objects are followed from frame to frame: `clients.session.Session`, a context manager.

        Options: `model` (a video front model; default: the server's only one), `max_objects` (16), `detect_every` (1),
        `threshold`, `mask_format` ("bits"), `max_detections`.

            >>> with client.session(["person"], detect_every=4) as session:
            ...     for frame in source:
            ...         tracks = session.frame(frame.rgb)
            ...         print(tracks.frame_index, tracks.track_ids, tracks.labels)
        """
        return Session(self, classes, **options)

    def video_models(self) -> tuple[str, ...]:
        """Names of the video front models that the server has loaded."""
        return video_models(self._index())

    def _served(self) -> str:
        """What it serves instead, where it says so."""
        try:
            return listing(self.models())
        except Sam3ServerError:
            return ""

    def _index(self) -> Any:
        grpc_only: dict[str, Any] = {"as_json": True} if self.server.protocol == "grpc" else {}
        return self._call("get_model_repository_index", **grpc_only)

    def infer_in_sequence(self, model: str, request: dict[str, Any], **sequence: Any) -> Any:
        """One request of a sequence; `sequence` are tritonclient's `sequence_id`, `sequence_start`, `sequence_end`."""
        return self._infer_once(model, self.server.infer_inputs(request), **sequence)

    def _infer(self, model: str, inputs: list[Any]) -> Any:
        for left in reversed(range(TRIES)):
            try:
                return self._infer_once(model, inputs)
            except InvalidRequest as error:
                if not left or OF_ANOTHER not in str(error):
                    raise
        raise AssertionError("the last try returns or raises")

    def _infer_once(self, model: str, inputs: list[Any], **sequence: Any) -> Any:
        if self.server.protocol == "http":
            return self._call("infer", model, inputs, model=model, **sequence)
        try:
            return self._calls.infer(self._triton, model, inputs, self.server.timeout, **sequence)
        except Exception as error:
            raise self.server.error(error, model) from error

    def _call(self, method: str, *arguments: Any, model: str | None = None, **keywords: Any) -> Any:
        if self.server.protocol == "http" and threading.get_ident() != self._thread:
            raise RuntimeError(
                "an HTTP client works only in the thread that made it; make one Client per thread, or use gRPC"
            )
        try:
            return getattr(self._triton, method)(*arguments, **keywords, **self.server.per_call)
        except Exception as error:
            raise self.server.error(error, model) from error


class AsyncClient(_Connection):
    """The same for asyncio, with any number of requests in flight. Belongs to the event loop of its first request.

    >>> async with AsyncClient("localhost") as client:
    ...     answers = await asyncio.gather(*(client.detect(jpeg, ["person"]) for jpeg in frames))
    """

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connection, once what was asked over gRPC is answered, or after a few seconds; the next request
        opens a new one."""
        if self._triton is not None:
            (triton, calls), self._triton = (self._triton, self._calls), None
            await calls.close()
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
        return front_models(await self._index())

    async def detect(self, image: Image, classes: Sequence[str], **options: Unpack[Options]) -> Detections:
        """Like `Client.detect`."""
        request = build_request(image, classes, **options)
        model = self.model = self.model or only_model(await self.models(), self.server.address)
        start = time.perf_counter()
        try:
            result = await self._infer(model, self.server.infer_inputs(request))
        except ModelNotFound as error:
            raise ModelNotFound(f"{error}{await self._served()}") from error.__cause__
        return parse_response(result.as_numpy, classes, model=model, latency_ms=(time.perf_counter() - start) * 1e3)

    def session(self, classes: Sequence[str], **options: Unpack[SessionOptions]) -> AsyncSession:
        """Like `Client.session`; an asynchronous context manager."""
        return AsyncSession(self, classes, **options)

    async def video_models(self) -> tuple[str, ...]:
        """Names of the video front models that the server has loaded."""
        return video_models(await self._index())

    async def _served(self) -> str:
        try:
            return listing(await self.models())
        except Sam3ServerError:
            return ""

    async def _index(self) -> Any:
        grpc_only: dict[str, Any] = {"as_json": True} if self.server.protocol == "grpc" else {}
        return await self._call("get_model_repository_index", **grpc_only)

    async def infer_in_sequence(self, model: str, request: dict[str, Any], **sequence: Any) -> Any:
        """Like `Client.infer_in_sequence`."""
        return await self._infer_once(model, self.server.infer_inputs(request), **sequence)

    async def _infer(self, model: str, inputs: list[Any]) -> Any:
        for left in reversed(range(TRIES)):
            try:
                return await self._infer_once(model, inputs)
            except InvalidRequest as error:
                if not left or OF_ANOTHER not in str(error):
                    raise
        raise AssertionError("the last try returns or raises")

    async def _infer_once(self, model: str, inputs: list[Any], **sequence: Any) -> Any:
        if self.server.protocol == "http":
            return await self._call("infer", model, inputs, model=model, **sequence)
        triton = self._open()
        try:
            return await self._calls.infer(triton, model, inputs, self.server.timeout, **sequence)
        except Exception as error:
            raise self.server.error(error, model) from error

    def _open(self) -> Any:
        if self._triton is None:  # not made in __init__: aiohttp and grpc.aio bind to the running event loop
            self._triton, self._calls = self.server.connect(asyncio=True), AsyncCalls()
        return self._triton

    async def _call(self, method: str, *arguments: Any, model: str | None = None, **keywords: Any) -> Any:
        triton = self._open()
        try:
            return await getattr(triton, method)(*arguments, **keywords, **self.server.per_call)
        except Exception as error:
            raise self.server.error(error, model) from error
