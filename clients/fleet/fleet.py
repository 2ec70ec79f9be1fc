"""The fleet: runs many cameras on a pool of servers until their sources end or it is stopped."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import signal
from collections.abc import Callable, Sequence
from typing import Any

from clients.connection import AsyncClient
from clients.fleet.camera import Camera, Handler
from clients.fleet.config import FleetConfig
from clients.fleet.endpoint import Endpoint
from clients.fleet.pool import Pool
from clients.fleet.stats import summary
from clients.redact import without_password

logger = logging.getLogger(__name__)

STATUS_EVERY_S = 5.0
"""Between two status lines in the log."""


def open_pool(config: FleetConfig) -> Pool:
    """A pool of the configuration's servers. Connects on the first request."""

    def endpoint(address: str) -> Endpoint:
        settings: dict[str, Any] = {"protocol": config.protocol, "timeout": config.timeout_s, "ca": config.ca}
        return Endpoint(lambda model: AsyncClient(address, model=model, **settings), address)

    return Pool([endpoint(address) for address in config.servers], config.in_flight)


async def run_fleet(
    cameras: Sequence[Camera], pool: Pool, handler: Handler, stop: asyncio.Event, *, keep: bool = False
) -> dict[str, Any]:
    """Runs all cameras until their sources end (unless `keep`) or `stop` is set, then closes the pool.

    Returns the summary of `clients/fleet/stats.py`, with the counts of each camera as `each`.
    """
    clock = asyncio.get_running_loop().time
    start = clock()
    finished = asyncio.gather(*(asyncio.create_task(_run_one(camera, pool, handler)) for camera in cameras))
    if not keep:
        finished.add_done_callback(lambda _: stop.set())
    try:
        await stop.wait()
        for camera in cameras:
            camera.stop()
        await finished
    finally:
        seconds = clock() - start
        await pool.close()
    stats = [camera.stats for camera in cameras]
    return summary(stats, seconds) | {"each": [each.record(seconds) for each in stats]}


async def _run_one(camera: Camera, pool: Pool, handler: Handler) -> None:
    """A camera that fails in a way that nobody thought of ends alone, with its reason in the account."""
    try:
        await camera.run(pool, handler)
    except Exception as error:
        camera.stats.error = without_password(f"{type(error).__name__}: {error}")
        logger.warning("%s: ended: %s", camera.config.name, camera.stats.error)


async def watch(
    cameras: Sequence[Camera],
    pool: Pool,
    handler: Handler,
    stop: asyncio.Event,
    *,
    seconds: float | None = None,
    status: bool = True,
    keep: bool = False,
) -> dict[str, Any]:
    """`run_fleet` for a command: SIGINT and SIGTERM stop it, and so does the end of `seconds`; with `status` it logs a
    line now and then. When this has returned both signals do nothing any more, so that neither interrupts the account
    nor, while Python ends, replaces the exit status."""
    loop = asyncio.get_running_loop()

    def stop_soon(*_: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and the account is being written
            loop.call_soon_threadsafe(stop.set)

    def on_signals(handler: Callable[..., None] | signal.Handlers) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            with contextlib.suppress(ValueError):  # outside the main thread
                signal.signal(number, handler)

    on_signals(stop_soon)  # a handler of the loop would end with it
    atexit.register(on_signals, signal.SIG_IGN)  # after that Python puts handlers of ours back to the default
    if seconds is not None:
        loop.call_later(seconds, stop.set)

    async def report() -> None:
        while True:
            await asyncio.sleep(STATUS_EVERY_S)
            logger.info("%s", status_line(cameras))

    reporter = asyncio.create_task(report()) if status else None
    try:
        return await run_fleet(cameras, pool, handler, stop, keep=keep)
    finally:
        if reporter is not None:
            reporter.cancel()


def status_line(cameras: Sequence[Camera]) -> str:
    """The counts and the state of each camera: `yard: 120 answered, 3 dropped, 0 failed, live | ...`."""
    return " | ".join(
        f"{c.config.name}: {c.stats.answered} answered, "
        + (f"{c.stats.still} still, " if c.gate else "")
        + f"{c.dropped.total()} dropped, {c.stats.failed.total()} failed, {c.reader.state}"
        for c in cameras
    )
