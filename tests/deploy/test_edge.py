"""`deploy/edge.yaml` with the real Envoy before the real server: who is let in, and to what."""

from __future__ import annotations

import json

import grpc
import pytest
from PIL import Image
from tritonclient.grpc import service_pb2

from clients import AccessDenied, Client, ModelNotFound, ServerUnavailable, camera
from tests.deploy.edge import FRAME, MODEL, secrets
from tests.ensemble.waiting import until

pytestmark = pytest.mark.server

VIDEO_MODEL = "sam3_video_r140"
SERVICE = "inference.GRPCInferenceService"
OPEN_CALLS = {"ServerLive", "ServerReady", "ServerMetadata", "ModelReady", "ModelMetadata", "ModelInfer"}
CALLS = [method.name for method in service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods]


@pytest.mark.parametrize("scheme", ["grpcs", "https"])
@pytest.mark.parametrize("by", ["key", "token"])
def test_a_client_with_a_key_or_a_token_is_answered(edge, video_server, scheme, by):
    key = edge.keys["tester"] if by == "key" else secrets(edge.folder, "token", "gate")
    with edge.client(scheme, key) as sam3, Client(video_server.grpc_url, model=MODEL, timeout=120) as direct:
        assert sam3.ready()
        found, expected = (each.detect(FRAME, ["red circle"]) for each in (sam3, direct))
        assert (found.boxes == expected.boxes).all()


@pytest.mark.parametrize("scheme", ["grpcs", "https"])
def test_who_has_no_valid_key_is_refused(edge, scheme, tmp_path):
    secrets(tmp_path, "certificate", "localhost")
    honest = secrets(edge.folder, "token", "gate")
    middle = honest.split(".")[1]
    unsigned = f"eyJhbGciOiJub25lIn0.{middle}."
    wrong = {
        "made up": "sam3-made-up",
        "of somebody else": secrets(tmp_path, "key", "tester"),
        "an expired token": secrets(edge.folder, "token", "gate", "--days", "-1"),
        "another's token": secrets(tmp_path, "token", "gate"),
        "a token without signature": unsigned,
        "no token": "eyJ",
    }
    for key in wrong.values():
        with edge.client(scheme, key) as sam3, pytest.raises(AccessDenied, match="refuses the key") as error:
            sam3.detect(FRAME, ["red circle"])
        assert key not in str(error.value) or key == "eyJ"
    with edge.client(scheme, wrong["an expired token"]) as sam3, pytest.raises(AccessDenied, match="expired"):
        sam3.detect(FRAME, ["red circle"])
    assert edge.ask("GET", "/v2/health/ready")[0] == 401


def test_keys_come_and_go_while_it_runs(edge):
    file = edge.folder / "keys.yaml"
    before = file.read_text()
    key = secrets(edge.folder, "key", "guest")
    with edge.client(key=key) as sam3:
        until(sam3.ready)
        new = file.with_name("new")
        new.write_text(before)
        new.replace(file)
        until(lambda: not sam3.ready())


OPEN = [
    ("GET", "/v2"),
    ("GET", "/v2/health/live"),
    ("GET", "/v2/health/ready"),
    ("GET", f"/v2/models/{MODEL}"),
    ("GET", f"/v2/models/{MODEL}/ready"),
]
CLOSED = [
    ("GET", "/"),
    ("GET", "/metrics"),
    ("GET", "/stats"),
    ("POST", "/quitquitquit"),
    ("POST", "/v2/repository/index"),
    ("POST", f"/v2/repository/models/{MODEL}/load"),
    ("POST", f"/v2/repository/models/{MODEL}/unload"),
    ("GET", "/v2/models/stats"),
    ("GET", f"/v2/models/{MODEL}/stats"),
    ("GET", f"/v2/models/{MODEL}/config"),
    ("POST", f"/v2/models/{MODEL}/generate"),
    ("GET", "/v2/logging"),
    ("POST", "/v2/logging"),
    ("GET", "/v2/trace/setting"),
    ("POST", f"/v2/models/{MODEL}/trace/setting"),
    *(("GET", f"/v2/{kind}sharedmemory/status") for kind in ("system", "cuda")),
    *(("POST", f"/v2/{kind}sharedmemory/unregister") for kind in ("system", "cuda")),
    ("POST", "/v2/systemsharedmemory/region/x/register"),
    ("GET", "/v2/health/../logging"),
    ("GET", "/v2//logging"),
    ("GET", "/v2/health/ready/../../logging"),
    ("GET", "/v2%2flogging"),
    ("GET", "/v2/%6cogging"),
    ("GET", "/v2/logging?/v2/health/ready"),
    ("GET", "//v2/logging"),
]


def test_only_health_metadata_and_inference_are_open_over_http(edge):
    key = edge.keys["tester"]
    assert {path: edge.ask(method, path, key)[0] for method, path in OPEN} == {path: 200 for _, path in OPEN}
    for method, path in CLOSED:
        status, text = edge.ask(method, path, key)
        assert status == 404 or (status == 400 and "%2f" in path), f"{method} {path} -> {status} {text}"
    assert {edge.ask(method, path)[0] for method, path in [*OPEN, *CLOSED]} <= {401, 400}


def test_only_health_metadata_and_inference_are_open_over_grpc(edge):
    outcomes = {}
    with edge.channel() as channel:
        for key in (edge.keys["tester"], None):
            headers = [("authorization", f"Bearer {key}")] if key else []
            for name in [*CALLS, "../inference.GRPCInferenceService/LogSettings"]:
                with pytest.raises(grpc.RpcError) as error:
                    # a field that no message has: an open call refuses it, or answers what is not asserted here
                    channel.unary_unary(f"/{SERVICE}/{name}")(b"\xff", metadata=headers, timeout=120)
                outcomes[name, bool(key)] = error.value.code()
    assert all(code == grpc.StatusCode.UNAUTHENTICATED for (_, key), code in outcomes.items() if not key)
    closed = {name for (name, key), code in outcomes.items() if key and code == grpc.StatusCode.UNIMPLEMENTED}
    assert closed == {name for name, _ in outcomes} - OPEN_CALLS


def test_what_the_server_has_is_not_listed_and_not_needed(edge):
    with edge.client(model=None) as sam3, pytest.raises(ModelNotFound, match="does not list its models"):
        sam3.detect(FRAME, ["red circle"])
    with edge.client(model="sam3_r1008") as sam3, pytest.raises(ModelNotFound, match="sam3_r1008"):
        sam3.detect(FRAME, ["red circle"])


@pytest.mark.parametrize("scheme", ["grpcs", "https"])
def test_an_expired_certificate_is_said(edge, scheme):
    url = f"{scheme}://localhost:{edge.expired_port}"
    key, ca = edge.keys["tester"], edge.folder / "expired.crt"
    with Client(url, model=MODEL, timeout=120, ca=ca, key=key) as sam3:
        with pytest.raises(ServerUnavailable, match="certificate has expired; renew it"):
            sam3.detect(FRAME, ["red circle"])
        assert not sam3.ready()


def command(edge, capsys, monkeypatch, *words, key=None):
    """Exit status of `sam3-camera` and what it prints; the key comes from the environment and is in nothing of it."""
    key = key or edge.keys["tester"]
    monkeypatch.setenv("SAM3_API_KEY", key)
    status = camera.main([*words])
    out, err = capsys.readouterr()
    assert key not in out + err
    return status, out + err


def test_the_command_for_one_camera(edge, tmp_path, capsys, monkeypatch):
    picture = tmp_path / "yard.png"
    Image.fromarray(FRAME).save(picture)
    words = ["--source", str(picture), "--classes", "red circle", "--model", MODEL, "--ca", str(edge.ca), "--output"]
    for scheme in ("grpcs", "https"):
        url = ["--url", f"{scheme}://localhost:{edge.port}"]
        assert command(edge, capsys, monkeypatch, *words, *url)[0] == 0
        status, told = command(edge, capsys, monkeypatch, *words, *url, key="not-this-one")
        assert (status, "refuses the key" in told) == (2, True)


def test_a_video(edge, tmp_path, capsys, monkeypatch):
    """Followed by a client's session, and by a camera, which cannot ask the server what it has."""
    with edge.client() as sam3, sam3.session(["red circle"], model=VIDEO_MODEL) as session:
        assert [session.frame(FRAME).frame_index for _ in range(3)] == [0, 1, 2]
    Image.fromarray(FRAME).save(tmp_path / "yard.png")
    words = ["--source", str(tmp_path / "yard.png"), "--classes", "red circle", "--track", "masks", "--output"]
    where = ["--url", f"grpcs://localhost:{edge.port}", "--ca", str(edge.ca)]
    assert command(edge, capsys, monkeypatch, *words, *where, "--model", VIDEO_MODEL)[0] == 0
    status, told = command(edge, capsys, monkeypatch, *words, *where)
    assert (status, "does not list its models" in told) == (2, True)


def test_a_fleet(edge, tmp_path, capsys, monkeypatch):
    """One of its servers has an expired certificate: the other one answers."""
    Image.fromarray(FRAME).save(tmp_path / "yard.png")
    (tmp_path / "both.crt").write_text(edge.ca.read_text() + (edge.folder / "expired.crt").read_text())
    file = tmp_path / "cameras.yaml"
    file.write_text(f"""
servers: [grpcs://localhost:{edge.port}, grpcs://localhost:{edge.expired_port}]
ca: both.crt
cameras: [{{name: yard, source: yard.png, classes: [red circle], model: {MODEL}, loop: true, fps: 10}}]
""")
    _, told = command(edge, capsys, monkeypatch, "--config", str(file), "--seconds", "3")
    account = next(json.loads(line) for line in told.splitlines() if line.startswith('{"cameras"'))
    assert account["answered"]
    assert account["failed_by"] == {"unavailable": 1}
    assert "its certificate has expired; renew it" in account["each"][0]["error"]
