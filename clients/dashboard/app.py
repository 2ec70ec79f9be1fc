"""`sam3-dashboard --config cameras.yaml`: a fleet and its web page in one process.

The HTTP interface serves the page, the figures and a JPEG per camera, and changes what a camera looks for. It listens
on this machine only unless told otherwise; elsewhere it requires a token, since not everybody may see the cameras.
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import json
import logging
import secrets
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

from fastapi import Body, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.staticfiles import StaticFiles

from clients.console import say
from clients.dashboard import prometheus
from clients.dashboard.board import Board, NoSuchCamera
from clients.dashboard.edit import Refused
from clients.dashboard.load import METRICS_PORT, Load
from clients.dashboard.web import WebServer, host_port, listen
from clients.fleet.camera import Camera
from clients.fleet.config import FleetConfig, read_config
from clients.fleet.fleet import open_pool, watch
from clients.fleet.request import Answer, Exemplar
from clients.outputs.outputs import Outputs
from clients.redact import without_password
from clients.transport import Server

STATIC = Path(__file__).with_name("static")
COOKIE = "sam3-token"


def build_app(board: Board, load: Load, token: str = "") -> FastAPI:
    """The web application. With a `token` every request must carry it: as `?token=` once, which sets a cookie, or as a
    bearer token.

    Errors are JSON with one sentence as `detail`: 404 for an unknown camera, 422 for classes, exemplars or regions
    that a camera cannot have.
    """
    app = FastAPI(title="sam3-dashboard", docs_url=None, redoc_url=None, openapi_url=None)
    began = time.monotonic()

    @app.middleware("http")
    async def check(request: Request, handle: Callable[[Request], Awaitable[Response]]) -> Response:
        given = request.query_params.get("token", "")
        bearer = request.headers.get("authorization", "").removeprefix("Bearer ")
        offered = (given, bearer, request.cookies.get(COOKIE, ""))
        if token and not any(secrets.compare_digest(word.encode(), token.encode()) for word in offered):
            return Response(
                "a token is needed: open the address that sam3-dashboard printed\n", 401, media_type="text/plain"
            )
        response = await handle(request)
        if token and given:
            response.set_cookie(COOKIE, token, httponly=True, samesite="strict")
        response.headers["Cache-Control"] = "no-store"
        response.headers["Content-Security-Policy"] = "default-src 'self'; frame-ancestors 'none'"
        return response

    @app.exception_handler(NoSuchCamera)
    async def unknown(request: Request, error: NoSuchCamera) -> Response:
        return JSONResponse({"detail": str(error)}, 404)

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return JSONResponse({"detail": str(error)}, 422)

    @app.exception_handler(RequestValidationError)
    async def misshapen(request: Request, error: RequestValidationError) -> Response:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc'][1:])) or 'body'}: {e['msg']}" for e in error.errors())
        return JSONResponse({"detail": wrong}, 422)

    @app.get("/api/cameras")
    async def cameras() -> list[dict[str, Any]]:
        return board.figures()

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(prometheus.exposition(board, began), media_type=prometheus.CONTENT_TYPE)

    @app.get("/api/load")
    async def busy() -> dict[str, Any]:
        return await load.figures()

    @app.get("/api/cameras/{name:path}/frame.jpg")
    async def frame(name: str, small: bool = False) -> Response:
        jpeg = await board.picture(name, small)
        return Response(jpeg, media_type="image/jpeg") if jpeg else Response(status_code=204)

    @app.put("/api/cameras/{name:path}/classes", status_code=204)
    async def classes(name: str, names: Annotated[list[str], Body()]) -> None:
        board.set_classes(name, names)

    @app.put("/api/cameras/{name:path}/exemplars", status_code=204)
    async def exemplars(name: str, boxes: Annotated[list[Exemplar], Body()]) -> None:
        board.set_exemplars(name, boxes)

    @app.put("/api/cameras/{name:path}/regions", status_code=204)
    async def regions(name: str, polygons: Annotated[list[list[tuple[float, float]]], Body()]) -> None:
        board.set_regions(name, polygons)

    app.mount("/", StaticFiles(directory=STATIC, html=True))
    return app


async def serve(config: FleetConfig, load: Load, listener: socket.socket, token: str) -> dict[str, Any]:
    """Runs the fleet, its outputs and the page until SIGINT or SIGTERM; returns the fleet's summary."""
    cameras = [Camera(camera) for camera in config.cameras]
    board, outputs, stop = Board(cameras), Outputs(cameras), asyncio.Event()
    await outputs.open()
    web = WebServer(build_app(board, load, token))
    page = asyncio.create_task(web.serve(sockets=[listener]))
    page.add_done_callback(lambda _: stop.set())

    async def handle(camera: Camera, answer: Answer) -> None:
        board(camera, answer)  # first: an output may take its time
        await outputs(camera, answer)

    try:
        summary = await watch(cameras, open_pool(config), handle, stop, status=False, keep=True)
    finally:
        written = await outputs.close()
    summary |= written
    web.should_exit = True
    await asyncio.wait({page})
    if error := page.exception():
        summary["error"] = without_password(f"the page ended: {type(error).__name__}: {error}")
    return summary


def metrics_of(config: FleetConfig) -> list[str]:
    """The default addresses of the servers' metrics: their hosts at Triton's usual port. What is asked over TLS stands
    before servers, and keeps their metrics to itself."""
    servers = [Server(url, config.protocol) for url in config.servers]
    return [f"{server.address.rpartition(':')[0]}:{METRICS_PORT}" for server in servers if not server.encrypted]


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to that interface."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def main(argv: Sequence[str] | None = None) -> int:
    """0 when it was stopped; 1: the page ended by itself, or an output could not be written; 2: it could not start, and
    stderr says why. The last line of stdout is one JSON object."""
    parser = argparse.ArgumentParser(
        prog="sam3-dashboard",
        description="Run a fleet of cameras and show it in a browser.",
        epilog="example: sam3-dashboard --config cameras.yaml --port 8080",
    )
    parser.add_argument("--config", type=Path, required=True, help="as for sam3-camera --config")
    parser.add_argument(
        "--metrics", nargs="*", metavar="HOST:PORT", help="of the servers (default: their port 8002; empty: no figures)"
    )
    parser.add_argument("--host", default="127.0.0.1", help="interface to listen on (default: this machine only)")
    parser.add_argument("--port", type=int, default=8080, help="default: %(default)s")
    parser.add_argument(
        "--token", help="what browsers must send (default: none on this machine, a random one elsewhere)"
    )
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    host = options.host.strip("[]")
    token = options.token or ("" if is_loopback(host) else secrets.token_urlsafe(16))
    try:
        config = read_config(options.config)
        load = Load(metrics_of(config) if options.metrics is None else options.metrics)
        with listen(host, options.port) as listener:
            where = host_port(host, listener.getsockname()[1])
            print(f"http://{where}/{'?token=' + token if token else ''}", file=sys.stderr, flush=True)
            result = asyncio.run(serve(config, load, listener, token))
    except (ValueError, ImportError, OSError, KeyboardInterrupt) as error:
        told = without_password(str(error)) or "interrupted before it had started"
        print(f"sam3-dashboard: {told}", file=sys.stderr)
        say(json.dumps({"config": str(options.config), "error": told}))
        return 2
    if not say(json.dumps(result)):
        print(json.dumps(result), file=sys.stderr)
    return 1 if "error" in result or any("error" in output for output in result["outputs"]) else 0


if __name__ == "__main__":
    sys.exit(main())
