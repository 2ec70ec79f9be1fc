"""Ctrl-C and SIGTERM end each command with its account and the right exit status, real processes against the real
server."""

import json
import signal
import socket
import subprocess
import sys
import urllib.request

import numpy as np
import pytest

from clients.video.encode import VideoWriter
from ensemble.spec import Variant
from tests.clients.grpc_server import wait_until
from tests.clients.video.web import has_ipv6

SIGNALS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
CAMERA, PAGE = "clients.camera", "clients.dashboard.app"


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Longer than any of these tests."""
    path = tmp_path_factory.mktemp("films") / "film.mp4"
    with VideoWriter(path, 20) as writer:
        for i in range(3000):
            writer.write(np.full((48, 64, 3), i % 250, np.uint8))
    return path


class Program:
    """A command in a process of its own, whose output goes to files."""

    def __init__(self, folder, module, *arguments):
        self.out, self.err = folder / f"{module}.out", folder / f"{module}.err"
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen([sys.executable, "-m", module, *arguments], stdout=out, stderr=err)

    def wait_for(self, condition):
        """Fails where the program ends before the condition holds."""
        wait_until(lambda: self.process.poll() is not None or condition())
        assert self.process.poll() is None, self.err.read_text()

    def end(self, number):
        """Exit status and last line of stdout after the signal, twice as by an impatient hand."""
        self.process.send_signal(number)
        self.process.send_signal(number)
        status = self.process.wait(120)
        assert "Traceback" not in self.err.read_text()
        lines = self.out.read_text().splitlines()
        assert lines, f"no account; status {status}, stderr: {self.err.read_text()}"
        return status, json.loads(lines[-1])


def cameras(folder, film, url):
    """A configuration in that folder, into which its output goes too."""
    folder.mkdir(exist_ok=True)
    path = folder / "cameras.yaml"
    one = {"name": "yard", "source": str(film), "classes": ["red circle"], "model": Variant(252).front_name}
    path.write_text(json.dumps({"servers": [url], "cameras": [one | {"realtime": True, "output": "yard.jsonl"}]}))
    return str(path)


def dashboard(folder, config):
    """The page of that fleet and its address."""
    program = Program(folder, PAGE, "--config", config, "--port", "0", "--metrics")
    program.wait_for(lambda: "http://" in program.err.read_text())
    return program, program.err.read_text().split()[0]


def figures(address):
    with urllib.request.urlopen(f"{address}api/cameras", timeout=60) as answer:
        return json.load(answer)[0]


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def adds_up(account):
    (each,) = account["each"]
    return each["read"] == each["answered"] + sum(each["dropped"].values()) + sum(each["failed"].values()) > 0


@pytest.mark.server
@SIGNALS
def test_the_account_is_always_written(server, film, tmp_path, number):
    model = ("--url", server.grpc_url, "--model", Variant(252).front_name)
    (tmp_path / "one").mkdir()
    one = Program(tmp_path / "one", CAMERA, "--source", str(film), "--classes", "red circle", *model, "--output")
    config = cameras(tmp_path, film, server.grpc_url)
    fleet = Program(tmp_path, CAMERA, "--config", config)
    page, address = dashboard(tmp_path, cameras(tmp_path / "page", film, server.grpc_url))
    with socket.create_connection(("127.0.0.1", int(address.rstrip("/").rpartition(":")[2]))) as browser:
        browser.sendall(b"GET / HTTP/1.1\r\n")  # and nothing more: it must not keep the program
        one.wait_for(lambda: one.out.read_text().count(" ms  ") > 2)
        fleet.wait_for(lambda: (tmp_path / "yard.jsonl").exists() and (tmp_path / "yard.jsonl").stat().st_size)
        page.wait_for(lambda: figures(address)["answered"] > 2)
        ends = [program.end(number) for program in (one, fleet, page)]
    assert [status for status, _ in ends] == [0, 0, 0]
    alone, together, shown = (account for _, account in ends)
    assert alone["frames"] > 2
    assert adds_up(together)
    assert adds_up(shown)
    for account, folder in ((together, tmp_path), (shown, tmp_path / "page")):
        lines = lines_of(folder / "yard.jsonl")
        assert sum(line["outcome"] == "answered" for line in lines) == account["answered"]
        assert account["outputs"] == [{"output": str(folder / "yard.jsonl"), "written": len(lines), "lost": 0}]


def test_without_a_server(film, tmp_path, closed_port):
    """Every frame failed: the camera's status says so, the page's owner was told by the page."""
    config = cameras(tmp_path, film, f"127.0.0.1:{closed_port}")
    fleet = Program(tmp_path, CAMERA, "--config", config)
    page, address = dashboard(tmp_path / "page", cameras(tmp_path / "page", film, f"127.0.0.1:{closed_port}"))
    page.wait_for(lambda: figures(address)["failed"])
    fleet.wait_for(lambda: (tmp_path / "yard.jsonl").exists() and (tmp_path / "yard.jsonl").stat().st_size)
    (status, account), (page_status, shown) = fleet.end(signal.SIGTERM), page.end(signal.SIGINT)
    assert (status, page_status) == (1, 0)
    assert adds_up(account)
    assert adds_up(shown)
    assert account["answered"] == shown["answered"] == 0


def test_a_signal_while_python_ends():
    """Modules are cleared after Python has put its own handlers back: a second SIGTERM can come then."""
    code = """
import asyncio, os, signal, sys
from clients.fleet.fleet import watch
from clients.fleet.pool import Pool

class Late:
    def __del__(self, kill=os.kill, me=os.getpid(), number=signal.SIGTERM):
        kill(me, number)

late = Late()

async def main():
    stop = asyncio.Event()
    stop.set()
    await watch([], Pool([], 1), None, stop)

asyncio.run(main())
sys.exit(1)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_page_that_cannot_listen(film, tmp_path, closed_port):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        arguments = ["--config", cameras(tmp_path, film, f"127.0.0.1:{closed_port}"), "--port", str(port)]
        command = [sys.executable, "-m", PAGE, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert f"cannot listen on 127.0.0.1:{port}" in json.loads(done.stdout.splitlines()[-1])["error"]


def test_a_page_on_ipv6(film, tmp_path, closed_port):
    """Its address has brackets, it needs no token, and it answers there."""
    if not has_ipv6():
        pytest.skip("no IPv6 on this machine")
    config = cameras(tmp_path, film, f"127.0.0.1:{closed_port}")
    program = Program(tmp_path, PAGE, "--config", config, "--host", "::1", "--port", "0", "--metrics")
    program.wait_for(lambda: "http://" in program.err.read_text())
    address = program.err.read_text().split()[0]
    assert address.startswith("http://[::1]:")
    program.wait_for(lambda: figures(address)["name"] == "yard")
    assert program.end(signal.SIGINT)[0] == 0


AFTERWARDS = """
import asyncio, os, signal
from clients.fleet.config import FleetConfig
from clients.fleet.fleet import open_pool, watch

asyncio.run(watch([], open_pool(FleetConfig((), ("127.0.0.1:1",))), print, asyncio.Event(), status=False))
os.kill(os.getpid(), signal.{name})
print("account")
"""


@SIGNALS
def test_a_signal_after_the_cameras_does_not_take_the_account(number):
    done = subprocess.run([sys.executable, "-c", AFTERWARDS.format(name=number.name)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "account\n"), done.stderr
