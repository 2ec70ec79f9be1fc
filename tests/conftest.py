"""The real thing, once a session: the small checkpoint exported for ONNX Runtime, and the embedded Triton that serves
it."""

from __future__ import annotations

import fcntl
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.metadata import distributions
from pathlib import Path

import pytest

from ensemble.server.embedded import EmbeddedServer

# PyTorch's threads wait for each other by spinning: where other processes keep the cores busy too, as the servers and
# the other half of `make test` do, two of them take up to ten times the processor time of one. Read when it is loaded.
os.environ.setdefault("OMP_NUM_THREADS", "1")

ROOT = Path(__file__).parents[1]
CHECKPOINT = ROOT / "export" / "tiny" / "checkpoint"


@pytest.fixture(scope="session")
def checkpoint() -> Path:
    """The small checkpoint's folder."""
    return CHECKPOINT


@pytest.fixture(scope="session")
def repository() -> Path:
    """A repository with the small checkpoint at 252 (windows fill it) and 140 (windows are padded)."""
    return exported("test-repository", "--resolution 252 140 --queries 50 --precision fp32 --engine onnxruntime")


@pytest.fixture(scope="session")
def video_repository() -> Path:
    """The same at 140 with the tracker."""
    options = "--video --resolution 140 --queries 50 --precision fp32 --engine onnxruntime"
    return exported("test-videos", options)


def exported(name: str, options: str) -> Path:
    """The repository of that name below build/. The export is called where it may have something to do."""
    folder = ROOT / "build" / name
    command = [sys.executable, "-m", "export.cli", "--checkpoint", str(CHECKPOINT), "--repository", str(folder)]
    command += options.split()
    folder.mkdir(parents=True, exist_ok=True)
    as_left = folder.parent / f"{name}.state"
    with (folder.parent / f"{name}.lock").open("w") as lock:  # one session exports, others then find it done
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not as_left.exists() or as_left.read_text() != state(folder, command):
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
            as_left.write_text(state(folder, command))
    return folder


def state(folder: Path, command: Sequence[str]) -> str:
    """Of all that an export reads, and of what is in its repository: only to find nothing to do takes it a quarter of a
    minute of processor time, which every run of the tests would pay."""
    rooms = (ROOT / "export", ROOT / "ensemble", folder)
    files = [path for room in rooms for path in sorted(room.rglob("*")) if path.is_file() and path.suffix != ".pyc"]
    stats = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in files]
    packages = sorted((each.name, each.version) for each in distributions())
    return hashlib.sha256(repr((command, sys.version, packages, stats)).encode()).hexdigest()


@pytest.fixture(scope="session")
def server(repository: Path) -> Iterator[EmbeddedServer]:
    """The embedded Triton on that repository, on free ports."""
    with EmbeddedServer(repository) as running:
        yield running


@pytest.fixture(scope="session")
def video_server(video_repository: Path) -> Iterator[EmbeddedServer]:
    """The embedded Triton on the repository with a tracker; its sessions have room for 118 objects together."""
    with EmbeddedServer(video_repository, video_memory_mb=30.0) as running:
        yield running
