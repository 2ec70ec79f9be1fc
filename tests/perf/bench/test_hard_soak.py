"""The hard soak: what it promises, its cameras, and which server is hurt when."""

import socket
import types
from collections import Counter

import av
import pytest

from perf.bench import failing_servers, hard_soak, misbehaving
from perf.bench.misbehaving import TROUBLES, MisbehavingCamera

FINE = {"name": "a", "read": 10, "answered": 6, "dropped": {"replaced": 2, "late": 1}, "failed": {"timeout": 1}}
SEEN = Counter(answered=6, late=1, timeout=1)


def samples(client, server, each=lambda i: [i, i]):
    return [
        {"client_mb": c, "server_mb": s, "each": each(i)} for i, (c, s) in enumerate(zip(client, server, strict=True))
    ]


STEADY = samples((100, 150, 151, 150, 152, 151), (900, 950, 400, 949, 951, 300))


def ledger(seen=SEEN, twice=0, back=0):
    kept = hard_soak.Ledger()
    kept.outcomes["a"], kept.twice, kept.back_in_time = Counter(seen), twice, back
    return kept


def server(running=True, gave_up=""):
    return types.SimpleNamespace(server=types.SimpleNamespace(running=running), gave_up=gave_up)


BROKEN = {
    "nothing": ({}, {}, STEADY, server(), set()),
    "a frame is missing": ({"read": 11}, {}, STEADY, server(), {"every frame accounted for"}),
    "a frame came twice": ({}, {"twice": 1}, STEADY, server(), {"every frame handed over once"}),
    "an answer was not handed over": (
        {},
        {"seen": SEEN - Counter(answered=1)},
        STEADY,
        server(),
        {"every frame handed over once"},
    ),
    "a failure was not handed over": (
        {},
        {"seen": SEEN - Counter(timeout=1)},
        STEADY,
        server(),
        {"every frame handed over once"},
    ),
    "time went back": ({}, {"back": 1}, STEADY, server(), {"times never go back"}),
    "a camera stopped": (
        {},
        {},
        samples((1,) * 6, (1,) * 6, lambda i: [i, min(i, 3)]),
        server(),
        {"every camera goes on"},
    ),
    "a server is down": ({}, {}, STEADY, server(running=False), {"every server comes back"}),
    "a server was given up": ({}, {}, STEADY, server(gave_up="why"), {"every server comes back"}),
    "client grows": ({}, {}, samples((100, 100, 100, 100, 100, 106), (1,) * 6), server(), {"client's memory is flat"}),
    "server grows": ({}, {}, samples((1,) * 6, (90, 90, 100, 90, 90, 106)), server(), {"servers' memory is flat"}),
}


@pytest.mark.parametrize(("account", "seen", "rows", "one", "broken"), BROKEN.values(), ids=BROKEN)
def test_promises(account, seen, rows, one, broken):
    found = hard_soak.held({"each": [FINE | account]}, ledger(**seen), rows, [one])
    assert {name for name, fine in found.items() if fine is False} == broken
    assert None not in found.values()


def test_a_frame_that_is_handed_over_twice_is_noticed():
    kept, camera = hard_soak.Ledger(), types.SimpleNamespace(config=types.SimpleNamespace(name="a"))
    for index, time_s in ((0, 0.0), (1, 0.5), (1, 0.5), (2, 0.4)):
        frame = types.SimpleNamespace(index=index, time_s=time_s)
        kept(camera, types.SimpleNamespace(frame=frame, outcome="answered"))
    assert (kept.twice, kept.back_in_time) == (1, 1)
    assert kept.outcomes["a"] == {"answered": 4}


def test_every_trouble_hurts_either_server():
    count = len(failing_servers.TROUBLES)
    hurt = [hard_soak.whose_turn(turn, 2) for turn in range(2 * count)]
    assert len(set(hurt)) == 2 * count
    assert [one for one, _ in hurt[:count]] == [0, 1] * (count // 2)


@pytest.fixture
def hurried(monkeypatch):
    """Troubles without their waiting."""
    monkeypatch.setattr(misbehaving.Line, "wait", lambda self, seconds: None)


@pytest.mark.parametrize("number", range(len(TROUBLES)), ids=TROUBLES)
def test_cameras_send_what_their_trouble_says(hurried, number):
    """Each ends its connection by itself; those that play a film play one that can be read at its beginning."""
    camera = MisbehavingCamera(number)
    data = b""
    with socket.create_connection(("127.0.0.1", int(camera.address.rpartition(":")[2]))) as connection:
        while part := connection.recv(1 << 20):
            data += part
    camera.close()
    (name,) = camera.played
    assert name == list(TROUBLES)[number]
    if name in ("hangs up at once", "says nothing"):
        assert data == b""
    elif name != "sends garbage":
        assert data[:1] == b"\x47"
    if name == "size changes":
        assert misbehaving.film(misbehaving.LARGE, 2 * misbehaving.SECONDS) in data


def test_films_begin_where_their_clock_says(tmp_path):
    path = tmp_path / "film.ts"
    path.write_bytes(misbehaving.film(start_s=3000.0))
    with av.open(str(path)) as container:
        times = [frame.time for frame in container.decode(video=0)]
    assert len(times) == misbehaving.SECONDS * misbehaving.FPS
    assert times[0] == pytest.approx(3000, abs=2)
    assert times[-1] - times[0] == pytest.approx(misbehaving.SECONDS, abs=0.2)
