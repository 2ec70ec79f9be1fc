"""The HTTP port of the embedded server: passes requests on to Triton that cannot end it.

Triton 24.10 reserves memory for whatever shape a JSON request states, and ends where that is too much; it ends too
where outputs that are empty or text are asked for as a classification. One broken request could thus stop all cameras.
Here aiohttp reads the request, its document is looked at, and Triton gets it whole, on a port of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
from collections.abc import Sequence
from math import prod
from typing import Any

import aiohttp
from aiohttp import web
from aiohttp.web_protocol import RequestHandler
from yarl import URL

MOST_BYTES = 64 * 2**20
"""Of a request's body: Triton's own limit."""
LARGE_BYTES = 2**18
"""Of a JSON document that is read in a thread, so that others need not wait for it."""
JSON_LENGTH = "Inference-Header-Content-Length"
METHODS = ("GET", "POST")
LOCAL = {"connection", "keep-alive", "transfer-encoding", "content-length", "content-encoding", "host", "expect", "te"}
LOCAL |= {"trailer", "upgrade", "proxy-connection"}
"""Headers of one connection, and those that aiohttp writes itself."""
log = logging.getLogger(__name__)


class Refused(ValueError):  # noqa: N818 - the name says what happened
    """A request that Triton must not see; the message says what was expected."""


def check(body: bytes, json_length: str | None) -> None:
    """Raises Refused where the JSON document at the start of `body` is none, states a tensor of more values than the
    body has bytes, or asks for a classification."""
    length = len(body)
    if json_length is not None:
        if not (json_length.isascii() and json_length.isdigit() and int(json_length[:20]) <= length):
            raise Refused(
                f"{JSON_LENGTH}: expected the bytes of the JSON document at the body's start, at most the body's"
                f" {length}, got {json_length[:40]!r}"
            )
        length = int(json_length)

    def check_entry(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        parameters = found.get("parameters")
        shared = isinstance(parameters, dict) and "shared_memory_region" in parameters  # its values are not in the body
        if "classification" in found:
            raise Refused("classification: these outputs are boxes, masks and numbers, no classes; leave it out")
        for name, value in pairs:  # Triton may take another one of the same name
            if name == "shape" and isinstance(value, list):
                sides = [abs(side) for side in value if isinstance(side, (int, float)) and side == side]
                if prod(max(1, side) for side in sides) > (MOST_BYTES if shared else max(1, len(body))):
                    raise Refused(f"shape: expected at most as many values as are sent, got {str(value)[:80]}")
        return found

    try:
        json.loads(body[:length].decode("utf-8", "surrogateescape"), object_pairs_hook=check_entry)
    except Refused:
        raise
    except RecursionError:
        raise Refused("expected a request as the protocol describes it, got JSON that is nested too deeply") from None
    except json.JSONDecodeError as error:
        raise Refused(
            f"expected a JSON document, got {error.msg.lower()} at character {error.pos} of {length}"
        ) from None
    except ValueError:  # a number of thousands of digits
        raise Refused("expected a request as the protocol describes it, got a number that is far too long") from None


class Guard:
    """Passes requests on to Triton at `target` (host:port)."""

    def __init__(self, target: str) -> None:
        self._target = target
        self._session: aiohttp.ClientSession | None = None

    def application(self) -> web.Application:
        setattr(RequestHandler, "handle_error", _handle_error)  # noqa: B010 - there is no other way to replace it
        app = web.Application(client_max_size=MOST_BYTES)
        app.router.add_route("*", "/{path:.*}", self._pass_on)
        app.cleanup_ctx.append(self._connected)
        return app

    async def _connected(self, app: web.Application) -> Any:
        connector = aiohttp.TCPConnector(limit=0)
        timeout = aiohttp.ClientTimeout(total=None)  # the caller decides how long to wait
        own = ("Accept-Encoding", "Accept", "Content-Type", "User-Agent")  # Triton gets the caller's headers alone
        async with aiohttp.ClientSession(
            connector=connector, timeout=timeout, auto_decompress=False, skip_auto_headers=own
        ) as self._session:
            yield

    async def _pass_on(self, request: web.Request) -> web.Response:
        assert self._session is not None, "set before the first request"
        if request.method not in METHODS:  # Triton answers HEAD with a body, which the next one would be taken to be
            return _error(405, f"expected {' or '.join(METHODS)}, got {request.method[:20]!r}")
        try:
            body = await request.read()
            if request.method == "POST" and request.path.endswith(("/infer", "/generate", "/generate_stream")):
                length = request.headers.get(JSON_LENGTH)
                if len(body) > LARGE_BYTES and length is None:
                    await asyncio.to_thread(check, body, length)
                else:
                    check(body, length)
            url = URL(f"http://{self._target}{request.raw_path}", encoded=True)
            headers = {name: value for name, value in request.headers.items() if name.lower() not in LOCAL}
            async with self._session.request(
                request.method, url, headers=headers, data=body or None, allow_redirects=False
            ) as answer:
                passed = {n: v for n, v in answer.headers.items() if n.lower() not in LOCAL or n == "Content-Encoding"}
                response = web.Response(status=answer.status, headers=passed, body=await answer.read())
                if answer.status != 200:
                    answer.close()  # not used again: whatever was odd about this request stays with it
                return response
        except Refused as error:
            return _error(400, str(error))
        except web.HTTPRequestEntityTooLarge:
            return _error(413, f"expected a body of at most {MOST_BYTES} bytes, got more; compress or scale the frame")
        except web.RequestPayloadError:
            return _error(400, "expected a body in its stated Content-Encoding and length, got one that is not")
        except (ValueError, aiohttp.InvalidURL):
            return _error(400, f"expected a path that HTTP can carry, got {request.raw_path[:80]!r}")
        except aiohttp.ClientError:
            return _error(503, "the server does not answer; it is starting or has ended")


def _error(status: int, sentence: str) -> web.Response:
    return web.json_response({"error": sentence}, status=status)


def _handle_error(
    handler: Any, request: Any, status: int = 500, error: BaseException | None = None, message: str | None = None
) -> web.Response:
    """In place of aiohttp's own page, which repeats all of a request that is no HTTP."""
    if request.writer.output_size:
        raise ConnectionError("the answer has begun already")
    if status >= 500 and not isinstance(error, OSError):  # that is a caller who has gone
        log.error("a request failed in the guard", exc_info=error)
    answer = _error(status, "expected an HTTP request, got bytes that are none, or headers that are too long")
    if status >= 500:
        answer = _error(status, "the request failed in the server's HTTP port; its log says why")
    answer.force_close()
    return answer


def main(argv: Sequence[str] | None = None) -> int:
    """Runs until it is told to end."""
    parser = argparse.ArgumentParser(prog="python -m ensemble.server.guard", description=__doc__)
    parser.add_argument("--address", required=True, help="interface to listen on")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--target", required=True, help="host:port of Triton's own HTTP")
    options = parser.parse_args(argv)
    logging.basicConfig(format="guard: %(message)s")
    logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)  # requests that are no HTTP are answered, not told
    app = Guard(options.target).application()
    web.run_app(app, host=options.address, port=options.port, print=None, access_log=None, shutdown_timeout=1.0)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
