"""The exceptions of the clients: six kinds of failure and their base, `Sam3ServerError`.

tritonclient, gRPC, aiohttp and sockets each raise their own exceptions; `translate` turns all of them into one of
these. Callers catch by kind and not by transport: where a built-in exception is what a Python programmer expects, the
kind is also that. Messages name the address or the model, and the remedy.
"""

from __future__ import annotations

import asyncio
from typing import Final

from clients import tls
from clients.redact import without_password

START_HINT: Final = (
    "start one (`sam3-serve --repository build/repository`, or `docker compose up`) or pass the address of one"
)
PORTS: Final = "Triton's usual ports: 8000 for HTTP, 8001 for gRPC"
TRANSPORTS: Final = frozenset({"aiohttp", "gevent", "geventhttpclient", "_parser"})
"""Top-level packages whose exceptions mean that no HTTP server answers; `_parser` belongs to geventhttpclient."""
TIMEOUT_STATUS: Final = frozenset({"StatusCode.DEADLINE_EXCEEDED", "499", "504"})
UNAVAILABLE_STATUS: Final = frozenset({"StatusCode.UNAVAILABLE", "503", "502"})
INVALID_STATUS: Final = frozenset({"StatusCode.INVALID_ARGUMENT", "400", "413", "StatusCode.RESOURCE_EXHAUSTED"})
NOT_FOUND_STATUS: Final = frozenset({"StatusCode.NOT_FOUND", "404"})
DENIED_STATUS: Final = frozenset({"StatusCode.UNAUTHENTICATED", "StatusCode.PERMISSION_DENIED", "401", "403"})
CLOSED_STATUS: Final = frozenset({"StatusCode.UNIMPLEMENTED", "404"})
"""Of an endpoint that a gateway keeps closed."""
RATE: Final = "local_rate_limited"
"""Envoy's words for more requests than a client may send; over HTTP it has a status of its own."""
TOO_LARGE: Final = "Payload Too Large"
"""Envoy's words for a request above its limit; over gRPC it has no status of its own."""


OF_ANOTHER: Final = "incomplete string data for inference input"
"""Triton's python backend tells this to every request of a batch in which one request's text is broken off. Those of
this package never are."""
TRIES: Final = 5
"""How often a request that another one has spoilt is sent."""
OTHER_VERSION: Final = ("expected number of inputs", "unexpected inference", "data-type is")
"""Triton's words for a model with other inputs or outputs than the client's."""
VERSIONS: Final = "client and server are of different versions: install the same one on both"


class Sam3ServerError(Exception):
    """Any failure of a request. Raised as it is where the server failed internally (its message is kept, without
    passwords)."""

    def __init__(self, message: str) -> None:
        super().__init__(without_password(message))


class InvalidRequest(Sam3ServerError, ValueError):  # noqa: N818 - the name says what happened
    """The server, or the client before sending, refuses the request; the message says what was expected. Retrying does
    not help.
    """


class ModelNotFound(Sam3ServerError, LookupError):  # noqa: N818 - the name says what happened
    """The server does not serve that model; the message lists the front models that it serves."""


class WrongVersion(Sam3ServerError):  # noqa: N818 - the name says what happened
    """The server's model has other inputs or outputs than this client's version knows. Retrying does not help."""


class ServerUnavailable(Sam3ServerError, ConnectionError):  # noqa: N818 - the name says what happened
    """Nothing answers at the address, or the server is shutting down. Worth retrying once it is up."""


class AccessDenied(Sam3ServerError, PermissionError):  # noqa: N818 - the name says what happened
    """The server's gateway refuses the key: it is missing, unknown or has expired."""


class RequestTimeout(Sam3ServerError, TimeoutError):  # noqa: N818 - the name says what happened
    """No answer within the client's timeout. The server may still be working on the request."""


def translate(error: BaseException, *, where: str, model: str | None, timeout: float) -> Sam3ServerError:
    """The `Sam3ServerError` for an exception of a transport.

    `where` is the server's address with its scheme, `timeout` is in seconds. A `ModelNotFound` from here does not list
    the server's models yet: asking for them takes another request.
    """
    status, message = _status_and_message(error)
    if (
        status in TIMEOUT_STATUS
        or isinstance(error, (TimeoutError, asyncio.TimeoutError))
        or type(error).__module__ == "gevent.timeout"
    ):
        return RequestTimeout(
            f"no answer from {where} within {timeout:g} s; the server is overloaded or the frame too expensive: "
            "pass a larger timeout, send fewer frames at once, or choose a smaller resolution"
        )
    if status in DENIED_STATUS:
        return AccessDenied(
            f"{where} refuses the key ({message}); pass a valid one as key= in Python, or in the environment variable"
            f" {tls.KEY_VARIABLE}"
        )
    if status == "429" or RATE in message:
        return Sam3ServerError(f"{where} takes no more requests of this client for now ({RATE}); send fewer a second")
    if status == "413" or TOO_LARGE in message:
        return InvalidRequest(f"{where} takes no request of this size ({message}); send JPEG, or a smaller frame")
    if model is None and status in CLOSED_STATUS:
        return ModelNotFound(
            f"{where} does not list its models ({message}); name one, such as model='sam3_r672' in Python, or --model"
        )
    if _is_unknown_model(status, message):
        return ModelNotFound(f"{where} does not serve {model!r} ({message})")
    if status in INVALID_STATUS and any(words in message for words in OTHER_VERSION):
        return WrongVersion(f"{model!r} at {where} has other inputs or outputs ({message}); {VERSIONS}")
    if status in INVALID_STATUS:
        return InvalidRequest(message)
    from_transport = type(error).__module__.partition(".")[0] in TRANSPORTS or isinstance(error, OSError)
    if status in UNAVAILABLE_STATUS or from_transport:
        encrypted = where.startswith(("grpcs:", "https:"))
        if encrypted and (trouble := tls.trouble(f"{message} {error}")):
            return ServerUnavailable(f"{where} cannot be trusted or understood: {trouble} ({message})")
        hint = tls.HINTS[encrypted] if any(words in message.lower() for words in tls.CUT_OFF) else ""
        return ServerUnavailable(f"no SAM3 server answers at {where} ({message}); {START_HINT} ({PORTS}){hint}")
    return Sam3ServerError(f"{where} failed on {model!r}: {message}")


def _status_and_message(error: BaseException) -> tuple[str | None, str]:
    """tritonclient's status (`StatusCode.X` over gRPC, `400` over HTTP, None if there was no response) and the bare
    message."""
    status = getattr(error, "status", None)
    message = getattr(error, "message", None)
    if callable(status) and callable(message):
        return status(), str(message() or error)
    # aiohttp quotes the bytes of whatever answered: the start of the first line is enough
    return None, (str(error) or type(error).__name__).replace("\\n", "\n").splitlines()[0][:200]


def _is_unknown_model(status: str | None, message: str) -> bool:
    """The status of an unknown model is `not found`, `unavailable` or `invalid`, depending on protocol and version of
    Triton, so the message decides.
    """
    return status is not None and (status in NOT_FOUND_STATUS or "unknown model" in message.lower())
