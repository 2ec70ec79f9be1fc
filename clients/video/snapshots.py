"""Cameras that give one picture for each request: `http://.../snapshot.jpg`, asked again and again.

One connection is kept for all requests. A user name and a password in the address answer what the camera asks for,
Basic or Digest.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit, urlunsplit
from urllib.request import (
    HTTPDigestAuthHandler,
    HTTPPasswordMgrWithDefaultRealm,
    Request,
    getproxies,
    parse_http_list,
    parse_keqv_list,
    proxy_bypass,
)

import numpy as np
import urllib3
from urllib3.exceptions import HTTPError, InsecureRequestWarning

from clients.redact import without_password
from clients.video.address import OPEN_TIMEOUT_S, READ_TIMEOUT_S
from clients.video.frames import EVERY, STILLS_FPS, Frame, SourceError, SourceRefused
from clients.video.skipped import Skipped
from ensemble.loopback import is_loopback
from ensemble.pictures import PictureError, decode
from ensemble.spec import MAX_IMAGE_BYTES

if TYPE_CHECKING:
    from typing import Self  # Python 3.11; the package runs on 3.10

MOST_MISSED = 5
"""Requests in a row that may be answered with something else than a picture."""
REFUSALS = {
    401: "it asks for a user name and a password, or for others than these (401)",
    403: "it does not allow this (403)",
    404: "there is nothing at this path (404)",
    410: "there is nothing at this path any more (410)",
}


class Snapshots:
    """A live source that asks for a picture `fps` times a second (None: `STILLS_FPS`), later where an answer takes
    longer. `pause` waits so many seconds; where it returns true, the source ends.

    Its times are when the pictures were asked for, in seconds from when `read` was called.
    """

    live = True
    count: int | None = None

    def __init__(self, address: str, fps: float | None = None, pause: Callable[[float], object] = time.sleep) -> None:
        self.name, self.fps = repr(without_password(address)), fps or STILLS_FPS
        self.skipped = Skipped()
        self._pause = pause
        parts = urlsplit(address)
        self._user, self._password = unquote(parts.username or ""), unquote(parts.password or "")
        self._url = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        self._pool = _pool(self._url)
        self._sign: Callable[[], str] = lambda: ""
        if self._user:
            self._sign = lambda: urllib3.make_headers(basic_auth=f"{self._user}:{self._password}")["authorization"]

    def __iter__(self) -> Iterator[Frame]:
        return self.read()

    def read(self, wanted: Callable[[float], bool] = EVERY) -> Iterator[Frame]:
        """Raises SourceRefused where the camera refuses, SourceError where it is gone or sends no pictures."""
        index = missed = 0
        began = due = time.monotonic()
        while True:
            asked = time.monotonic()
            try:
                rgb = np.asarray(decode(self._get()))
            except PictureError as error:
                missed += 1
                self.skipped.add(f"{self.name} after {index} pictures: {error}")
                if missed >= MOST_MISSED:
                    raise SourceError(f"{self.name} gave no picture {missed} times in a row: {error}") from error
            else:
                missed = 0
                if wanted(asked - began):
                    yield Frame(index, asked - began, rgb)
                index += 1
            due = max(due + 1 / self.fps, time.monotonic() - 1 / self.fps)
            if (wait := due - time.monotonic()) > 0 and self._pause(wait):
                return

    def _get(self) -> bytes:
        """The next picture's file. Raises PictureError where the camera is busy or the file is too large."""
        try:
            status, headers, data = self._ask()
            if status == 401 and self._user and (challenge := headers.get("WWW-Authenticate", "")):
                self._sign = self._signer(challenge)
                status, headers, data = self._ask()
        except (HTTPError, OSError) as error:
            raise SourceError(f"{self.name} does not answer ({error})") from error
        if status in REFUSALS:
            raise SourceRefused(f"{self.name} cannot be had: {REFUSALS[status]}")
        if status != 200:
            raise PictureError(f"expected a picture, got the answer {status}")
        if len(data) > MAX_IMAGE_BYTES:
            raise PictureError(f"expected at most {MAX_IMAGE_BYTES >> 20} MB, got more")
        return data

    def _ask(self) -> tuple[int, urllib3.HTTPHeaderDict, bytes]:
        signature = self._sign()
        answer = self._pool.request(
            "GET",
            self._url,
            headers={"Authorization": signature} if signature else {},
            preload_content=False,
            # once more where the camera has closed the connection that was kept
            retries=urllib3.Retry(total=5, connect=0, read=1, status=0, other=0),
        )
        try:
            data = answer.read(MAX_IMAGE_BYTES + 1)
        except HTTPError:
            answer.close()
            raise
        if len(data) > MAX_IMAGE_BYTES:
            answer.close()
        answer.release_conn()
        return answer.status, answer.headers, data

    def _signer(self, challenge: str) -> Callable[[], str]:
        """What goes into each request's head after that challenge (RFC 7616, RFC 7617)."""
        kind, _, fields = challenge.partition(" ")
        if kind.lower() != "digest":
            return self._sign
        passwords = HTTPPasswordMgrWithDefaultRealm()
        passwords.add_password(None, self._url, self._user, self._password)  # type: ignore[arg-type]
        digest, given = HTTPDigestAuthHandler(passwords), parse_keqv_list([*filter(None, parse_http_list(fields))])
        return lambda: f"Digest {digest.get_authorization(Request(self._url), given)}"

    def close(self) -> None:
        """Closes the connection."""
        self._pool.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _pool(url: str) -> urllib3.PoolManager:
    """Connections to the camera, by the proxy of the environment where it is on another machine."""
    warnings.filterwarnings("ignore", category=InsecureRequestWarning)
    parts = urlsplit(url)
    # Cameras sign their certificates themselves; FFmpeg does not check them either.
    options = {"timeout": urllib3.Timeout(connect=OPEN_TIMEOUT_S, read=READ_TIMEOUT_S), "cert_reqs": "CERT_NONE"}
    proxy = getproxies().get(parts.scheme)
    if proxy and not is_loopback(parts.netloc) and not proxy_bypass(parts.hostname or ""):
        return urllib3.ProxyManager(proxy, **options)  # type: ignore[arg-type]
    return urllib3.PoolManager(**options)  # type: ignore[arg-type]
