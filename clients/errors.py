"""What can go wrong between a client and the server, as four kinds of error.

In flows whatever tritonclient, gRPC, aiohttp or a socket raised, each with its own way of saying it; out flows one
`Sam3ServerError` that names the address or the model and what to do next. Callers catch by kind, not by transport: each
kind is also the built-in exception that a Python programmer would expect.
"""

from __future__ import annotations

import asyncio
from typing import Final

START_HINT: Final = (
    "start one (`sam3-serve --repository build/repository`, or `docker compose up`) or pass the address of one"
)
PORTS: Final = "Triton's usual ports: 8000 for HTTP, 8001 for gRPC"
TRANSPORTS: Final = frozenset({"aiohttp", "gevent", "geventhttpclient", "_parser"})
"""Top packages of the exceptions that say "there is no HTTP server there", `_parser` being geventhttpclient's."""
TIMEOUT_STATUS: Final = frozenset({"StatusCode.DEADLINE_EXCEEDED", "499", "504"})
UNAVAILABLE_STATUS: Final = frozenset({"StatusCode.UNAVAILABLE", "503", "502"})
INVALID_STATUS: Final = frozenset({"StatusCode.INVALID_ARGUMENT", "400", "413", "StatusCode.RESOURCE_EXHAUSTED"})
NOT_FOUND_STATUS: Final = frozenset({"StatusCode.NOT_FOUND", "404"})


class Sam3ServerError(Exception):
    """Any failure of a request. Raised itself where the server failed inside (its message is kept)."""


class InvalidRequest(Sam3ServerError, ValueError):  # noqa: N818 - the name says what happened
    """The server, or the client before it, cannot accept what was asked for; the message says what was expected.
    Retrying does not help.
    """


class ModelNotFound(Sam3ServerError, LookupError):  # noqa: N818 - the name says what happened
    """The server is there but does not serve that model; the message lists the front models that it has."""


class ServerUnavailable(Sam3ServerError, ConnectionError):  # noqa: N818 - the name says what happened
    """Nothing answers at the address, or the server is stopping. Worth retrying once it is up."""


class RequestTimeout(Sam3ServerError, TimeoutError):  # noqa: N818 - the name says what happened
    """No answer within the client's time-out. The server may still be working on the request."""


def translate(
    error: BaseException, *, address: str, protocol: str, model: str | None, timeout: float
) -> Sam3ServerError:
    """The `Sam3ServerError` for what a transport raised.

    `address` is `host:port`, `timeout` is in seconds. A `ModelNotFound` made here does not yet list the models: asking
    for them takes another request.
    """
    status, message = _status_and_message(error)
    where = f"{protocol}://{address}"
    if (
        status in TIMEOUT_STATUS
        or isinstance(error, (TimeoutError, asyncio.TimeoutError))
        or type(error).__module__ == "gevent.timeout"
    ):
        return RequestTimeout(
            f"no answer from {where} within {timeout:g} s; the server is overloaded or the frame too expensive: "
            "pass a larger timeout, send fewer frames at once, or choose a smaller resolution"
        )
    if _is_unknown_model(status, message):
        return ModelNotFound(f"{where} does not serve {model!r} ({message})")
    if status in INVALID_STATUS:
        return InvalidRequest(message)
    below = type(error).__module__.partition(".")[0] in TRANSPORTS or isinstance(error, OSError)
    if status in UNAVAILABLE_STATUS or below:
        return ServerUnavailable(f"no SAM3 server answers at {where} ({message}); {START_HINT} ({PORTS})")
    return Sam3ServerError(f"{where} failed on {model!r}: {message}")


def _status_and_message(error: BaseException) -> tuple[str | None, str]:
    """tritonclient's status (`StatusCode.X` over gRPC, `400` over HTTP; None for a failure below it) and the bare
    message."""
    status = getattr(error, "status", None)
    message = getattr(error, "message", None)
    if callable(status) and callable(message):
        return status(), str(message() or error)
    # aiohttp quotes a stranger's bytes: the first line, and not much of it, says enough
    return None, (str(error) or type(error).__name__).replace("\\n", "\n").splitlines()[0][:200]


def _is_unknown_model(status: str | None, message: str) -> bool:
    """Triton answers an unknown model with `not found`, `unavailable` or `invalid`, depending on protocol and version:
    the words decide.
    """
    return status is not None and (status in NOT_FOUND_STATUS or "unknown model" in message.lower())
