"""Cameras with `track: masks` and the real server: ids, the account, and servers that go away."""

import asyncio
import contextlib
import json
from dataclasses import replace

import pytest

from clients import camera as command
from clients.errors import InvalidRequest
from clients.fleet.camera import Camera
from clients.fleet.config import CameraConfig, FleetConfig
from clients.fleet.endpoint import FRAME
from clients.fleet.fleet import open_pool, run_fleet
from clients.fleet.zones import Zone
from clients.video.encode import VideoWriter
from clients.video.motion import Motion
from clients.video.sources import open_source
from tests.clients.grpc_server import Relay

pytestmark = pytest.mark.server

NAMES = ("purple circle", "blue circle")
EVERYWHERE = Zone("all", ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0), (0.0, 1.0)))


@pytest.fixture(scope="module")
def film(film_of):
    return film_of(12)


def config(film, **options):
    base = CameraConfig("yard", str(film), NAMES, (0.5, 0.5), in_flight=1, masks="bits", track="masks")
    return replace(base, **options)


async def run(camera, servers, act=lambda answer: None):
    """The camera's answers and its account; `act` is called with each answer."""
    answers, pool = [], open_pool(FleetConfig((camera.config,), servers, timeout_s=60))

    async def handle(_, answer):
        answers.append(answer)
        act(answer)

    summary = await asyncio.wait_for(run_fleet([camera], pool, handle, asyncio.Event()), 300)
    (each,) = summary["each"]
    gone = sum(each["dropped"].values()) + sum(each["failed"].values())
    assert each["read"] == each["answered"] + each["still"] + gone
    assert [a.frame.index for a in answers] == list(range(len(answers)))
    return answers, each


def ids(answer):
    return {*answer.found.track_ids.tolist(), *answer.found.hidden_ids.tolist()}


def test_one_source(video_server, film, tmp_path, capsys):
    lines, drawn, coco = (tmp_path / name for name in ("found.jsonl", "found.mp4", "found.json"))
    options = ("--track", "masks", "--detect-every", "2", "--max-objects", "6", "--limit", "6")
    where = ("--url", video_server.grpc_url, "--output", str(lines), str(drawn), str(coco))
    assert command.main(["--source", str(film), "--classes", *NAMES, *options, *where]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["frames"], result["failed"], result["model"]) == (6, 0, "sam3_video_r140")
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    first, last = ({d["track"] for d in r["detections"]} | set(r["hidden"]) for r in (records[0], records[-1]))
    assert len(first) >= 2
    assert first <= last
    assert {d["state"] for d in records[0]["detections"]} == {"new"}
    assert all(d["mask"] and 0 <= d["track_score"] <= 1 for r in records for d in r["detections"])
    assert {c["image_id"] for c in json.loads(coco.read_text())} == set(range(6))
    with open_source(drawn) as source:
        assert len(list(source)) == 6


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_fleet_with_zones(video_server, film, tmp_path, capsys, protocol):
    """The ids of the server's tracker make the events, and ByteTrack is not needed."""
    zone = {"name": "all", "polygon": EVERYWHERE.polygon}
    cameras = [
        {"name": f"c{i}", "source": str(film), "classes": NAMES, "track": "masks", "zones": [zone], "max_objects": 6}
        for i in range(2)
    ]
    url = video_server.grpc_url if protocol == "grpc" else video_server.http_url
    file = tmp_path / "cameras.yaml"
    about = {"servers": [url], "protocol": protocol, "defaults": {"output": "found.jsonl"}, "cameras": cameras}
    file.write_text(json.dumps(about))
    assert command.main(["--config", str(file)]) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (result["read"], result["answered"], result["unhandled"]) == (24, 24, 0)
    records = [json.loads(line) for line in (tmp_path / "found.jsonl").read_text().splitlines()]
    for name in ("c0", "c1"):
        own = [r for r in records if r["camera"] == name]
        seen = {d["track"] for r in own for d in r["detections"]}
        assert {e["track"] for r in own for e in r.get("events", [])} == seen
        assert [r["outcome"] for r in own] == ["answered"] * 12


@pytest.mark.parametrize("servers", [1, 2], ids=["it comes back", "another takes over"])
async def test_a_server_that_goes_away_costs_a_frame_and_no_id(video_server, film, servers):
    """All addresses are of one server, so what goes away is the way to it: with a frame under way."""
    with Relay(video_server.grpc_url) as first, Relay(video_server.grpc_url) as other:
        camera = Camera(config(film))

        def act(answer):
            if answer.frame.index == 4:
                first.silent.set()  # whatever is under way then is lost
                asyncio.get_running_loop().call_later(0.5, cut)

        def cut():
            first.silent.clear()
            if servers == 2:
                first.close()
            first.cut()

        answers, each = await run(camera, (first.address, other.address)[:servers], act)
    assert [a.outcome for a in answers] == ["answered"] * 5 + ["unavailable"] + ["answered"] * 6
    before, after = (ids(answers[i]) for i in (4, 6))
    assert len(before) >= 2
    assert set(answers[4].found.track_ids.tolist()) <= after
    assert not (after - before) & set(range(1, max(before) + 1)), "no number is given twice"
    assert [a.found.frame_index for a in answers if a.found] == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5]
    assert each["restarts"] == 1
    assert camera._following.home.address == (first.address, other.address)[servers - 1]


async def test_frames_in_which_nothing_moves_are_left_out(video_server, film_of, tmp_path):
    """Six frames that move, thirty that do not: the detector looks once more, session and ids go on."""
    with open_source(film_of(6)) as source:
        moving = [frame.rgb for frame in source]
    path = tmp_path / "stops.mp4"
    with VideoWriter(path, 10.0) as writer:
        for rgb in [*moving, *[moving[-1]] * 30, moving[0]]:
            writer.write(rgb)
    answers, each = await run(Camera(config(path, motion=Motion(), detect_every=4)), (video_server.grpc_url,))
    sent = [a.frame.index for a in answers if not a.unchanged]
    assert sent[:9] == list(range(9)), (
        "three more, so that a detector that looks at every fourth frame sees what stopped"
    )
    assert sent[-1] == 36
    assert len(sent) <= 14
    assert each["still"] == 37 - len(sent)
    assert "restarts" not in each
    assert answers[-1].found.frame_index == len(sent) - 1, "in the same session"
    before, between = answers[sent[-2]], answers[35]
    assert between.tracks == before.tracks
    assert set(between.found.track_states.tolist()) <= {1}, "none is new, and the detector confirms none"


async def test_a_camera_stays_with_the_server_that_knows_its_objects(video_server, film):
    """Two addresses, three cameras: each asks one of them all the time."""
    with Relay(video_server.grpc_url) as other:
        cameras = [Camera(config(film, name=f"c{i}", max_objects=4)) for i in range(3)]
        pool = open_pool(FleetConfig((), (video_server.grpc_url, other.address)))
        for i, camera in enumerate(cameras):
            camera._following.home = pool.endpoints[i % 2]  # where its first frame goes
        seen = {c.config.name: [] for c in cameras}
        await run_fleet(cameras, pool, lambda c, a: seen[c.config.name].append(a.found.frame_index), asyncio.Event())
    assert all(frames == list(range(12)) for frames in seen.values())
    assert [c._following.home for c in cameras] == [pool.endpoints[i] for i in (0, 1, 0)]


async def test_who_waits_for_a_busy_home_holds_up_nobody():
    pool = open_pool(FleetConfig((), ("localhost:1", "localhost:2"), in_flight=1))
    home, other = pool.endpoints
    assert await pool.acquire(home) is home
    waiting = asyncio.create_task(pool.acquire(home))
    await asyncio.sleep(0)
    assert await pool.acquire() is other
    pool.release(other)
    await asyncio.sleep(0)
    assert not waiting.done()
    home.away = True
    pool.release(home)
    assert await waiting is other


async def test_the_late_answer_of_a_server_that_was_given_up_changes_nothing(video_server, film):
    """The frame under way is given up though its answer comes; the session goes on in another one, with its ids."""
    camera, given_up = Camera(config(film)), []

    async def give_up(endpoint, pool):
        while not endpoint.in_flight:
            await asyncio.sleep(0)
        given_up.extend(endpoint.calls)
        pool.lost(endpoint, "hangs, says the test")

    async def handle(_, answer):
        answers.append(answer)
        if answer.frame.index == 4:
            tasks.append(asyncio.create_task(give_up(pool.endpoints[0], pool)))

    answers, tasks, pool = [], [], open_pool(FleetConfig((), (video_server.grpc_url,)))
    summary = await asyncio.wait_for(run_fleet([camera], pool, handle, asyncio.Event()), 300)
    late = [call.result() for call in given_up]
    outcomes = [a.outcome for a in answers]
    lost = outcomes.index("unavailable")
    assert outcomes.count("answered") == 11
    assert [tracks.frame_index for tracks in late] == [lost]
    assert answers[lost + 1].found.frame_index == 0
    assert set(answers[lost - 1].tracks) <= ids(answers[lost + 1])
    assert summary["each"][0]["restarts"] == 1


@pytest.mark.parametrize("broken", [False, True], ids=["", "as the session begins anew"])
async def test_classes_may_change_while_it_runs(video_server, film, broken):
    camera = Camera(config(film))

    def act(answer):
        if answer.frame.index == 4:
            camera._following._broken = broken
            camera.config = replace(camera.config, classes=NAMES[1:], thresholds=(0.5,))

    answers, _ = await run(camera, (video_server.grpc_url,), act)
    kept = {t for t, label in zip(answers[4].tracks, answers[4].found.labels, strict=True) if label == NAMES[1]}
    assert kept
    assert kept <= ids(answers[-1])
    assert set(answers[-1].found.labels) == {NAMES[1]}
    assert answers[-1].found.restarts == broken


WRONG = {
    "no such model": ({"model": "sam3_video_r672"}, "does not serve 'sam3_video_r672'; it serves sam3_video_r140"),
    "too many objects": ({"max_objects": 256}, "has room for"),
}


@pytest.mark.parametrize("case", WRONG)
async def test_what_cannot_be_is_said(video_server, film, case):
    options, says = WRONG[case]
    answers, _ = await run(Camera(config(film, **options), limit=1), (video_server.grpc_url,))
    assert says in answers[0].error


def test_a_server_without_videos(server, film, capsys):
    where = ("--url", server.grpc_url, "--output")
    assert command.main(["--source", str(film), "--classes", *NAMES, "--track", "masks", *where]) == 2
    assert "serves no videos; export the repository with sam3-export --video" in capsys.readouterr().err


async def test_a_full_server_of_videos_that_hung_counts_as_there(video_server):
    """What is tried then is a session, of one object; that there is no room for it is an answer."""
    pool = open_pool(FleetConfig((), (video_server.grpc_url,)))
    (endpoint,) = pool.endpoints
    client = endpoint.client("sam3_video_r140")
    sessions = []
    for size in (64, 32, 16, 8, 4, 2, 1):
        sessions.append(client.session(["dog"], model="sam3_video_r140", max_objects=size))
        with contextlib.suppress(InvalidRequest):
            await sessions[-1].frame(FRAME)
    with pytest.raises(InvalidRequest, match="has room for 0 objects"):
        await client.session(["dog"], model="sam3_video_r140", max_objects=1).frame(FRAME)
    assert await endpoint.answers()
    for session in sessions:
        await session.close()
    assert await endpoint.answers()
    await pool.close()
