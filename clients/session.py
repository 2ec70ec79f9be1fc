"""One video as a session on the server: frames in, objects with ids that stay the same out.

The server remembers the objects. Where it has lost them, since it was started again or no frame came for a while, the
session begins anew with the last masks and ids, in the frame that found out, and counts that.
"""

from __future__ import annotations

import contextlib
import copy
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from clients.conversation import Conversation, SessionOptions, Tracks, forget
from clients.errors import Sam3ServerError
from clients.message import Image
from clients.transport import only_video_model

if TYPE_CHECKING:
    from typing import Self, Unpack  # Python 3.11; the package runs on 3.10

    from clients.connection import AsyncClient, Client


class _Told:
    """What sessions of both kinds may be told between two frames."""

    _talk: Conversation

    def look_for(self, classes: Sequence[str]) -> None:
        """Other classes from the next frame on: objects of classes that are gone end, the others keep their ids."""
        self._talk.look_for(classes)


class Session(_Told):
    """One video over a `Client`; a context manager, or call `close`. Frames go in order, one at a time."""

    def __init__(self, client: Client, classes: Sequence[str], **options: Unpack[SessionOptions]) -> None:
        self._client, self._talk = client, Conversation(classes, **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def frame(self, image: Image) -> Tracks:
        """The objects in the next frame. Raises what `Client.detect` raises; after a failure the session goes on with
        the next frame, and begins anew where the server has lost it."""
        talk = self._talk
        if talk.model is None:
            talk.model = only_video_model(self._client.video_models(), self._client.server.address)
        for again in (True, False):
            request, sequence = talk.request(image)
            start = time.perf_counter()
            try:
                result = self._client.infer_in_sequence(talk.model, request, **sequence)
            except Sam3ServerError as error:
                if not (forget(talk, error) and again):
                    raise
            else:
                return talk.answer(result.as_numpy, (time.perf_counter() - start) * 1e3)
        raise AssertionError("the second try returns or raises")

    def close(self) -> None:
        """Gives the server's memory of this video back; a server that is gone has none."""
        if self._talk.begins or self._talk.model is None:
            return
        request, sequence = self._talk.goodbye()
        self._talk.begins = True
        with contextlib.suppress(Sam3ServerError):
            self._client.infer_in_sequence(self._talk.model, request, **sequence)


class AsyncSession(_Told):
    """The same over an `AsyncClient`."""

    def __init__(self, client: AsyncClient, classes: Sequence[str], **options: Unpack[SessionOptions]) -> None:
        self._client, self._talk = client, Conversation(classes, **options)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def frame(self, image: Image) -> Tracks:
        """Like `Session.frame`."""
        talk = self._talk
        if talk.model is None:
            talk.model = only_video_model(await self._client.video_models(), self._client.server.address)
        for again in (True, False):
            request, sequence = talk.request(image)
            start = time.perf_counter()
            try:
                result = await self._client.infer_in_sequence(talk.model, request, **sequence)
            except Sam3ServerError as error:
                if not (forget(talk, error) and again):
                    raise
            else:
                return talk.answer(result.as_numpy, (time.perf_counter() - start) * 1e3)
        raise AssertionError("the second try returns or raises")

    async def close(self) -> None:
        """Like `Session.close`."""
        if self._talk.begins or self._talk.model is None:
            return
        request, sequence = self._talk.goodbye()
        self._talk.begins = True
        with contextlib.suppress(Sam3ServerError):
            await self._client.infer_in_sequence(self._talk.model, request, **sequence)

    def moved(self, client: AsyncClient, model: str) -> AsyncSession:
        """A session over another client, which goes on with the objects of this one. What still comes of a frame that
        this one has under way changes nothing of it."""
        other = copy.copy(self)
        other._client, other._talk = client, self._talk.moved(model)
        return other
