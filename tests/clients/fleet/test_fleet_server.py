"""The fleet with the real server: the command with its outputs, Ctrl-C, RTSP cameras, and a server that is killed."""

import asyncio
import collections
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pytest
from PIL import Image, ImageDraw

from clients.connection import AsyncClient
from clients.fleet.camera import Camera
from clients.fleet.config import CameraConfig, FleetConfig
from clients.fleet.fleet import open_pool, run_fleet
from clients.fleet.zoom import Zoom, look_closer
from clients.video.encode import VideoWriter
from ensemble.server.embedded import EmbeddedServer
from ensemble.spec import Variant
from tests.clients.grpc_server import Relay

pytestmark = pytest.mark.server

MODELS = [Variant(side).front_name for side in (252, 140)]


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """Twelve frames at 10 fps: a red disc that moves over grey."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    with VideoWriter(path, 10) as writer:
        for i in range(12):
            image = Image.new("RGB", (320, 240), (90, 95, 90))
            ImageDraw.Draw(image).ellipse((20 + 10 * i, 60, 120 + 10 * i, 160), fill=(220, 40, 40))
            writer.write(np.asarray(image))
    return path


def command(tmp_path, server, film, **options):
    """A configuration of two cameras at two resolutions, and the command that runs it."""
    cameras = [
        {"name": f"camera {i}", "source": str(film), "classes": ["red circle", "blue square"], "model": MODELS[i]}
        | options
        for i in range(2)
    ]
    (tmp_path / "cameras.yaml").write_text(  # JSON is YAML
        json.dumps({"servers": [server.grpc_url], "defaults": {"output": "{name}.jsonl"}, "cameras": cameras})
    )
    return [sys.executable, "-m", "clients.camera", "--config", str(tmp_path / "cameras.yaml")]


def lines_of(path):
    text = path.read_text()
    assert text.endswith("\n")
    return [json.loads(line) for line in text.splitlines()]


def test_the_command(server, film, tmp_path):
    done = subprocess.run(command(tmp_path, server, film), capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert (result["read"], result["answered"], result["dropped"], result["failed"]) == (24, 24, 0, 0)
    for i, mask_size in ((0, 72), (1, 40)):
        lines = lines_of(tmp_path / f"camera-{i}.jsonl")
        assert [line["frame"] for line in lines] == list(range(12))
        assert {line["mask_size"] for line in lines} == {mask_size}  # each camera has its own resolution
    assert {d["label"] for line in lines_of(tmp_path / "camera-0.jsonl") for d in line["detections"]} == {"red circle"}


def test_nothing_is_lost_on_ctrl_c(server, film, tmp_path):
    arguments = command(tmp_path, server, film, loop=True, realtime=True, motion=True)
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        files = [tmp_path / f"camera-{i}.jsonl" for i in range(2)]
        deadline = time.monotonic() + 300
        while not all(f.exists() and f.stat().st_size for f in files):
            assert time.monotonic() < deadline, "no line was written"
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=300)
    result = json.loads(out.splitlines()[-1])
    for each, path in zip(result["each"], files, strict=True):
        outcomes = collections.Counter(line["outcome"] for line in lines_of(path))
        assert outcomes["answered"] == each["answered"] > 0
        assert outcomes["still"] == each["still"]
        gone = sum(each["dropped"].values()) + sum(each["failed"].values())
        assert each["read"] == each["answered"] + each["still"] + gone


async def test_rtsp_cameras(server, rtsp):
    """Two cameras of a real RTSP server, of different sizes: frames are answered, and every frame is counted."""
    cameras = [
        Camera(CameraConfig(f"camera {i}", address, ("white circle",), (0.5,), model=MODELS[1], fps=5))
        for i, address in enumerate(rtsp)
    ]
    sizes, stop = collections.defaultdict(list), asyncio.Event()

    def keep(camera, answer):
        if answer.found is not None:
            sizes[camera.config.name].append(answer.found.frame_size)
        if min(len(sizes[c.config.name]) for c in cameras) >= 5:
            stop.set()

    pool = open_pool(FleetConfig(tuple(c.config for c in cameras), (server.grpc_url,)))
    summary = await asyncio.wait_for(run_fleet(cameras, pool, keep, stop), 300)
    assert {name: set(seen) for name, seen in sizes.items()} == {"camera 0": {(240, 320)}, "camera 1": {(240, 384)}}
    assert summary["read"] == summary["answered"] + summary["dropped"] + summary["failed"]
    assert summary["failed"] == 0


async def test_zoom_finds_small_objects(server):
    """A small disc in a wide frame: with two passes its box is accurate to a few pixels."""
    image = Image.new("RGB", (1280, 720), (90, 95, 90))
    ImageDraw.Draw(image).ellipse((900, 300, 940, 340), fill=(220, 40, 40))
    picture = np.asarray(image)
    zoom = Zoom(MODELS[0], suspect=0.02, least=0.2)
    async with (
        AsyncClient(server.grpc_url, model=MODELS[1]) as low,
        AsyncClient(server.grpc_url, model=MODELS[0]) as high,
    ):
        suspects = await low.detect(picture, ["red circle"], threshold=zoom.suspect, mask_format="bits")
        both = await look_closer(
            picture, suspects, zoom, partial(high.detect, classes=["red circle"], threshold=0.5, mask_format="bits")
        )
    best = both.above(0.5)
    assert best.labels == ("red circle",)
    assert best.boxes_in_pixels[0] == pytest.approx([900, 300, 940, 340], abs=6)
    assert both.model == f"{MODELS[1]}+{MODELS[0]}"
    assert best.masks_at(720, 1280)[0, 320, 920]


@pytest.mark.parametrize("protocol", ["grpc", "http"])
async def test_a_server_that_goes_silent_loses_its_cameras_to_the_other(server, film, protocol):
    """Both addresses are of one server; the relay before one of them goes silent and keeps its connections. No request
    would time out within this test."""
    configs = tuple(
        CameraConfig(f"camera {i}", str(film), ("red circle",), (0.5,), model=MODELS[1], realtime=True, loop=True)
        for i in range(2)
    )
    stop, answers, after = asyncio.Event(), collections.Counter(), collections.Counter()
    url = server.grpc_url if protocol == "grpc" else server.http_url
    with Relay(url) as relay:
        pool = open_pool(FleetConfig(configs, (url, relay.address), protocol, timeout_s=3600))

        def keep(camera, answer):
            answers[camera.config.name] += answer.outcome == "answered"
            if pool.endpoints[1].heard and all(answers[c.name] >= 3 for c in configs):
                relay.silent.set()
            after[camera.config.name] += answer.outcome == "answered" and pool.endpoints[1].away
            if all(after[c.name] >= 5 for c in configs):
                stop.set()

        cameras = [Camera(config) for config in configs]
        summary = await asyncio.wait_for(run_fleet(cameras, pool, keep, stop), 120)
    assert pool.endpoints[1].outages == 1
    assert set(summary["failed_by"]) <= {"unavailable"}
    for each in summary["each"]:
        assert each["read"] == each["answered"] + sum(each["dropped"].values()) + sum(each["failed"].values())


async def test_cameras_continue_after_the_server_was_killed(repository, film):
    configs = tuple(
        CameraConfig(
            f"camera {i}", str(film), ("red circle",), (0.5,), model=MODELS[1], fps=5, realtime=True, loop=True
        )
        for i in range(2)
    )
    answers: dict[str, list] = {config.name: [] for config in configs}
    stop = asyncio.Event()

    async def until(condition):
        for _ in range(3000):
            if condition():
                return
            await asyncio.sleep(0.1)
        pytest.fail(f"never met; answers: { {n: len(a) for n, a in answers.items()} }")

    def answered(count):
        return all(sum(a.outcome == "answered" for a in each) >= count for each in answers.values())

    with EmbeddedServer(repository, resolutions=[140]) as first:
        cameras = [Camera(config) for config in configs]
        pool = open_pool(FleetConfig(configs, (first.grpc_url,), timeout_s=10))
        fleet = asyncio.create_task(
            run_fleet(cameras, pool, lambda camera, answer: answers[camera.config.name].append(answer), stop)
        )
        await until(lambda: answered(5))
        before = {name: sum(a.outcome == "answered" for a in each) for name, each in answers.items()}
        os.killpg(first.pid, signal.SIGKILL)
        # an outage of at least five frames of each camera, of which one is in flight or ready
        frames = {camera: camera.reader.replaced for camera in cameras}
        await until(lambda: all(camera.reader.replaced >= n + 5 for camera, n in frames.items()))
        first.stop()
        await asyncio.to_thread(first.start)
        await until(lambda: answered(max(before.values()) + 6))
        stop.set()
        summary = await fleet
    for each, camera in zip(summary["each"], cameras, strict=True):
        assert each["read"] == each["answered"] + sum(each["dropped"].values()) + sum(each["failed"].values())
        assert each["dropped"]["no_server"] >= 5  # frames captured during the outage
        indices = [a.frame.index for a in answers[camera.config.name]]
        assert indices == sorted(set(indices))  # no frame twice
    assert summary["failed_by"]["unavailable"] >= 1  # the frame that finds out; other cameras need not send one
    assert pool.endpoints[0].outages >= 1
