"""The guard of the HTTP port: passes on what Triton can take, byte for byte, and refuses what would end it."""

import asyncio
import gzip
import json
import os
import signal

import aiohttp
import pytest
from aiohttp import web

from clients import Client
from ensemble.server import guard
from ensemble.server.embedded import EmbeddedServer
from ensemble.server.guard import JSON_LENGTH, Guard, Refused, check
from ensemble.server.requirements import ServerError

INFER = "/v2/models/sam3_r140/infer"


def document(shape, **more):
    return json.dumps({"inputs": [{"name": "frame", "datatype": "UINT8", "shape": shape} | more]}).encode()


HUGE = {
    "one side": document([1, 2**40]),
    "a product": document([1, 100_000, 100_000, 3]),
    "beyond 64 bits": document([2**70]),
    "negative": document([-(2**40)]),
    "a fraction": b'{"shape": [1e300]}',
    "infinite": b'{"shape": [1e999]}',
    "behind a zero": document([0, 2**40]),
    "the first of two": b'{"inputs": [{"shape": [1099511627776], "shape": [1]}]}',
    "a name in escapes": b'{"inputs": [{"sh\\u0061pe": [1099511627776]}]}',
    "more than was sent": document([1, 4000], data=[1]),
    "in shared memory": document([1, 2**40], parameters={"shared_memory_region": "x"}),
}
CLASSIFICATION = b'{"outputs": [{"name": "mask_rle", "parameters": {"classification": 3}}]}'
NO_DOCUMENT = {
    "a classification": (CLASSIFICATION, None, "classification: these outputs are boxes, masks and numbers"),
    "nothing": (b"", None, "expected a JSON document"),
    "no JSON": (b"hello", None, "got expecting value at character 0 of 5"),
    "broken off": (document([1])[:-1], None, "expected a JSON document"),
    "nested": (b"[" * 100_000, None, "nested too deeply"),
    "a very long number": (b"[" + b"9" * 5000 + b"]", None, "far too long"),
    "length is no number": (document([1]), "abc", JSON_LENGTH),
    "negative length": (document([1]), "-1", JSON_LENGTH),
    "longer than the body": (document([1]), "1000", JSON_LENGTH),
    "a length of thousands of digits": (document([1]), "9" * 5000, JSON_LENGTH),
    "length in the middle": (document([1]), "10", "expected a JSON document"),
}
FRAME = document([1, 10, 10, 3], parameters={"binary_data_size": 300})
TAKEN = {
    "a frame as numbers": (document([1, 2, 2, 3], data=[0] * 12), None),
    "a frame as bytes": (FRAME + bytes(300), str(len(FRAME))),
    "a frame in shared memory": (document([1, 1080, 1920, 3], parameters={"shared_memory_region": "x"}), None),
    "nothing in it": (document([1, 0]), None),
    "text that is no UTF-8": (b'{"inputs": [{"shape": [1, 1], "data": ["\xff"]}]}', None),
    "other things called shape": (b'{"shape": "round", "inputs": [{"shape": null}]}', None),
}


@pytest.mark.parametrize("body", HUGE.values(), ids=HUGE)
def test_shapes_that_would_end_triton(body):
    with pytest.raises(Refused, match="shape: expected at most as many values as are sent"):
        check(body, None)


@pytest.mark.parametrize(("body", "length", "sentence"), NO_DOCUMENT.values(), ids=NO_DOCUMENT)
def test_bodies_that_are_no_document(body, length, sentence):
    with pytest.raises(Refused, match=sentence):
        check(body, length)


@pytest.mark.parametrize(("body", "length"), TAKEN.values(), ids=TAKEN)
def test_what_is_taken(body, length):
    check(body, length)


class Triton:
    """Answers as it is told, and keeps what it was asked."""

    def __init__(self):
        self.asked, self.status, self.body, self.headers = [], 200, b"{}", {}

    async def answer(self, request):
        self.asked.append((request.method, request.raw_path, dict(request.headers), await request.read()))
        return web.Response(status=self.status, body=self.body, headers=self.headers)


@pytest.fixture
async def triton():
    """A server in Triton's place, and a session whose base is the guard before it."""
    there, runners = Triton(), []

    async def listen(app):
        runner = web.AppRunner(app)
        await runner.setup()
        runners.append(runner)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return runner.addresses[0][1]

    app = web.Application(client_max_size=2**30)
    app.router.add_route("*", "/{path:.*}", there.answer)
    there.port = await listen(app)
    port = await listen(Guard(f"127.0.0.1:{there.port}").application())
    there.stop = runners[0].cleanup
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", auto_decompress=False) as there.session:
        yield there
    for runner in runners:
        await runner.cleanup()


async def test_a_request_and_its_answer_pass_unchanged(triton):
    body = document([1, 4], parameters={"binary_data_size": 4}) + b"\0\xff\r\n"
    triton.body, triton.headers = b"\x01\x02\0", {JSON_LENGTH: "3", "Content-Encoding": "deflate"}
    headers = {JSON_LENGTH: str(len(body) - 4), "Accept-Encoding": "deflate", "traceparent": "00-1"}
    async with triton.session.post(INFER + "?a=b", data=body, headers=headers) as answer:
        assert (answer.status, await answer.read()) == (200, b"\x01\x02\0")
        assert (answer.headers[JSON_LENGTH], answer.headers["Content-Encoding"]) == ("3", "deflate")
    ((method, path, got, sent),) = triton.asked
    assert (method, path, sent) == ("POST", INFER + "?a=b", body)
    assert headers.items() <= got.items()


async def test_triton_gets_no_header_that_the_caller_did_not_send(triton):
    """With `Accept-Encoding` it would compress the answer, for callers who cannot read that."""
    own = ("Accept-Encoding", "Accept", "Content-Type", "User-Agent")
    async with triton.session.post(INFER, data=document([1]), skip_auto_headers=own) as answer:
        assert answer.status == 200
    ((_, _, got, _),) = triton.asked
    assert set(got).isdisjoint(own)


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v2/health/ready"), ("POST", "/v2/repository/index"), ("GET", "/v2/models/stats")]
)
async def test_other_questions_are_passed_on_unread(triton, method, path):
    async with triton.session.request(method, path, data=b"{" if method == "POST" else None) as answer:
        assert answer.status == 200
    assert [(asked[0], asked[1]) for asked in triton.asked] == [(method, path)]


async def test_tritons_refusals_are_passed_on(triton):
    triton.status, triton.body = 400, b'{"error":"threshold: expected 0 to 1"}'
    async with triton.session.post(INFER, data=document([1])) as answer:
        assert (answer.status, await answer.read()) == (400, triton.body)


async def test_a_compressed_body_arrives_as_it_was_before(triton):
    body = document([1])
    async with triton.session.post(INFER, data=gzip.compress(body), headers={"Content-Encoding": "gzip"}) as answer:
        assert answer.status == 200
    (_, _, headers, sent) = triton.asked[0]
    assert sent == body
    assert "Content-Encoding" not in headers


REFUSED = {
    "a huge shape": (document([2**40]), {}, 400, "shape: expected at most"),
    "a large document of a huge shape": (document([2**40], data=[0] * 200_000), {}, 400, "shape: expected at most"),
    "no JSON": (b"hello", {}, 400, "expected a JSON document"),
    "a broken encoding": (b"hello", {"Content-Encoding": "gzip"}, 400, "Content-Encoding"),
    "too large": (bytes(guard.MOST_BYTES + 1), {}, 413, "expected a body of at most 67108864 bytes"),
    "too large once unpacked": (
        gzip.compress(bytes(guard.MOST_BYTES + 1), 1),
        {"Content-Encoding": "gzip"},
        413,
        "expected a body of at most",
    ),
}


@pytest.mark.parametrize(("body", "headers", "status", "sentence"), REFUSED.values(), ids=REFUSED)
async def test_what_triton_never_sees(triton, body, headers, status, sentence):
    async with triton.session.post(INFER, data=body, headers=headers) as answer:
        assert answer.status == status
        assert sentence in json.loads(await answer.read())["error"]
    assert triton.asked == []


@pytest.mark.parametrize("method", ["HEAD", "PUT", "DELETE", "OPTIONS"])
async def test_methods_that_triton_has_no_use_for(triton, method):
    """It answers HEAD with a body: the next request on that connection would get it for an answer."""
    async with triton.session.request(method, "/v2/health/ready") as answer:
        assert answer.status == 405
    assert triton.asked == []


@pytest.mark.parametrize(
    "data",
    [
        b"hello " * 5000 + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
        b"\x16\x03\x01" * 99 + b"\n",
    ],
    ids=["no request line", "a long header", "TLS"],
)
async def test_what_is_no_http_gets_one_short_sentence(triton, data):
    reader, writer = await asyncio.open_connection("127.0.0.1", triton.session._base_url.port)
    writer.write(data)
    answer = await reader.read()
    writer.close()
    assert b"400 Bad Request" in answer
    assert json.loads(answer.rpartition(b"\r\n\r\n")[2])["error"].startswith("expected an HTTP request")


async def test_without_triton_the_answer_says_so(triton):
    await triton.stop()
    async with triton.session.get("/v2/health/ready") as answer:
        assert answer.status == 503
        assert "the server does not answer" in json.loads(await answer.read())["error"]


@pytest.mark.server
def test_a_guard_that_ends_is_noticed_and_a_port_that_is_taken_is_said(repository, monkeypatch):
    """Where everything goes to a proxy that nobody has started, as the server's own questions must not."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "grpc_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with EmbeddedServer(repository, resolutions=[140]) as running:
        running.probe()
        with Client(running.grpc_url, model="sam3_r140") as client:
            assert client.ready()
        with pytest.raises(ServerError, match=f"port {running.http_port} on 127.0.0.1 cannot be used"):
            EmbeddedServer(repository, http_port=running.http_port)
        os.kill(running._guard.pid, signal.SIGKILL)
        with pytest.raises(ServerError, match="the guard of the HTTP port: its process has ended"):
            running.wait(600)
