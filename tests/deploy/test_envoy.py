"""`deploy/envoy.yaml` with the real Envoy before two real servers: the file as it is, with other addresses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from clients import Client, InvalidRequest, ServerUnavailable
from ensemble.server.embedded import EmbeddedServer
from ensemble.server.ports import choose_ports
from export.tiny.video.evaluate import held_out_video
from tests.ensemble.waiting import until

pytestmark = pytest.mark.server

FILE = Path(__file__).parents[2] / "deploy" / "envoy.yaml"
MODEL, VIDEO_MODEL = "sam3_r140", "sam3_video_r140"


@dataclass
class Gateway:
    """A running Envoy: its addresses, and what it thinks of the servers behind it."""

    grpc: str
    http: str
    admin: str

    def about(self, cluster: str) -> dict[str, dict[str, str]]:
        """By server's address: health flags and counters of one cluster."""
        with urllib.request.urlopen(f"http://{self.admin}/clusters?format=json", timeout=20) as page:
            clusters = {c["name"]: c.get("host_statuses", []) for c in json.load(page)["cluster_statuses"]}
        found = {}
        for host in clusters[cluster]:
            place = host["address"]["socket_address"]
            known = {entry["name"]: entry.get("value", "0") for entry in host["stats"]}
            unwell = {name for name, value in host["health_status"].items() if value is True}
            found[f"{place['address']}:{place['port_value']}"] = known | {"unwell": ",".join(sorted(unwell))}
        return found

    def healthy(self, cluster: str = "servers_grpc") -> set[str]:
        return {address for address, known in self.about(cluster).items() if not known["unwell"]}


def address(url: str) -> dict[str, Any]:
    host, _, port = url.rpartition(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}


def configured(servers: list[EmbeddedServer], ports: tuple[int, ...], model: str) -> dict[str, Any]:
    """The file for these servers, on these ports, with a quicker look at their health."""
    told = yaml.safe_load(FILE.read_text())
    static = told["static_resources"]
    for listener, port in zip([told["admin"], *static["listeners"]], ports, strict=True):
        listener["address"]["socket_address"]["port_value"] = port
    for cluster in static["clusters"]:
        grpc = cluster["name"].endswith("grpc")
        endpoints = []
        for server in servers:
            endpoint: dict[str, Any] = {"address": address(server.grpc_url if grpc else server.http_url)}
            if grpc:
                endpoint["health_check_config"] = {"port_value": server.http_port}
            endpoints.append({"endpoint": endpoint})
        cluster["load_assignment"] = {"cluster_name": cluster["name"], "endpoints": [{"lb_endpoints": endpoints}]}
        (check,) = cluster["health_checks"]
        check |= {"interval": "0.5s", "no_traffic_interval": "0.5s"}
        check["http_health_check"]["path"] = f"/v2/models/{model}/infer"
    return told


@contextmanager
def envoy(folder: Path, servers: list[EmbeddedServer], model: str = MODEL) -> Iterator[Gateway]:
    ports = choose_ports("127.0.0.1", (0, 0, 0))
    file = folder / "envoy.json"
    file.write_text(json.dumps(configured(servers, ports, model)))
    command = [str(Path(sys.executable).with_name("envoy")), "-c", str(file), "--disable-hot-restart", "-l", "warning"]
    with (folder / "envoy.log").open("w") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            admin, grpc, http = (f"127.0.0.1:{port}" for port in ports)
            gateway = Gateway(grpc, http, admin)
            until(lambda: answers(gateway))
            yield gateway
        finally:
            process.terminate()


def answers(gateway: Gateway) -> bool:
    try:
        return bool(gateway.about("servers_grpc"))
    except OSError:
        return False


@pytest.fixture(scope="module")
def second(video_repository):
    """A server that may be killed."""
    with EmbeddedServer(video_repository, video_memory_mb=30.0) as running:
        yield running


@pytest.fixture(scope="module")
def gateway(video_server, second, tmp_path_factory):
    with envoy(tmp_path_factory.mktemp("envoy"), [video_server, second]) as running:
        until(lambda: len(running.healthy()) == len(running.healthy("sessions_grpc")) == 2)
        yield running


@pytest.fixture(scope="module")
def film():
    return held_out_video(0, 10)


@pytest.fixture(scope="module")
def names(film):
    return tuple(dict.fromkeys(film.names))


def test_both_servers_get_frames_of_one_connection(gateway, film, names):
    before = gateway.about("servers_grpc")
    with Client(gateway.grpc, model=MODEL, timeout=120) as sam3, ThreadPoolExecutor(4) as pool:
        assert len(list(pool.map(lambda _: sam3.detect(film.frames[0], names), range(32)))) == 32
    after = gateway.about("servers_grpc")
    shares = [int(after[host]["rq_total"]) - int(before[host]["rq_total"]) for host in after]
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


def test_a_server_without_the_model_gets_nothing(video_server, tmp_path, film):
    with envoy(tmp_path, [video_server], "sam3_r1008") as lost:
        until(lambda: not lost.healthy())
        with (
            Client(lost.grpc, model=MODEL) as sam3,
            pytest.raises(ServerUnavailable, match="no healthy upstream"),
        ):
            sam3.detect(film.frames[0], ["red circle"])


def test_sessions_stay_with_their_server_and_outlive_it(gateway, second, film, names):
    """Six videos; then one of the servers is killed: its videos go on at the other one, with the same ids."""
    sent, failed, restarts = Counter(), Counter(), Counter()
    seen: dict[int, list[set[int]]] = {}
    halfway = threading.Barrier(7, timeout=300)

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
        held = {host: int(known["rq_total"]) for host, known in gateway.about("sessions_grpc").items()}
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
