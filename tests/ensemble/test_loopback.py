"""This machine is asked directly, whatever the environment says of proxies; others by way of them."""

import asyncio
import os
import threading
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from clients import AsyncClient, Client
from clients.dashboard.load import _fetch
from clients.fleet.webhook import Webhook
from ensemble.loopback import is_loopback, no_proxy_variables, open_url
from ensemble.server.embedded import EmbeddedServer
from perf.sweep.metrics import scrape
from perf.sweep.target import Target

ADDRESSES = {
    "localhost": True,
    "localhost:8001": True,
    "LOCALHOST:8001": True,
    "localhost.:8001": True,
    "sam3.localhost:8001": True,
    "127.0.0.1": True,
    "127.1.2.3:8001": True,
    "[::1]:8001": True,
    "::1": True,
    "2001:db8::7": False,
    "a:b:c": False,
    "[::ffff:127.0.0.1]:8001": True,
    "0.0.0.0:8000": True,
    "[::]:8000": True,
    "gpu-host:8001": False,
    "10.0.0.7:8001": False,
    "localhost.example.org": False,
    "128.0.0.1:8001": False,
    "[fe80::1%eth0]:8001": False,
    "[::1": False,
    "": False,
}
VARIABLES = ("http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "grpc_proxy")


@pytest.mark.parametrize(("address", "here"), ADDRESSES.items(), ids=[repr(a) for a in ADDRESSES])
def test_which_addresses_are_this_machine(address, here):
    assert is_loopback(address) is here


@pytest.fixture(params=[None, "", "example.org,10.0.0.0/8"], ids=["no_proxy unset", "empty", "others"])
def proxied(request, monkeypatch):
    """An environment in which everything goes to a proxy that nobody has started."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY", "no_grpc_proxy"):
        monkeypatch.delenv(name, raising=False)
        if request.param is not None:
            monkeypatch.setenv(name, request.param)


@pytest.fixture
def local():
    """host:port of an HTTP server that answers everything with an empty object."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(200)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"{}")

        def do_POST(self):
            self.do_GET()

        def log_message(self, *_):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"localhost:{server.server_port}"
        server.shutdown()


async def _ready(address):
    async with AsyncClient(address, protocol="http") as client:
        return await client.ready()


async def _posted(address):
    webhook = Webhook(f"http://{address}/events")
    webhook.send({})
    await webhook.close()
    return webhook.sent == 1


ASKED = {
    "urllib": lambda address: open_url(f"http://{address}/", 5).status == 200,
    "the server's own readiness": lambda address: EmbeddedServer("none")._get("/v2/health/ready", address) == "{}",
    "the dashboard's metrics": lambda address: "error" not in _fetch(address),
    "perf's metrics": lambda address: scrape(address) == {},
    "perf's list of models": lambda address: Target(grpc="", http=address, metrics="").models() == [],
    "the blocking client over HTTP": lambda address: Client(address, protocol="http").ready(),
    "the asyncio client over HTTP": lambda address: asyncio.run(_ready(address)),
    "a webhook": lambda address: asyncio.run(_posted(address)),
}


@pytest.mark.parametrize("ask", ASKED.values(), ids=ASKED)
def test_this_machine_is_asked_directly(proxied, local, ask):
    assert ask(local)


def test_other_machines_are_asked_by_way_of_the_proxy(monkeypatch, local):
    monkeypatch.setattr(urllib.request, "_opener", None)  # it keeps the proxies of its first use
    monkeypatch.setenv("http_proxy", f"http://{local}")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    assert open_url("http://gpu-host.invalid/metrics", 5).status == 200


def test_programs_of_others_are_told(proxied):
    given = os.environ.get("no_proxy", "")
    for name, value in no_proxy_variables().items():
        names = value.split(",")
        assert {"localhost", "127.0.0.1", "::1"} <= set(names), name
        assert set(filter(None, given.split(","))) <= set(names), name
        assert "" not in names
