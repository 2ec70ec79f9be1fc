"""The clients with the real server: the same answers and errors over both protocols, blocking and asyncio."""

import asyncio
import contextlib
import io
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from clients import AsyncClient, Client, InvalidRequest, ModelNotFound, ServerUnavailable, camera, open_source
from clients.video.encode import VideoWriter, to_jpeg
from ensemble.server.embedded import EmbeddedServer
from ensemble.spec import STAGES, Variant
from tests.clients.video.cameras import FakeCamera, transport_stream

pytestmark = pytest.mark.server

MODEL = Variant(252).front_name
CLASSES = ["red circle", "blue square", "green star"]
PROTOCOLS = ("grpc", "http")
KINDS = ("blocking", "asyncio")


@pytest.fixture(scope="module")
def picture():
    """uint8 [360,640,3]: a red disc on the left, a blue square on the right."""
    image = Image.new("RGB", (640, 360), (90, 95, 90))
    draw = ImageDraw.Draw(image)
    draw.ellipse((80, 120, 200, 240), fill=(220, 40, 40))
    draw.rectangle((400, 90, 520, 210), fill=(50, 80, 220))
    return np.asarray(image)


def url_of(server, protocol):
    return server.grpc_url if protocol == "grpc" else server.http_url


def detect(server, kind, protocol, image, classes, model=MODEL, **options):
    if kind == "blocking":
        with Client(url_of(server, protocol), protocol=protocol, model=model) as client:
            return client.detect(image, classes, **options)

    async def go():
        async with AsyncClient(url_of(server, protocol), protocol=protocol, model=model) as client:
            return await client.detect(image, classes, **options)

    return asyncio.run(go())


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", KINDS)
def test_finds_what_is_drawn(server, kind, protocol, picture):
    found = detect(server, kind, protocol, picture, CLASSES, mask_format="bits")
    assert sorted(found.labels) == ["blue square", "red circle"]
    by_label = dict(zip(found.labels, found.boxes_in_pixels.tolist(), strict=True))
    assert by_label["red circle"] == pytest.approx([80, 120, 200, 240], abs=12)
    assert by_label["blue square"] == pytest.approx([400, 90, 520, 210], abs=12)
    assert found.presence.shape == (3,)
    assert found.presence[2] < 0.5 < found.presence[:2].min()
    assert found.frame_size == (360, 640)
    assert found.masks.shape == (2, 72, 72)
    disc = found.masks_at(360, 640)[found.labels.index("red circle")]
    assert (disc[180, 140], disc[20, 20]) == (True, False)
    assert list(found.stage_ms) == list(STAGES)
    assert 0 < found.stage_ms["total"] <= found.latency_ms
    assert found.batch >= 1


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("mask_format", ["none", "bits", "rle"])
def test_an_empty_image(server, protocol, mask_format):
    grey = np.full((48, 64, 3), 120, np.uint8)
    found = detect(server, "blocking", protocol, grey, ["purple ring"], mask_format=mask_format)
    assert len(found) == 0
    assert found.boxes.dtype == np.float32
    assert (found.masks.shape, found.rle) == ((0, 72, 72), ())


def test_every_way_to_send_an_image(server, picture, tmp_path):
    """Pixels and a lossless file give the same answer; a JPEG nearly the same."""
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG")
    (tmp_path / "a.png").write_bytes(buffer.getvalue())
    with Client(server.grpc_url, model=MODEL) as client:
        pixels, png, path, jpeg = (
            client.detect(image, CLASSES)
            for image in (picture, buffer.getvalue(), tmp_path / "a.png", to_jpeg(picture))
        )
    for other, tolerance in ((png, 1e-4), (path, 1e-4), (jpeg, 0.05)):
        assert other.labels == pixels.labels
        np.testing.assert_allclose(other.boxes, pixels.boxes, atol=tolerance)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_bits_and_rle_are_the_same_masks(server, protocol, picture):
    with Client(url_of(server, protocol), protocol=protocol, model=MODEL) as client:
        bits = client.detect(picture, CLASSES, mask_format="bits")
        rle = client.detect(picture, CLASSES, mask_format="rle")
        none = client.detect(picture, CLASSES)
    assert rle.mask_rle
    assert np.array_equal(bits.masks, rle.masks)
    assert bits.rle == rle.rle
    assert not none.has_masks


def test_boxes_alone(server, picture):
    found = detect(server, "blocking", "grpc", picture, [], boxes=[[0.125, 0.333, 0.3125, 0.667]], threshold=0.0)
    assert set(found.labels) == {"visual"}


def test_limits(server, picture):
    found = detect(server, "blocking", "grpc", picture, CLASSES, threshold=0.0, max_detections=3)
    assert len(found) == 3
    assert (np.diff(found.scores) <= 0).all()


REFUSED = {
    "threshold out of range": ({"threshold": 7.0}, "threshold: expected 0 to 1, got 7"),
    "unknown mask format": ({"mask_format": "png"}, "mask_format: expected one of none, bits, rle"),
    "box out of the frame": ({"boxes": [[1.1, 0.5, 1.5, 0.9]], "box_classes": [0]}, "boxes[0]"),
    "not an image": ({"image": b"hello"}, "image"),
    "empty class": ({"classes": ["cat", " "]}, "classes[1]"),
}


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("case", REFUSED)
def test_the_servers_message_arrives(server, protocol, case, picture):
    options, says = REFUSED[case]
    arguments = {"image": picture, "classes": CLASSES} | options
    with pytest.raises(InvalidRequest) as refusal:
        detect(server, "blocking", protocol, **arguments)
    assert says in str(refusal.value)


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_model_lists_the_models(server, kind, protocol, picture):
    with pytest.raises(ModelNotFound, match=MODEL):
        detect(server, kind, protocol, picture, CLASSES, model="sam3_r1008")


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_models_and_readiness(server, protocol):
    with Client(url_of(server, protocol), protocol=protocol) as client:
        assert client.models() == (Variant(140).front_name, MODEL)
        assert client.ready()
        with pytest.raises(ModelNotFound, match="choose one"):
            client.detect(b"x", ["a"])
    with Client(url_of(server, protocol), protocol=protocol, model="sam3_r1008") as client:
        assert not client.ready()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_concurrent_frames_of_different_classes_share_batches(server, protocol, picture):
    """Sixteen requests at once with different images, class lists and mask formats: each gets its own answer, and
    batches form."""

    async def go():
        async with AsyncClient(url_of(server, protocol), protocol=protocol, model=MODEL) as client:
            requests = []
            for i in range(16):
                small = np.ascontiguousarray(picture[: 360 - i, : 640 - 2 * i])
                classes = CLASSES[i % 2 : 2] if i % 3 else CLASSES
                requests.append(
                    client.detect(
                        small if i % 2 else to_jpeg(small), classes, mask_format=("none", "bits", "rle")[i % 3]
                    )
                )
            return await asyncio.gather(*requests)

    answers = asyncio.run(go())
    for i, found in enumerate(answers):
        assert found.frame_size == (360 - i, 640 - 2 * i)
        assert set(found.labels) == ({"blue square"} if i % 2 and i % 3 else {"blue square", "red circle"})
        assert bool(found.mask_rle) == (i % 3 == 2)
    assert max(found.batch for found in answers) > 1


def test_threads_share_a_grpc_client(server, picture):
    with Client(server.grpc_url, model=MODEL) as client, ThreadPoolExecutor(8) as pool:
        shifted = [np.roll(picture, 10 * i, axis=0) for i in range(8)]
        answers = list(pool.map(lambda image: client.detect(image, ["blue square"]), shifted))
    tops = [found.boxes_in_pixels[0, 1] for found in answers]
    assert tops == pytest.approx([90 + 10 * i for i in range(8)], abs=12)


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_camera_command(server, protocol, picture, tmp_path, capsys):
    film = tmp_path / "film.mp4"
    with VideoWriter(film, 5) as writer:
        for i in range(4):
            writer.write(np.roll(picture, 4 * i, axis=1))
    outputs = [str(tmp_path / name) for name in ("a.mp4", "a.png", "a.jsonl")]
    (tmp_path / "a.jsonl").write_text("an earlier run\n")
    code = camera.main(
        [
            "--source",
            str(film),
            "--classes",
            *CLASSES,
            "--url",
            url_of(server, protocol),
            "--protocol",
            protocol,
            "--model",
            MODEL,
            "--masks",
            "--limit",
            "3",
            "--output",
            *outputs,
        ]
    )
    lines = capsys.readouterr().out.strip().splitlines()
    result = json.loads(lines[-1])
    assert code == 0
    assert (result["frames"], result["failed"], result["detections"], result["model"]) == (3, 0, 6, MODEL)
    assert len(lines) == 5
    assert "1 red circle" in lines[0]
    records = [json.loads(line) for line in Path(outputs[2]).read_text().splitlines()]
    assert [(record["frame"], len(record["detections"])) for record in records] == [(0, 2), (1, 2), (2, 2)]
    with open_source(outputs[0]) as video:
        assert (video.fps, video.count) == (5.0, 3)
    assert all(Path(path).stat().st_size for path in outputs)


def test_camera_ends_when_its_request_is_refused(server, picture, tmp_path, capsys):
    with VideoWriter(tmp_path / "film.mp4", 5) as writer:
        for _ in range(20):
            writer.write(picture)
    arguments = ["--source", str(tmp_path / "film.mp4"), "--url", server.grpc_url, "--model", MODEL, "--output"]
    assert camera.main([*arguments, "--classes", "cat", "--threshold", "7"]) == 2
    output = capsys.readouterr()
    assert "threshold: expected 0 to 1, got 7" in output.err
    assert list(json.loads(output.out.splitlines()[-1])) == ["source", "error"]


def test_camera_command_with_a_live_stream(server, capsys):
    """The stream ends after ten frames. Frames that arrive while one is in flight are replaced and counted."""
    data = transport_stream([(48, 64)])
    with FakeCamera(lambda connection, n: connection.sendall(data)) as stream:
        arguments = ["--source", stream.address, "--url", server.grpc_url, "--model", MODEL, "--output"]
        assert camera.main([*arguments, "--classes", "red circle"]) == 0
        assert stream.visits == 1
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["frames"] >= 1
    assert (result["frames"] + result["dropped"], result["failed"]) == (10, 0)


def test_camera_asks_to_choose_a_model(server, tmp_path, capsys):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    assert (
        camera.main(["--source", str(tmp_path / "a.png"), "--classes", "cat", "--url", server.grpc_url, "--output"])
        == 2
    )
    assert "choose one: " in capsys.readouterr().err


def test_clients_outlive_their_server(repository, picture):
    """The same clients before, during and after an outage of their server. One event loop, since an asyncio client
    belongs to one."""
    brief = ("--exit-timeout-secs=3",)  # Triton waits that long for HTTP connections that are still open

    async def found(client):
        answer = client.detect(picture, CLASSES)
        return len(answer if isinstance(client, Client) else await answer)

    async def found_again(client):
        with contextlib.suppress(ServerUnavailable):  # gRPC reconnects after up to a second
            return await found(client)

    async def go():
        with EmbeddedServer(repository, resolutions=[252], arguments=brief) as first:
            ports = (first.http_port, first.grpc_port, first.metrics_port)
            clients = [
                kind(url_of(first, protocol), protocol=protocol, model=MODEL)
                for kind in (Client, AsyncClient)
                for protocol in PROTOCOLS
            ]
            assert [await found(client) for client in clients] == [2] * 4
        for client in clients:
            with pytest.raises(ServerUnavailable):
                await found(client)
        with EmbeddedServer(repository, *ports, resolutions=[252], arguments=brief):
            for client in clients:
                while (count := await found_again(client)) is None:
                    await asyncio.sleep(0.1)
                assert count == 2
                closed = client.close()
                if closed is not None:
                    await closed

    asyncio.run(go())
