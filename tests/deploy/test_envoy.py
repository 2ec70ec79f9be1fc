"""`deploy/envoy.yaml` with the real Envoy before two real servers: the file as it is, with other addresses."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from clients import Client, InvalidRequest, ServerUnavailable
from ensemble.server.drain import drain
from ensemble.server.embedded import EmbeddedServer
from ensemble.server.ports import choose_ports
from ensemble.server.requirements import ServerError
from export.tiny.video.evaluate import held_out_video
from perf.bench.gateway import FILE, PROGRAM, Gateway, envoy
from tests.ensemble.waiting import until

pytestmark = pytest.mark.server

MODEL, VIDEO_MODEL = "sam3_r140", "sam3_video_r140"
KINDS, PROTOCOLS = ("servers", "sessions"), ("grpc", "http")


def quickly(folder: Path, servers: list[EmbeddedServer], model: str = MODEL) -> AbstractContextManager[Gateway]:
    """Envoy with a quicker look at the servers' health."""
    return envoy(folder, servers, model, {"interval": "0.5s", "no_traffic_interval": "0.5s"})


def all_healthy(gateway: Gateway) -> bool:
    return all(len(gateway.healthy(f"{kind}_{protocol}")) == 2 for kind in KINDS for protocol in PROTOCOLS)


@pytest.fixture(scope="module")
def second(video_repository):
    """A server that may be killed."""
    with EmbeddedServer(video_repository, video_memory_mb=30.0) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(video_server, second, tmp_path_factory):
    with quickly(tmp_path_factory.mktemp("envoy"), [video_server, second]) as running:
        until(lambda: all_healthy(running))
        yield running


@pytest.fixture(scope="module")
def film():
    return held_out_video(0, 10)


@pytest.fixture(scope="module")
def names(film):
    return tuple(dict.fromkeys(film.names))


def test_both_servers_get_frames_of_one_connection(gateway, film, names):
    before = gateway.counted("servers_grpc", "rq_total")
    with Client(gateway.grpc, model=MODEL, timeout=120) as sam3, ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(lambda _: sam3.detect(film.frames[0], names), range(32)))) == 32
    after = gateway.counted("servers_grpc", "rq_total")
    shares = [after[host] - before[host] for host in after]
    assert sum(shares) == 32
    assert min(shares) >= 8


def test_http_answers_the_same(gateway, film, names):
    with Client(gateway.http, protocol="http", timeout=120) as http, Client(gateway.grpc, timeout=120) as grpc:
        assert http.models() == grpc.models() == (MODEL,)
        ours, theirs = (client.detect(film.frames[0], names, mask_format="bits") for client in (http, grpc))
        assert (ours.boxes == theirs.boxes).all()
        assert (ours.mask_bits == theirs.mask_bits).all()


def test_a_wrong_request_is_its_callers_alone(gateway, film):
    with Client(gateway.grpc, model=MODEL, timeout=120) as sam3:
        for _ in range(6):
            with pytest.raises(InvalidRequest, match="threshold: expected 0 to 1, got 7"):
                sam3.detect(film.frames[0], ["red circle"], threshold=7)
    assert len(gateway.healthy()) == 2


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_a_server_without_the_model_gets_nothing(video_server, tmp_path, film, protocol):
    with quickly(tmp_path, [video_server], "sam3_r1008") as lost:
        until(lambda: not lost.healthy(f"servers_{protocol}"))
        assert "failed_active_health_check" in lost.about("servers_grpc")[video_server.grpc_url]["unwell"]
        with (
            Client(getattr(lost, protocol), protocol=protocol, model=MODEL) as sam3,
            pytest.raises(ServerUnavailable, match=r"none of the servers behind Envoy is healthy.*/clusters"),
        ):
            sam3.detect(film.frames[0], ["red circle"])


def test_where_no_envoy_listens_the_client_says_so(film):
    (port,) = choose_ports("127.0.0.1", (0,))
    with (
        Client(f"127.0.0.1:{port}", model=MODEL) as sam3,
        pytest.raises(ServerUnavailable, match=f"grpc://127.0.0.1:{port}"),
    ):
        sam3.detect(film.frames[0], ["red circle"])


def test_the_file_is_valid_as_it_is():
    assert subprocess.run([PROGRAM, "--mode", "validate", "-c", FILE], check=False).returncode == 0


def test_envoy_that_cannot_start_says_why(video_server, tmp_path):
    with (
        pytest.raises(ServerError, match=r"no\s+such\s+field:\s+'intervall'"),
        envoy(tmp_path, [video_server], MODEL, {"intervall": "1s"}),
    ):
        pass


def test_a_drained_server_loses_nothing(gateway, second, film, names):
    """It is ended in order while a video is with it: the video goes on elsewhere, in the same frame and with the same
    ids, and pictures are answered all the time."""
    with Client(gateway.grpc, timeout=120) as sam3:
        while True:
            session, before = sam3.session(names, model=VIDEO_MODEL), gateway.counted("sessions_grpc", "rq_total")
            known = session.frame(film.frames[0])
            if gateway.counted("sessions_grpc", "rq_total")[second.grpc_url] > before[second.grpc_url]:
                break
            session.close()
        pictures = Client(gateway.grpc, model=MODEL, timeout=120)
        with ThreadPoolExecutor(4) as pool, pictures:
            answers = [pool.submit(pictures.detect, film.frames[0], names) for _ in range(16)]
            assert drain(second.ending, second.health)
            try:
                tracks = session.frame(film.frames[1])
                for answer in answers:
                    answer.result()
                until(lambda: second.grpc_url not in gateway.healthy())
            finally:
                second.ending._mark.unlink()  # so that it need not be started again
        session.close()
    assert tracks.restarts == 1
    assert len(known)
    assert {*known.track_ids.tolist()} <= {*tracks.track_ids.tolist(), *tracks.hidden_ids.tolist()}
    until(lambda: all_healthy(gateway))


def test_a_frozen_server_holds_nobody_up(gateway, second, film, names):
    """Frames that it holds fail, long before their deadline, and later ones go to the other server, also over HTTP."""
    before = gateway.counted("servers_grpc", "rq_total")[second.grpc_url]

    def ask(_: int) -> bool:
        with Client(gateway.grpc, model=MODEL, timeout=120) as sam3:
            try:
                sam3.detect(film.frames[0], names)
            except ServerUnavailable:
                return False
        return True

    os.kill(second.pid, signal.SIGSTOP)
    try:
        with ThreadPoolExecutor(8) as pool:
            answered = list(pool.map(ask, range(16)))
        held = gateway.counted("servers_grpc", "rq_total")[second.grpc_url] - before
        assert 0 < answered.count(False) <= held
        until(lambda: second.grpc_url not in gateway.healthy())
        until(lambda: second.http_url not in gateway.healthy("servers_http"))
        assert all(map(ask, range(4)))
        with Client(gateway.http, protocol="http", model=MODEL, timeout=120) as http:
            for _ in range(4):
                http.detect(film.frames[0], names)
    finally:
        os.kill(second.pid, signal.SIGCONT)
    until(lambda: all_healthy(gateway))


def test_sessions_stay_with_their_server_and_outlive_it(gateway, second, film, names):
    """Six videos; then one of the servers is killed: its videos go on at the other one, with the same ids."""
    sent, failed, restarts = Counter(), Counter(), Counter()
    seen: dict[int, list[set[int]]] = {}
    halfway = threading.Barrier(7, timeout=300)
    before = gateway.counted("sessions_grpc", "rq_total")

    def play(number: int) -> None:
        with Client(gateway.grpc, timeout=120) as sam3:
            session = sam3.session(names, model=VIDEO_MODEL, max_objects=8)
            for index in range(8):
                if index == 4:
                    halfway.wait()  # all have come so far
                    halfway.wait()  # one server is gone
                while True:
                    sent[number] += 1
                    try:
                        tracks = session.frame(film.frames[index])
                        break
                    except ServerUnavailable:
                        failed[number] += 1
                seen.setdefault(number, []).append({*tracks.track_ids.tolist(), *tracks.hidden_ids.tolist()})
            restarts[number] = tracks.restarts
            session.close()

    with ThreadPoolExecutor(6) as pool:
        running = [pool.submit(play, number) for number in range(6)]
        halfway.wait()
        held = {host: now - before[host] for host, now in gateway.counted("sessions_grpc", "rq_total").items()}
        os.kill(second.pid, signal.SIGKILL)
        halfway.wait()
        for each in running:
            each.result()
    assert sum(held.values()) == 6 * 4, "nobody began anew before: every frame found its session"
    moved = held[second.grpc_url] // 4
    assert sum(restarts.values()) == moved
    assert all(len(ids) == 8 for ids in seen.values()), "every frame was answered in the end"
    assert all(ids[3] and ids[3] <= ids[4] for ids in seen.values()), "what was followed keeps its ids"
    assert sum(sent.values()) == 6 * 8 + sum(failed.values())
    until(lambda: second.grpc_url not in gateway.healthy())
    with Client(gateway.grpc, model=MODEL, timeout=120) as sam3:
        for _ in range(4):
            sam3.detect(film.frames[0], names)
