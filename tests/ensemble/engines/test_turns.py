"""Turns on a GPU: one process at a time, whoever dies gives way, and servers do not wait for each other."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ensemble.engines import turns
from ensemble.engines.turns import Turns

ROOT = Path(__file__).parents[3]
HOLDER = """
import sys
from ensemble.engines.turns import Turns
with Turns(int(sys.argv[1])):
    print("inside", flush=True)
    sys.stdin.readline()
print("outside", flush=True)
sys.stdin.readline()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the locks lie in this process and, through TMPDIR, in its children."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(turns.tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def holder() -> Iterator[subprocess.Popen[str]]:
    """A process that has the turn of server 7."""
    command = [sys.executable, "-c", HOLDER, "7"]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout
        assert process.stdout.readline() == "inside\n"
        yield process
        process.kill()


def is_free(server_pid: int) -> bool:
    """Whether another process would get the turn at once."""
    script = "import fcntl, sys; fcntl.flock(open(sys.argv[1], 'w'), fcntl.LOCK_EX | fcntl.LOCK_NB)"
    done = subprocess.run(
        [sys.executable, "-c", script, turns.turns_path(server_pid)], capture_output=True, check=False
    )
    return done.returncode == 0


def test_one_process_at_a_time(holder: subprocess.Popen[str]) -> None:
    assert not is_free(7)
    assert holder.stdin
    assert holder.stdout
    holder.stdin.write("\n")
    holder.stdin.flush()
    assert holder.stdout.readline() == "outside\n"
    assert is_free(7)


def test_a_process_that_dies_inside_gives_way(holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with Turns(7):
        assert not is_free(7)
    assert is_free(7)


def test_servers_do_not_wait_for_each_other(holder: subprocess.Popen[str]) -> None:
    assert is_free(8)
    with Turns(8):
        assert not is_free(7)


def test_an_error_inside_ends_the_turn() -> None:
    mine = Turns(7)
    with pytest.raises(ZeroDivisionError), mine:
        1 / 0  # noqa: B018
    assert is_free(7)
