"""The dashboard on a free port, for tests of its HTTP interface."""

import asyncio
import contextlib
import json
import urllib.error
import urllib.request

import pytest

from clients.dashboard.app import build_app
from clients.dashboard.load import Load

uvicorn = pytest.importorskip("uvicorn")


@contextlib.asynccontextmanager
async def page(board, token="", load=None):
    """Serves the dashboard; yields a function that sends a request and returns (status, body)."""
    server = uvicorn.Server(uvicorn.Config(build_app(board, load or Load([]), token), port=0, log_level="error"))
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"

    def ask(path, data=None, headers=None):
        body = None if data is None else json.dumps(data).encode()
        about = {"Content-Type": "application/json"} | (headers or {})
        request = urllib.request.Request(address + path, body, about, method="GET" if data is None else "PUT")
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def asking(*words, **more):
        return asyncio.to_thread(ask, *words, **more)

    try:
        yield asking
    finally:
        server.should_exit = True
        await serving
