"""The server's process: its log made readable, and its children watched. A small program stands in for Triton."""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path

import pytest

from ensemble.server import process
from ensemble.server.process import ServerProcess
from ensemble.server.requirements import ServerError
from tests.ensemble.waiting import until

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", "/models/sam3_engine/1/model.py"])
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize(
    ("line", "level", "text"),
    [
        ('E1121 13:04:17.672863 3657 pb_stub.cc:714] "it failed"', logging.ERROR, "13:04:17 error it failed"),
        ('W1121 13:04:17.672863 3657 memory.cc:1] "careful"', logging.WARNING, "13:04:17 warning careful"),
        ('I1121 13:03:26.896135 3657 grpc_server.cc:2558] "Started"', logging.INFO, "13:03:26 info Started"),
        ("| front | 1 | READY |", logging.INFO, "| front | 1 | READY |"),
    ],
)
def test_log_lines_become_readable(line, level, text):
    assert process._readable(line) == (level, text)


def started(script: str) -> ServerProcess:
    return ServerProcess([sys.executable, "-c", script], os.environ)


OVERDUE = """
import signal, sys, time
def end(*_):
    print('E1121 13:04:17.672863 3657 main.cc:1] "failed to stop server: Internal - Exit timeout expired."', flush=True)
    sys.exit(1)
signal.signal(signal.SIGTERM, end)
print("ready", flush=True)
time.sleep(600)
"""


def test_that_triton_ends_without_what_was_still_open_is_no_complaint():
    running = started(OVERDUE)
    until(lambda: running._tail)
    running.stop(20)
    until(lambda: "Exit timeout expired" in running._tail[-1])
    assert not running.warnings


@pytest.fixture
def parent():
    """A process with a child that has a model's file among its arguments."""
    running = started(PARENT)
    until(lambda: running._tail)
    yield running
    os.killpg(running.pid, signal.SIGKILL)


def test_a_child_that_ends_is_noticed(parent):
    parent.watch_children()
    parent.wait(0)
    child = int(parent._tail[0])
    os.kill(child, signal.SIGKILL)
    with pytest.raises(ServerError, match="sam3_engine: its process has ended"):
        parent.wait(600)
    assert parent.running


def test_children_of_later_are_not_watched(parent):
    """Only models that have loaded count: a child that comes and goes is none."""
    os.kill(int(parent._tail[0]), signal.SIGKILL)
    until(lambda: not process._alive(int(parent._tail[0])))
    parent.wait(0)


def test_an_end_of_its_own_is_told_with_the_last_words():
    ended = started("print('E1121 13:04:17.672863 3657 main.cc:1] \"no room\"'); raise SystemExit(3)")
    with pytest.raises(ServerError, match=r"stopped by itself \(exit code 3\)"):
        ended.wait(600)
    until(lambda: ended.warnings)
    assert ended.errors() == "13:04:17 error no room"


def test_only_warnings_and_errors_are_log_records(caplog):
    caplog.set_level(logging.DEBUG, "ensemble.triton")
    lines = ("I1121 13:00:00.0 1 a.cc:1] hello", "W1121 13:00:01.0 1 a.cc:1] careful", "plain")
    ended = started(f"print(*{(*lines, 'E1121 13:00:02.0 1 a.cc:1] no')!r}, sep='\\n')")
    until(lambda: len(caplog.records) == 4)
    assert [record.levelno for record in caplog.records] == [
        logging.DEBUG,
        logging.WARNING,
        logging.DEBUG,
        logging.ERROR,
    ]
    assert list(ended.warnings) == ["13:00:01 warning careful", "13:00:02 error no"]


def test_complaints_about_a_missing_gpu_are_not_passed_on(caplog):
    if Path("/dev/nvidiactl").exists():
        pytest.skip("there is a GPU: what Triton says about one may be true")
    caplog.set_level(logging.DEBUG, "ensemble.triton")
    ended = started("print('W1121 13:00:01.0 1 a.cc:1] Unable to allocate pinned system memory: CUDA')")
    until(lambda: caplog.records)
    assert [record.levelno for record in caplog.records] == [logging.DEBUG]
    assert list(ended.warnings) == []


def test_a_program_that_is_not_there():
    missing = ServerProcess(["/no/such/program"], os.environ)
    with pytest.raises(ServerError, match="stopped by itself"):
        missing.wait(600)


def test_stop_is_final_and_may_come_twice():
    running = started("import time; print('up', flush=True); time.sleep(600)")
    until(lambda: running._tail)
    running.stop(patience=60)
    assert not running.running
    running.stop(patience=60)


def test_what_does_not_end_is_killed():
    running = started(
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
    )
    until(lambda: running._tail)
    running.stop(patience=0.1)
    assert not running.running
