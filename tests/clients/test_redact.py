"""No part of a password, token or key is in anything that people or programs read."""

import asyncio
import json
import logging
import traceback
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from clients import camera as command
from clients.dashboard.board import Board
from clients.dashboard.load import Load
from clients.errors import Sam3ServerError, ServerUnavailable, translate
from clients.fleet.camera import Camera
from clients.fleet.config import CameraConfig, read_config
from clients.fleet.fleet import run_fleet
from clients.fleet.webhook import Webhook
from clients.fleet.yaml_lines import ConfigError
from clients.outputs.records import answer_record
from clients.redact import host_only, without_password
from clients.transport import Server
from clients.video.reader import CapturedFrame, Reader
from clients.video.sources import open_source
from tests.clients.answering import Answering, answering

SECRET = "Tr0ub4dor"
HIDES = {
    # keys of servers
    f"authorization: Bearer {SECRET}": "authorization: ***",
    f"sent Bearer {SECRET}": "sent Bearer ***",
    f"token eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiJ5YXJkIn0.{SECRET} is old": "token *** is old",
    f"SAM3_API_KEY={SECRET}": "SAM3_API_KEY=***",
    "write grpcs:// or https:// before it": "write grpcs:// or https:// before it",
    # before the host, plain and with what a password may hold
    f"rtsp://admin:{SECRET}@cam:554/1": "rtsp://cam:554/1",
    f"rtsp://admin:x@{SECRET}@cam/1": "rtsp://cam/1",
    f"rtsp://admin:{SECRET}@x@cam/1": "rtsp://cam/1",
    f"rtsp://admin:x/{SECRET}@cam/1": "rtsp://cam/1",
    f"rtsp://admin:1234/{SECRET}@cam/1": "rtsp://cam/1",
    f"rtsp://admin:x:{SECRET}@[::1]:554/1": "rtsp://[::1]:554/1",
    f"rtsp://admin:{SECRET}%21@cam/1": "rtsp://cam/1",
    f"rtsp://admin:x {SECRET}@cam/1": "rtsp://cam/1",
    f"rtsp://admin:x?{SECRET}@cam/1": "rtsp://cam/***",
    f"rtsp://admin:{SECRET}#x@cam/1": "rtsp://cam/***",
    f"rtsp://admin:{SECRET}&x=1@cam/1": "rtsp://cam/***",
    f"rtsp://{SECRET}@cam/1": "rtsp://cam/1",
    f"RTSP://admin:{SECRET}@cam/1": "RTSP://cam/1",
    # in the query and behind it
    f"http://cam/flv?port=1935&stream=0&user=admin&password={SECRET}": "http://cam/flv?port=1935&stream=0&user=***"
    "&password=***",
    f"http://cam/video.cgi?usr=admin&pwd={SECRET}": "http://cam/video.cgi?usr=***&pwd=***",
    f"http://cam/video.cgi?{SECRET}": "http://cam/video.cgi?***",
    f"http://cam/video.cgi?channel=2&{SECRET}&x={SECRET}": "http://cam/video.cgi?channel=2&***&x=***",
    f"http://cam/video#{SECRET}": "http://cam/video#***",
    f"http://cam.local/video?mail=me@home&pwd={SECRET}": "http://cam.local/video?mail=***&pwd=***",
    f"http://10.0.0.7:80/video?mail=me@home&pwd={SECRET}": "http://10.0.0.7:80/video?mail=***&pwd=***",
    f"http://relay/api?src=rtsp://admin:{SECRET}@cam/1": "http://relay/api?src=***",
    f"srt://cam:9000?mode=caller&passphrase={SECRET}": "srt://cam:9000?mode=***&passphrase=***",
    # in the path
    f"rtsp://cam/user=admin_password={SECRET}_channel=1_stream=0.sdp": "rtsp://cam/user=***",
    f"rtsp://cam/admin:{SECRET}/1": "rtsp://cam/***/1",
    f"rtsp://cam/token/{SECRET}/1": "rtsp://cam/token/***/1",
    f"https://maker.example.com/with/key/{SECRET}": "https://maker.example.com/with/key/***",
    f"https://hooks.slack.com/services/T0/B0/{SECRET}": "https://hooks.slack.com/…",
    f"hooks.slack.com/services/T0/B0/{SECRET}": "hooks.slack.com/…",
    f"https://discord.com/api/webhooks/1/{SECRET}": "https://discord.com/api/webhooks/…",
    # without a scheme, and in sentences
    f"admin:{SECRET}@gpu:8001": "gpu:8001",
    f"admin:x@{SECRET}@gpu:8001": "gpu:8001",
    f"{SECRET}@gpu:8001": "gpu:8001",
    f"neither 'rtsp://a:{SECRET}@b/1' nor 'rtsp://c:{SECRET}@d/2' answers": "neither 'rtsp://b/1' nor 'rtsp://d/2'"
    " answers",
    f"no port: 'x@{SECRET}@gpu:8002'": "no port: 'gpu:8002'",
    f"Authorization: Bearer {SECRET}, twice": "Authorization: ***, twice",
    f"X-Api-Key: {SECRET}": "X-Api-Key: ***",
    json.dumps({"token": SECRET, "n": 1}): '{"token": "***", "n": 1}',
}
SHOWS = [
    "rtsp://10.0.0.7:554/Streaming/Channels/101",
    "http://cam/video?channel=2&subtype=1&stream=main",
    "'tcp://127.0.0.1:9' is not a video (Connection refused)",
    "cameras.yaml:3: cameras[0].source: expected a file, got 7",
    "there is no file '/films/gate@home.mp4'",
    "frame must be uint8 [1,H,W,3], got float32 [4]; send it as JPEG",
    "http://[::1]:8080/",
]


@pytest.mark.parametrize(("text", "shown"), HIDES.items(), ids=HIDES)
def test_secrets_are_taken_out(text, shown):
    assert without_password(text) == shown


@pytest.mark.parametrize("text", SHOWS)
def test_the_rest_stays(text):
    assert without_password(text) == text


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        (f"https://host/a/{SECRET}", "https://host/…"),
        (f"https://u:{SECRET}@host:99/{SECRET}?x={SECRET}", "https://host:99/…"),
        (f"https://host?x={SECRET}", "https://host/…"),
        ("http://host:9000/", "http://host:9000"),
        (SECRET, "…"),
    ],
)
def test_the_host_alone(address, shown):
    assert host_only(address) == shown


FRAME = CapturedFrame(0, 0.0, np.zeros((8, 8, 3), np.uint8), 0.0, 0, b"")
YARD = CameraConfig("yard", "none", ("blue square", "red circle"), (0.5, 0.5))


def _raised(call, *arguments):
    """What a user's own program shows of an exception: its whole traceback."""
    with pytest.raises((ValueError, Sam3ServerError)) as error:
        call(*arguments)
    return "".join(traceback.format_exception(None, error.value, error.value.__traceback__))


def _source(address, tmp_path):
    return _raised(open_source, address)


def _reader(address, tmp_path):
    async def read():
        reader = Reader(address, reconnect=False).start()
        await reader.available()
        return f"{reader.error} {reader._thread.name}"

    return asyncio.run(read())


def _command(address, tmp_path):
    url = ["--url", "127.0.0.1:1", "--output"]
    assert command.main(["--source", address, "--classes", "a", *url]) == 2
    return str(command.default_output(address))


def _server_option(address, tmp_path):
    film = Path("tests/none.mp4")
    assert command.main(["--source", str(film), "--classes", "a", "--url", address, "--output"]) == 2
    return _raised(Server, address) + _raised(Server, address.partition("://")[2])


def _configuration(address, tmp_path):
    path = tmp_path / "cameras.yaml"
    one = {"name": "a", "source": address, "classes": ["x"]}
    said = ""
    for wrong in (
        {"servers": [address], "cameras": [one]},
        {"cameras": [one | {"webhook": address.partition("://")[2]}]},
        {"cameras": [one | {"source": [address]}]},
        {"cameras": [one | {"fps": address}]},
        {"cameras": [one | {address: 1}]},
    ):
        path.write_text(json.dumps(wrong))
        with pytest.raises(ConfigError) as error:
            read_config(path)
        said += str(error.value)
    path.write_text(json.dumps({"cameras": [one]}))
    return said + repr(read_config(path))


class _Broken(Answering):
    async def detect(self, image, classes, **options):
        raise KeyError(self.found)


async def _fleet(address):
    """The account, the page and a JSON line of a camera whose source, answers and handler fail."""
    camera = Camera(replace(YARD, source=address), Reader(address, reconnect=False))
    board = Board([camera])
    summary = await run_fleet([camera], answering(None), board, asyncio.Event())
    broken = answering(None)
    broken.endpoints[0].connect = lambda _: _Broken(address)
    answer = await camera._request(broken, await broken.acquire(), FRAME)
    assert answer.outcome == "client_error"
    board(camera, answer)
    camera.stats.handler_failed(RuntimeError(address))
    record = answer_record(camera, answer)
    assert "error" in record
    return json.dumps([summary, board.figures(), record, camera.stats.record(1.0)])


def _metrics(address, tmp_path):
    return json.dumps(asyncio.run(Load([address.partition("://")[2]]).figures()))


def _errors(address, tmp_path):
    made = translate(OSError(f"cannot reach {address}"), where="http://gpu:8001", model=None, timeout=1)
    return f"{made!r} {ServerUnavailable(address)} {Sam3ServerError(address)!r}"


def _webhook(address, tmp_path):
    async def post():
        webhook = Webhook(address.replace("rtsp://", "http://"))
        webhook.send({})
        await webhook.close()
        return json.dumps(webhook.record())

    said = asyncio.run(post())
    assert '"lost": 1' in said
    return said


PLACES = {
    "a source's error, with its traceback": _source,
    "a reader": _reader,
    "sam3-camera": _command,
    "sam3-camera --url": _server_option,
    "a configuration's errors": _configuration,
    "a fleet's account, its page and its lines": lambda address, tmp_path: asyncio.run(_fleet(address)),
    "the page's metrics": _metrics,
    "errors of requests": _errors,
    "a webhook": _webhook,
}
ADDRESSES = {
    "@ inside": f"rtsp://admin:x@{SECRET}@127.0.0.1:9/1",
    "/ inside": f"rtsp://admin:x/{SECRET}@127.0.0.1:9/1",
    "query": f"http://127.0.0.1:9/video.cgi?user=admin&pwd={SECRET}",
    "path": f"rtsp://127.0.0.1:9/user=admin_password={SECRET}_channel=1.sdp",
}


@pytest.mark.parametrize("address", ADDRESSES.values(), ids=ADDRESSES)
@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
def test_no_place_shows_a_secret(place, address, tmp_path, caplog, capfd, monkeypatch):
    monkeypatch.setattr("clients.fleet.webhook.PAUSE_S", 0.01)
    caplog.set_level(logging.DEBUG)
    said = place(address, tmp_path) + caplog.text + "".join(capfd.readouterr())
    assert SECRET not in said
    assert "admin" not in said
