"""The session of a camera with `track: masks`: its frames go to one server, in order and one at a time.

The server remembers the camera's objects, so the camera stays with it. Where it goes away, another one, or the same one
when it is back, goes on with the last masks and ids.
"""

from __future__ import annotations

import asyncio

from clients.connection import AsyncClient
from clients.conversation import Tracks
from clients.errors import ModelNotFound, ServerUnavailable
from clients.fleet.config import CameraConfig
from clients.fleet.endpoint import Endpoint
from clients.fleet.pool import Pool
from clients.session import AsyncSession
from clients.transport import listing, only_video_model
from clients.video.reader import CapturedFrame


class Following:
    """One camera's session. `home` is the server that has it; None before the first frame."""

    def __init__(self) -> None:
        self.home: Endpoint | None = None
        self._session: AsyncSession | None = None
        self._broken = False

    async def frame(self, pool: Pool, endpoint: Endpoint, config: CameraConfig, frame: CapturedFrame) -> Tracks:
        """The objects in the next frame, asked of the endpoint for which a slot was given. Raises what
        `clients.session.AsyncSession.frame` raises."""
        if self._session is None or endpoint is not self.home or self._broken:
            await self._begin(pool, endpoint, config)
        assert self._session is not None, "it has begun"
        self._session.look_for(config.classes)
        try:
            return await pool.ask(endpoint, self._session.frame(frame.image))
        except ServerUnavailable:  # where it was given up, the session may still wait for this frame
            self._broken = True
            raise

    async def close(self, grace_s: float) -> None:
        """Gives the server's memory back, within `grace_s` seconds; a server that is away has none."""
        if self._session is None or self.home is None or self.home.away or self._broken:
            return
        closing = asyncio.ensure_future(self._session.close())
        await asyncio.wait({closing}, timeout=grace_s)
        closing.cancel()

    async def _begin(self, pool: Pool, endpoint: Endpoint, config: CameraConfig) -> None:
        model = await pool.ask(endpoint, _video_model(endpoint.client(None), config.model))
        client, old = endpoint.client(model), self._session
        if old is None:
            self._session = client.session(
                config.classes,
                model=model,
                max_objects=config.max_objects,
                detect_every=config.detect_every,
                threshold=config.threshold,
                mask_format=config.masks,
            )
        else:
            self._session = old.moved(client, model)
            if endpoint is self.home:  # it may have hung, and have the old session still
                await pool.ask(endpoint, old.close())
        self.home, self._broken = endpoint, False


async def _video_model(client: AsyncClient, wanted: str | None) -> str:
    """`wanted`, or the server's only video front model. Raises ModelNotFound with what it serves instead."""
    address = client.server.address
    try:
        models = await client.video_models()
    except ModelNotFound:  # a gateway that does not list them
        if wanted is None:
            raise
        return wanted
    if wanted is None or not models:
        return only_video_model(models, address)
    if wanted not in models:
        raise ModelNotFound(f"{address} does not serve {wanted!r}{listing(models)}")
    return wanted
