"""The soak: what it holds a run to, whose memory it reads, and a short run against the real server."""

import json
import subprocess
import sys

import pytest

from ensemble.spec import Variant
from perf.bench import soak

FINE = {"read": 10, "answered": 6, "dropped": {"replaced": 3}, "failed": {"timeout": 1}}


def samples(*memory):
    """One every 30 s, of the client's and the server's megabytes."""
    return [
        {"at_s": 30.0 * (i + 1), "client_mb": client, "server_mb": server} for i, (client, server) in enumerate(memory)
    ]


STEADY = samples((200, 900), (300, 1700), (302, 1710), (301, 1712))


@pytest.mark.parametrize(
    ("each", "fairness", "memory", "broken"),
    [
        ([FINE, FINE], 0.98, STEADY, set()),
        ([FINE, FINE | {"read": 11}], 0.98, STEADY, {"every frame accounted for"}),
        ([FINE], 0.89, STEADY, {"fairness"}),
        ([FINE], 0.98, [*STEADY[:3], STEADY[3] | {"server_mb": 1790}], {"memory"}),
        ([FINE], 0.98, [*STEADY[:3], STEADY[3] | {"client_mb": 320}], {"memory"}),
        ([FINE], 0.98, samples((300, 0), (300, 0), (330, 0)), {"memory"}),
    ],
    ids=["holds", "a frame is missing", "unfair", "server grows", "client grows", "server unknown, client grows"],
)
def test_limits(each, fairness, memory, broken):
    found = soak.held({"each": each, "fairness": fairness}, memory)
    assert {name for name, fine in found.items() if fine is False} == broken
    assert None not in found.values()


def test_a_short_run_says_nothing_of_memory():
    assert soak.held({"each": [FINE], "fairness": 1.0}, STEADY[:2])["memory"] is None


def test_memory_is_that_of_the_descendants_too():
    """A process whose child fills 64 MB; its model's name is on its command line, as Triton's python backend has it."""
    child = "import os; x = b'1' * 64_000_000; print(os.getpid(), flush=True); input()"
    parent = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}, '/models/sam3_r252/1/model.py'])"
    )
    with subprocess.Popen(
        [sys.executable, "-c", parent], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        below = int(process.stdout.readline())
        found, without = soak.memory_mb(process.pid), soak.memory_mb(process.pid, {below})
        process.communicate("\n", timeout=10)
    assert 64 < found.pop("sam3_r252") < 64 + 50
    assert without.keys() == found.keys()
    assert 0 < sum(found.values()) < 50
    assert soak.memory_mb(process.pid) == {}


@pytest.mark.server
def test_three_cameras_for_some_seconds(server, tmp_path):
    options = [
        "--cameras",
        "3",
        "--seconds",
        "5",
        "--deadline-ms",
        "60000",
        "--films",
        str(tmp_path / "films"),
        "--output",
        str(tmp_path / "soak.json"),
    ]
    command = [
        sys.executable,
        "-m",
        "perf.cli",
        "bench",
        "soak",
        "--url",
        server.grpc_url,
        "--model",
        Variant(140).front_name,
        *options,
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout, done.stderr
    result = json.loads(done.stdout.splitlines()[-1])
    assert result == json.loads((tmp_path / "soak.json").read_text())
    assert result["command"].startswith("sam3-perf bench soak --url")
    assert (result["cameras"], len(result["each"]), result["failed"]) == (3, 3, 0)
    assert result["answered"] >= 3
    assert result["held"]["every frame accounted for"]
    assert result["held"]["memory"] is None
    assert result["rows"][-1]["client_mb"] > 50
    assert result["rows"][-1]["server_mb"] == 0  # a stranger's
    assert done.returncode == (False in result["held"].values())


@pytest.mark.parametrize(
    ("arguments", "code", "why"),
    [
        (["--url", "127.0.0.1:9"], 2, "--url needs --model"),
        (["--url", "ftp://x", "--model", "m", "--cameras", "1"], 2, "soak: url must be host:port"),
    ],
    ids=["no model", "no address"],
)
def test_what_cannot_start(arguments, code, why, capsys, tmp_path):
    try:
        got = soak.main([*arguments, "--films", str(tmp_path)])
    except SystemExit as end:
        got = end.code
    assert got == code
    assert why in capsys.readouterr().err
