"""Sessions over the wire: the real server, and the clients of this project."""

import asyncio
import contextlib
import os
import signal
import threading
import time
import urllib.request

import numpy as np
import pytest

from clients import AsyncClient, Client, InvalidRequest, ModelNotFound, ServerUnavailable
from ensemble.server.embedded import EmbeddedServer
from tests.ensemble.real_server import infer
from tests.ensemble.video.conftest import names_of

MODEL = "sam3_video_r140"


@pytest.fixture(params=["grpc", "http"])
def client(request, video_server):
    url = video_server.grpc_url if request.param == "grpc" else video_server.http_url
    with Client(url, protocol=request.param) as client:
        yield client


def metric(server, name):
    """The sum of a metric's series."""
    with urllib.request.urlopen(f"http://{server.metrics_url}/metrics") as page:
        lines = page.read().decode().splitlines()
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name))


def test_the_server_says_which_models_are_for_videos(client):
    assert (client.models(), client.video_models()) == (("sam3_r140",), (MODEL,))


def test_objects_are_followed_from_frame_to_frame(client, film):
    video = film(3)
    with client.session(names_of(video), detect_every=2) as session:
        answers = [session.frame(frame) for frame in video.frames[:6]]
    first = answers[0].track_ids.tolist()
    assert [answer.frame_index for answer in answers] == list(range(6))
    for answer in answers:
        assert set(first) <= {*answer.track_ids.tolist(), *answer.hidden_ids.tolist()}
        assert len(answer.mask_bits) == len(answer) == len(answer.track_scores)
        assert answer.stage_ms["track"] >= 0
    assert answers[-1].session_bytes > 0


def test_several_sessions_at_once_and_with_asyncio(video_server, film):
    async def watch(client, number):
        video, seen = film(number), []
        async with client.session(names_of(video), mask_format="none") as session:
            for frame in video.frames[:4]:
                seen.append(await session.frame(frame))
        return seen

    async def all_of_them():
        async with AsyncClient(video_server.grpc_url) as client:
            return await asyncio.gather(*(watch(client, number) for number in (0, 3, 4, 3)))

    answers = asyncio.run(all_of_them())
    assert [answer.track_ids.tolist() for answer in answers[1]] == [a.track_ids.tolist() for a in answers[3]]
    assert all(not answer.mask_bits.size for seen in answers for answer in seen)


def test_slots_come_back_when_a_session_is_closed(client, video_server, film):
    video = film(3)
    before = metric(video_server, 'sam3_track_slots{model="sam3_video_r140",state="used"}')
    session = client.session(names_of(video), max_objects=100)
    session.frame(video.frames[0])
    with pytest.raises(InvalidRequest, match=r"has room for \d+ objects, expected 100; end a session"):
        client.session(names_of(video), max_objects=100).frame(video.frames[0])
    session.close()
    session.close()
    with client.session(names_of(video), max_objects=100) as again:
        again.frame(video.frames[0])
    assert metric(video_server, 'sam3_track_slots{model="sam3_video_r140",state="used"}') <= before + 100


def test_what_the_server_has_lost_begins_anew_with_its_ids(client, film):
    video = film(3)
    with client.session(names_of(video)) as session:
        before = [session.frame(frame) for frame in video.frames[:3]][-1]
        session._talk.number = 987_654_321  # of no session
        after = session.frame(video.frames[3])
    assert set(before.track_ids.tolist()) <= set(after.track_ids.tolist())
    assert (after.restarts, after.frame_index) == (1, 0)


def test_a_picture_model_has_no_sessions(video_server, film):
    with Client(video_server.grpc_url) as client, pytest.raises(InvalidRequest, match="got 'sam3_r140'; pictures"):
        client.session(names_of(film(3)), model="sam3_r140")


def test_pictures_are_answered_beside(video_server, film):
    with Client(video_server.grpc_url) as client:
        assert len(client.detect(film(3).frames[0], names_of(film(3)))) >= 2


@pytest.mark.parametrize("protocol", ["grpc", "http"])
def test_a_frame_without_a_session_is_told_what_it_lacks(video_server, film, protocol):
    request = {"frame": film(3).frames[:1], "classes": np.array([[b"red circle"]], object)}
    with pytest.raises(Exception, match=r"CORRID|sequence|correlation"):
        infer(video_server, protocol, request, MODEL)


def test_nonsense_of_one_session_does_not_reach_the_others(video_server, film):
    video, wrong = film(3), []
    names = names_of(video)

    def nonsense():
        with Client(video_server.grpc_url) as client:
            for bad in ({"detect_every": 0}, {"max_objects": 100_000}, {"threshold": 7.0}, {"mask_format": "png"}):
                with pytest.raises(InvalidRequest) as told:
                    client.session(names, **bad).frame(video.frames[0])
                wrong.append(str(told.value))
            with pytest.raises(InvalidRequest) as told:
                client.session(names).frame(b"no picture")
            wrong.append(str(told.value))

    other = threading.Thread(target=nonsense)
    other.start()
    with Client(video_server.grpc_url) as client, client.session(names) as session:
        answers = [session.frame(frame) for frame in video.frames]
    other.join()
    assert [answer.frame_index for answer in answers] == list(range(10))
    assert [answer.restarts for answer in answers] == [0] * 10
    assert len(wrong) == 5
    assert "detect_every: expected 1 to 1000, got 0" in wrong[0]


def test_a_server_that_is_killed_gives_its_sessions_to_the_next_one(video_repository, film):
    video = film(3)
    with EmbeddedServer(video_repository, video_memory_mb=10.0) as first:
        ports = first.http_port, first.grpc_port, first.metrics_port
        client = Client(first.grpc_url, timeout=60)
        session = client.session(names_of(video))
        before = [session.frame(frame) for frame in video.frames[:4]][-1]
        os.kill(first.pid, signal.SIGKILL)
    with pytest.raises(ServerUnavailable):
        session.frame(video.frames[4])
    with EmbeddedServer(video_repository, *ports, video_memory_mb=10.0):
        after = answered(session, video.frames[5])
        later = session.frame(video.frames[6])
        session.close()
        client.close()
    kept = set(before.track_ids.tolist()) & set(after.track_ids.tolist())
    assert len(kept) >= 0.9 * len(before.track_ids) > 0
    assert (after.restarts, after.frame_index, later.frame_index) == (1, 0, 1)


def answered(session, frame):
    """The answer to a frame, once the connection notices that there is a server again."""
    for _ in range(100):
        with contextlib.suppress(ServerUnavailable):
            return session.frame(frame)
        time.sleep(0.2)
    raise AssertionError("expected an answer from the server that was started")


def test_a_repository_without_a_tracker_says_so(server):
    with Client(server.grpc_url) as client, pytest.raises(ModelNotFound, match=r"serves no videos; export .* --video"):
        client.session(["red circle"]).frame(np.zeros((8, 8, 3), np.uint8))


def test_frames_may_change_their_size(client, film):
    video = film(3)
    small = np.ascontiguousarray(video.frames[1][::2, ::2])
    with client.session(names_of(video)) as session:
        before, after = session.frame(video.frames[0]), session.frame(small)
    assert after.frame_size == small.shape[:2]
    assert set(before.track_ids.tolist()) <= {*after.track_ids.tolist(), *after.hidden_ids.tolist()}


def test_the_same_frame_twice_is_the_next_frame(client, film):
    video = film(3)
    with client.session(names_of(video)) as session:
        answers = [session.frame(video.frames[0]) for _ in range(2)]
    assert [answer.frame_index for answer in answers] == [0, 1]
    assert sorted(answers[0].track_ids) == sorted(answers[1].track_ids)


def test_a_session_that_starts_twice_begins_anew(client, film):
    video = film(3)
    with client.session(names_of(video)) as session:
        session.frame(video.frames[0])
        request, sequence = session._talk.request(video.frames[1])
        again = client.infer_in_sequence(MODEL, request, **{**sequence, "sequence_start": True})
        assert again.as_numpy("frame_index").item() == 0
        assert session.frame(video.frames[2]).frame_index == 1
